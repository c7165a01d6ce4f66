"""What `rerail explain` says of a decision."""

from rerail_api.spec import CheckpointSpec
from rerail_operator.core.explain import explain

from .builders import Scene, running


def told(scene: Scene) -> list[str]:
    return explain(scene.world(), scene.plan(), scene.now).splitlines()


def test_where_more_has_changed_than_is_shown_the_deepest_is_left_out() -> None:
    scene = running().later(60).steps(9, checkpoint_step=5, stall_seconds=1.5, loss=3.0, total_steps=9)
    scene = scene.spec(checkpoint=CheckpointSpec(interval="auto"))
    scene = scene.exits(1, code=1, at=55, lines=("a",)).exits(0, code=1, at=55)
    lines = told(scene)
    shown = [line for line in lines if " -> " in line]
    assert any(line.startswith("  and ") and line.endswith(" more") for line in lines), "too few to tell"
    assert "  round: 1 -> 2" in shown and "  incidents[1].class: none -> ProcessFault" in shown
    depths = [line.split(": ")[0].count(".") for line in shown]
    assert depths == sorted(depths)


def test_advice_is_an_action_like_any_other() -> None:
    scene = running().spec(checkpoint=CheckpointSpec(interval=30)).status(checkpoint_interval_seconds=30)
    assert "  Advise pod_uids=[2: p1-0, p1-1] round=1 checkpoint_seconds=30" in told(scene.all(advised=0))

"""How often the ranks are told to save: what the spec says, what the model chooses, and who hears of it when."""

from dataclasses import replace

import pytest

from rerail_api.contract import AgentState
from rerail_api.spec import CheckpointSpec
from rerail_api.status import Forecast
from rerail_operator.core.advice import interval_to_tell
from rerail_operator.core.plan import Advise, OrderRun

from .builders import Scene, at_barrier, released, running

AUTO = CheckpointSpec(interval="auto")
BOUND = CheckpointSpec(interval="auto", min_interval_seconds=60, max_interval_seconds=300)


def view(interval: float) -> Forecast:
    return Forecast(
        interruptions_per_thousand_node_days=6.5, dead_seconds=20, stall_seconds=0.5,
        interval_seconds=interval, ettr=0.99,
    )  # fmt: skip


CASES: dict[str, tuple[CheckpointSpec, int | None, float | None, int | None]] = {
    "nothing asked, nothing told": (CheckpointSpec(), None, 118, None),
    "what was told is taken back when nothing is asked any more": (CheckpointSpec(), 118, 118, None),
    "a number is told as it is": (CheckpointSpec(interval=30), None, None, 30),
    "another number at once, however near": (CheckpointSpec(interval=31), 30, 118, 31),
    "auto has nothing to say of a job that has never run": (AUTO, None, None, None),
    "auto is what the model chooses": (AUTO, None, 118.4, 118),
    "a fifth more is not worth telling": (AUTO, 100, 120, 100),
    "nor a fifth less": (AUTO, 100, 80, 100),
    "more than a fifth more is": (AUTO, 100, 121, 121),
    "more than a fifth less is": (AUTO, 100, 79, 79),
    "never less than the lower bound": (BOUND, None, 20, 60),
    "never more than the upper one": (BOUND, None, 900, 300),
    "a new bound moves what was told, however near": (BOUND, 301, 310, 300),
    "auto after a number begins with what was told": (AUTO, 100, 110, 100),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CASES)
def test_the_interval_to_tell(sentence: str) -> None:
    spec, told, chosen, want = CASES[sentence]
    assert interval_to_tell(spec, told, view(chosen) if chosen is not None else None) == want


@pytest.mark.parametrize(
    ("least", "most", "bounds"),
    [
        (None, None, (10, 3600)),
        (5, None, (5, 3600)),
        (None, 5, (5, 5)),
        (7200, None, (7200, 7200)),
        (1, 2, (1, 2)),
    ],
)
def test_a_bound_that_is_written_moves_the_default_of_the_other(
    least: int | None, most: int | None, bounds: tuple[int, int]
) -> None:
    spec = CheckpointSpec(interval="auto", min_interval_seconds=least, max_interval_seconds=most)
    assert spec.auto_bounds == bounds


def asking(scene: Scene, **checkpoint: object) -> Scene:
    return scene.spec(checkpoint=CheckpointSpec(**checkpoint))  # type: ignore[arg-type]


def told(scene: Scene) -> list[Advise]:
    return [action for action in scene.plan().actions if isinstance(action, Advise)]


def test_the_first_release_brings_the_interval_along() -> None:
    scene = asking(at_barrier(), interval="auto").written()
    assert scene.job.status.checkpoint_interval_seconds == round(
        scene.job.status.ledger.forecast.interval_seconds
    )  # type: ignore[union-attr]
    (run,) = [a for a in scene.plan().actions if isinstance(a, OrderRun)]
    assert {r.checkpoint_seconds for r in run.releases.values()} == {
        scene.job.status.checkpoint_interval_seconds
    }


def test_a_late_node_gets_the_release_that_the_others_hold_whatever_was_told_since() -> None:
    scene = released().status(checkpoint_interval_seconds=50)
    held = running().agent_of(0).release
    assert held is not None
    scene = scene.agent(
        0, state=AgentState.RUNNING, release=replace(held, checkpoint_seconds=40), ranks_alive=2
    )
    (run,) = [a for a in scene.plan().actions if isinstance(a, OrderRun)]
    assert [r.checkpoint_seconds for r in run.releases.values()] == [40]


def test_a_change_is_written_before_it_is_told() -> None:
    scene = asking(running().all(advised=0), interval=30)
    assert told(scene) == []
    written = scene.written()
    assert written.job.status.checkpoint_interval_seconds == 30
    assert told(written) == [Advise(("p1-0", "p1-1"), 1, 30)]


def test_only_who_has_not_heard_is_told_and_then_nobody() -> None:
    scene = running().status(checkpoint_interval_seconds=30).spec(checkpoint=CheckpointSpec(interval=30))
    scene = scene.all(advised=30)
    assert told(scene) == []
    assert told(scene.agent(1, advised=50)) == [Advise(("p1-1",), 1, 30)]


def test_agents_of_the_version_before_are_not_told() -> None:
    scene = running().status(checkpoint_interval_seconds=30).spec(checkpoint=CheckpointSpec(interval=30))
    assert [scene.agent_of(rank).advised for rank in (0, 1)] == [None, None]
    assert told(scene) == []


def test_who_does_not_run_or_is_not_connected_is_not_told() -> None:
    scene = running().status(checkpoint_interval_seconds=30).spec(checkpoint=CheckpointSpec(interval=30))
    scene = scene.all(advised=0).agent(0, state=AgentState.READY).agent(1, connected=False)
    assert told(scene) == []


def test_what_was_told_is_taken_back_from_running_ranks() -> None:
    scene = running().status(checkpoint_interval_seconds=30).all(advised=30).written()
    assert scene.job.status.checkpoint_interval_seconds is None
    assert told(scene) == [Advise(("p1-0", "p1-1"), 1, 0)]


def test_measured_stalls_move_what_auto_tells() -> None:
    scene = asking(running(64).all(advised=0), interval="auto", maxIntervalSeconds=86_400).written()
    first = scene.job.status.checkpoint_interval_seconds
    assert first is not None
    for number in range(1, 4):
        scene = scene.later(600).steps(100 * number, checkpoint_step=100 * number, stall_seconds=8.0 * number)
        scene = scene.written()
    second = scene.job.status.checkpoint_interval_seconds
    assert second is not None and second > 3 * first
    assert told(scene)[0].checkpoint_seconds == second


def test_a_told_interval_survives_a_suspension() -> None:
    scene = asking(running().all(advised=0), interval="auto").written()
    interval = scene.job.status.checkpoint_interval_seconds
    stopped = scene.spec(suspend=True).written().gone(0).gone(1).written().later(50).written()
    assert stopped.job.status.checkpoint_interval_seconds == interval is not None

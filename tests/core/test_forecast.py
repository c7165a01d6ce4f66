"""The model's view of a job, from the job's own figures, and what an interruption cost its gang."""

from datetime import timedelta

import pytest

from rerail_api.ettr import Interruptions, best_interval, ettr
from rerail_api.status import CheckpointMark, Ledger, Stage
from rerail_operator.core.forecast import forecast
from rerail_operator.core.ledger import dead_seconds, newly_over
from rerail_operator.core.publish import write_due

from . import ground
from .builders import Scene, after, an_incident, fresh, running

DAY = 86_400.0
PRIOR_NODE_DAYS = 1000 / 6.5


def over(number: int = 1, **spent: float):  # type: ignore[no-untyped-def]
    stages = {Stage(name): seconds for name, seconds in spent.items()}
    return an_incident(number, resolved_time=after(60), stage_seconds=stages)


def a_ledger(productive: float = 0.0, checkpoints: int = 0, **lost: float) -> Ledger:
    stages = {Stage(name): seconds for name, seconds in lost.items()}
    wall = productive + sum(stages.values())
    return Ledger(
        wall_seconds=wall, productive_seconds=productive, lost_seconds=stages, checkpoints=checkpoints
    )


# -- the rate


def test_before_anything_is_known_the_rate_is_the_priors() -> None:
    assert forecast(a_ledger(), (), 4).interruptions_per_thousand_node_days == 6.5


def test_the_prior_weighs_as_one_interruption_in_its_node_days() -> None:
    lived = a_ledger(productive=10 * DAY)
    found = forecast(lived, (over(7),), 100).interruptions_per_thousand_node_days
    assert found == pytest.approx(1000 * 8 / (PRIOR_NODE_DAYS + 1000), abs=1e-3)


def test_a_large_job_outweighs_the_prior_in_hours_and_a_small_one_in_months() -> None:
    hours = a_ledger(productive=DAY / 4)
    assert forecast(hours, (), 1_875).interruptions_per_thousand_node_days < 2
    assert forecast(hours, (), 2).interruptions_per_thousand_node_days > 6.4


def test_time_without_nodes_is_no_exposure() -> None:
    waited = a_ledger(productive=DAY, queued=90 * DAY, suspended=90 * DAY)
    assert forecast(waited, (), 100) == forecast(a_ledger(productive=DAY), (), 100)


# -- dead time and stall


def test_dead_time_is_the_mean_over_all_that_is_over() -> None:
    lived = a_ledger(productive=1).model_copy(update={"dead_seconds": 300.0})
    assert forecast(lived, (over(20),), 4).dead_seconds == 15
    assert forecast(lived, (over(20), an_incident(21)), 4).dead_seconds == 15


def test_replay_saves_and_suspension_are_no_dead_time() -> None:
    spent = over(1, detection=1, decision=1, stop=3, replay=100, checkpointStall=5, suspended=1000)
    assert dead_seconds(spent) == 5


def test_dead_time_is_booked_once_when_an_interruption_is_over_or_superseded() -> None:
    open_ = an_incident(1, stage_seconds={Stage.LOAD: 7.0})
    done = open_.model_copy(update={"resolved_time": after(9)})
    second = an_incident(2, stage_seconds={Stage.DETECTION: 1.0})
    assert newly_over((), (open_,)) == ()
    assert newly_over((open_,), (open_,)) == ()
    assert newly_over((open_,), (done,)) == (done,)
    assert newly_over((done,), (done,)) == ()
    assert newly_over((open_,), (open_, second)) == (open_,)
    assert newly_over((done,), (done, second)) == ()
    assert newly_over((), (done,)) == (done,)  # the one that ends the job


def test_before_the_first_interruption_dead_time_is_what_the_start_took_without_images_and_places() -> None:
    started = a_ledger(productive=1, placement=100, start=50, rendezvous=1, load=4, compile=20)
    assert forecast(started, (), 4).dead_seconds == 25


def test_the_stall_is_measured_per_checkpoint_and_never_nothing() -> None:
    assert forecast(a_ledger(productive=1), (), 4).stall_seconds == 0.5
    assert forecast(a_ledger(100, 10, checkpointStall=20), (), 4).stall_seconds == 2
    assert forecast(a_ledger(100, 10), (), 4).stall_seconds == 0.05


# -- interval and ETTR


def test_the_chosen_interval_is_the_models_within_its_bounds() -> None:
    found = forecast(a_ledger(100, 10, checkpointStall=20), (), 1_875)
    between = 1000 * DAY / (found.interruptions_per_thousand_node_days * 1_875)
    assert found.interval_seconds == pytest.approx(best_interval(Interruptions(between, 0, 2)), rel=1e-3)
    assert forecast(a_ledger(100, 10), tuple(over(n) for n in range(1, 9_999)), 18_750).interval_seconds == 10
    assert forecast(a_ledger(100, 10, checkpointStall=9_000), (), 1).interval_seconds == 3600


def test_the_predicted_ettr_is_that_of_the_interval_that_the_job_keeps() -> None:
    kept = forecast(a_ledger(6_000, 10, load=30, replay=1_000), (), 1_000)
    between = 1000 * DAY / (kept.interruptions_per_thousand_node_days * 1_000)
    assert kept.ettr == pytest.approx(ettr(Interruptions(between, 30, 0.05), 700), abs=1e-4)
    one = forecast(a_ledger(6_000, 1, load=30), (), 1_000)
    assert one.ettr == pytest.approx(
        ettr(Interruptions(between, one.dead_seconds, one.stall_seconds), one.interval_seconds), abs=1e-3
    )


@pytest.mark.parametrize("wild", [a_ledger(), a_ledger(1e9, 10**6), a_ledger(0, 3, load=1e9)])
def test_no_figure_leaves_its_bounds(wild: Ledger) -> None:
    for nodes in (1, 18_750):
        found = forecast(wild, tuple(over(n, load=1e6) for n in (1, 10**9)), nodes)
        assert 0 <= found.ettr <= 1 and 10 <= found.interval_seconds <= 3600


# -- in the status


def test_a_job_that_has_run_shows_a_forecast_and_one_in_the_queue_none() -> None:
    assert fresh().written().job.status.ledger.forecast is None
    assert running().later(5).written().job.status.ledger.forecast is not None


def test_the_forecast_alone_is_not_worth_a_write_at_once() -> None:
    before = running().later(1).written().job.status
    later = running().later(500).written().job.status
    assert before.ledger.forecast != later.ledger.forecast
    assert not write_due(before, later, timedelta(seconds=9))


def test_commits_are_counted_once() -> None:
    scene = running().steps(9, checkpoint_step=5).written().later(1)
    assert scene.job.status.ledger.checkpoints == 1
    scene = scene.steps(12, checkpoint_step=5).written().later(1)
    assert scene.job.status.ledger.checkpoints == 1
    scene = scene.steps(15, checkpoint_step=10).written().later(1)
    assert scene.job.status.ledger.checkpoints == 2
    back = running().status(last_checkpoint=CheckpointMark(step=9)).steps(12, checkpoint_step=8)
    assert back.written().job.status.ledger.checkpoints == 0


def interrupted(scene: Scene) -> Scene:
    return scene.exits(1, code=1, at=0).later(2).written().later(3).written()


def test_an_interruption_is_priced_in_seconds_of_all_accelerators_of_the_gang() -> None:
    (incident,) = interrupted(running(3)).job.status.incidents
    assert sum(incident.stage_seconds.values()) == 5
    assert incident.gpu_seconds_lost == 5 * 3 * 8


def test_a_gang_without_accelerators_loses_none() -> None:
    (incident,) = interrupted(running(3, template=ground.a_template(gpus=0))).job.status.incidents
    assert incident.gpu_seconds_lost is None


def test_an_accelerator_count_that_cannot_be_read_costs_nothing_and_stops_nothing() -> None:
    scene = running(2)
    limits = {"name": "trainer", "command": ["a"], "resources": {"limits": {ground.GPU: "many"}}}
    seen = scene.spec(template={"spec": {"containers": [limits]}}).incident(an_incident())
    assert seen.plan().status is not None


def test_a_suspension_during_an_interruption_is_not_paid_for() -> None:
    old = an_incident(at=-5, stage_seconds={Stage.SUSPENDED: 1000.0, Stage.STOP: 2.0})
    status = running().incident(old).later(0).written().job.status
    assert status.incidents[0].gpu_seconds_lost == 2 * 2 * 8

"""What saves cost: the seconds that a program tells of, and those of the phase that it names, booked once."""

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import Ledger, Stage
from rerail_operator.core.world import Left

from .builders import NOON, Scene, after, an_incident, running

STALL = Stage.CHECKPOINT_STALL


def training(*told: tuple[float, dict[str, object]], scene: Scene | None = None) -> Ledger:
    """The ledger after passes at these seconds after noon, each with what rank 0 then tells."""
    scene = scene or running().steps(1)
    for at, fields in told:
        scene = scene.later((after(at) - scene.now).total_seconds())
        scene = scene.steps(**{"step": 10, **fields}).written()  # type: ignore[arg-type]
    return scene.job.status.ledger


def seconds(ledger: Ledger) -> tuple[float, float]:
    """Of stepping, of standing still; their sum is the wall clock."""
    stalled = ledger.lost_seconds.get(STALL, 0.0)
    assert ledger.productive_seconds + sum(ledger.lost_seconds.values()) == pytest.approx(ledger.wall_seconds)
    return round(ledger.productive_seconds, 6), round(stalled, 6)


CASES: dict[str, tuple[Ledger, tuple[float, float]]] = {
    "a program that tells of no stall has none": (training((10, {})), (10, 0)),
    "what it tells is taken from its stepping": (training((10, {"stall_seconds": 1.5})), (8.5, 1.5)),
    "told again it is the same": (
        training((10, {"stall_seconds": 1.5}), (20, {"stall_seconds": 1.5})), (18.5, 1.5)),
    "it counts up": (training((10, {"stall_seconds": 1.5}), (20, {"stall_seconds": 4})), (16, 4)),
    "a stall longer than the time since the last pass waits for the next ones": (
        training((10, {}), (12, {"stall_seconds": 6}), (13, {"stall_seconds": 6}), (20, {"stall_seconds": 6})),
        (14, 6)),
    "the phase alone is booked as before": (
        training((10, {"phase": "save"}), (14, {"phase": "train"}), (20, {"phase": "train"})), (16, 4)),
    "a stall of a phase that was named is not booked again": (
        training((10, {"phase": "save", "stall_seconds": 0}), (14, {"phase": "train", "stall_seconds": 3.9}),
                 (20, {"phase": "train", "stall_seconds": 3.9})), (16, 4)),
    "what a named phase did not show of it is added": (
        training((10, {"phase": "save", "stall_seconds": 0}), (14, {"phase": "train", "stall_seconds": 5}),
                 (20, {"phase": "train", "stall_seconds": 5})), (15, 5)),
    "the next save after a named one counts in full": (
        training((10, {"phase": "save", "stall_seconds": 0}), (14, {"phase": "train", "stall_seconds": 4}),
                 (20, {"phase": "train", "stall_seconds": 4.5})), (15.5, 4.5)),
    "a figure below zero is nothing": (training((10, {"stall_seconds": -3})), (10, 0)),
    "one beyond all measure takes what there is": (training((10, {"stall_seconds": 1e9})), (0, 10)),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CASES)
def test_what_saves_cost(sentence: str) -> None:
    ledger, want = CASES[sentence]
    assert seconds(ledger) == want


def next_round(scene: Scene) -> Scene:
    """Rank 1 fails, the round rises, its ranks run."""
    return again(fails(scene))


def fails(scene: Scene) -> Scene:
    """Rank 1 fails after 20 s, and the round rises."""
    scene = scene.exits(1, code=1, at=20).exits(0, code=1, at=20).later(1).written()
    assert scene.job.status.round == 2
    return scene


def again(scene: Scene) -> Scene:
    """The next round is released and its ranks run."""
    word = scene.agent_of(0).progress
    left = Left(1, word) if word is not None else None
    joined = {"exit": None, "release": None, "progress": None, "left": left}
    scene = scene.all(round=2, state=AgentState.READY, **joined).written()
    assert scene.job.status.released_round == 2
    return scene.all(state=AgentState.RUNNING)


def test_the_processes_of_the_next_round_count_from_zero() -> None:
    scene = running().later(20).steps(40, stall_seconds=2.0).written()
    scene = next_round(scene).later(5).written()
    assert seconds(scene.job.status.ledger)[1] == 2
    scene = scene.steps(41, stall_seconds=0.5).written().later(5).steps(50, stall_seconds=0.5).written()
    assert seconds(scene.job.status.ledger)[1] == 2.5


def test_a_stall_told_with_the_failure_belongs_to_the_round_that_failed() -> None:
    scene = next_round(running().later(20).steps(40, stall_seconds=2.0))
    assert seconds(scene.job.status.ledger)[1] == 2
    scene = scene.later(9).steps(41, stall_seconds=1.0).written().later(9).written()
    assert seconds(scene.job.status.ledger)[1] == 3


WROTE = running().later(20).steps(40).written()  # 20 s of steps are booked
ALL_OF_IT: dict[str, Scene] = {
    "told with the failure, after its time was written as steps": next_round(WROTE.steps(40, stall_seconds=6)),
    "told when the next round is open already": again(
        fails(WROTE).agent(0, state=AgentState.STOPPING).steps(40, stall_seconds=6).later(0.5).written()),
    "and told again": again(
        fails(WROTE).agent(0, state=AgentState.STOPPING).steps(40, stall_seconds=6).written().later(0.5).written()),
    "told by an agent that left the round before anybody looked": again(fails(WROTE).steps(40, stall_seconds=6)),
    "told before, and the rest of it late": again(
        fails(WROTE.steps(40, stall_seconds=2).written()).steps(40, stall_seconds=6).later(0.5).written()),
}  # fmt: skip


@pytest.mark.parametrize("sentence", ALL_OF_IT)
def test_what_a_round_told_in_its_last_beats_is_booked_once_and_to_no_incident(sentence: str) -> None:
    scene = ALL_OF_IT[sentence]
    lost = scene.job.status.ledger.lost_seconds
    assert seconds(scene.job.status.ledger) == (14, 6)
    assert sum(scene.job.status.incidents[-1].stage_seconds.values()) == pytest.approx(sum(lost.values()) - 6)
    scene = scene.later(5).steps(41, stall_seconds=1).written().later(5).written()
    assert seconds(scene.job.status.ledger)[1] == 7


def replaying() -> Scene:
    """Round 2 has made 10 s of steps again, and is not further than round 1 was."""
    scene = running().incident(an_incident(progress_step=90, stage_seconds={}))
    ledger = Ledger(stage=Stage.REPLAY, stage_since=NOON, highest_step=90)
    scene = scene.status(round=2, released_round=2, ledger=ledger).all(round=2, release=None)
    return scene.later(10).steps(50).written()


def test_a_stall_of_a_round_that_died_while_replaying_stays_with_the_incident_that_it_replayed_for() -> None:
    scene = replaying().exits(1, code=1, at=10).exits(0, code=1, at=10).later(1).written()
    scene = scene.agent(0, state=AgentState.STOPPING).steps(50, stall_seconds=4).later(0.5).written()
    first, second = scene.job.status.incidents
    assert seconds(scene.job.status.ledger) == (0, 4)
    assert first.stage_seconds == {Stage.REPLAY: 6, STALL: 4}
    assert STALL not in second.stage_seconds


def test_a_program_that_lies_takes_nothing_from_rounds_before_its_own() -> None:
    scene = next_round(WROTE).later(4).steps(41).written().later(6).steps(50).written()
    ran = scene.job.status.ledger.productive_seconds - 20
    told = scene.steps(50, stall_seconds=1e9).written().job.status.ledger
    assert ran > 0 and seconds(told)[0] == 20


def test_a_save_during_replay_is_part_of_what_the_incident_cost_and_its_stages_still_sum_up() -> None:
    scene = (
        running().incident(an_incident(progress_step=40, stage_seconds={})).status(round=2, released_round=2)
    )
    scene = scene.status(ledger=Ledger(stage=Stage.REPLAY, stage_since=NOON, highest_step=40))
    scene = scene.all(round=2, release=None).later(4).steps(35, stall_seconds=1.0).written()
    assert scene.job.status.incidents[0].stage_seconds == {Stage.REPLAY: 3, STALL: 1}
    scene = scene.later(2).steps(41, stall_seconds=1.5).written()
    (incident,) = scene.job.status.incidents
    assert incident.resolved_time == after(6)
    assert incident.stage_seconds == {Stage.REPLAY: 4.5, STALL: 1.5}


def test_the_cost_of_a_checkpoint_is_what_was_told_of_it() -> None:
    scene = running().later(10).steps(10, checkpoint_step=5, stall_seconds=0.4).written()
    scene = scene.later(10).steps(20, checkpoint_step=15, stall_seconds=0.8).written()
    forecast = scene.job.status.ledger.forecast
    assert forecast is not None and forecast.stall_seconds == 0.4

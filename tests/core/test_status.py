"""The status that people read: conditions, progress, incidents, ledger; and when it is worth a write."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_api.contract import AgentState, ProgressPhase
from rerail_api.status import CheckpointMark, ConditionType, Incident, IncidentClass, Ledger, Stage
from rerail_operator.core.ledger import advance, lost_between
from rerail_operator.core.overlay import overlaid
from rerail_operator.core.publish import PASSING_INTERVAL, SOFT_INTERVAL, write_due
from rerail_operator.core.world import Progress

from .builders import NOON, Scene, after, an_incident, at_barrier, fresh, released, running
from .wants import Want, check

STAGES = tuple(Stage)


def resumed(scene: Scene, *, step: int | None, **fields: object) -> Scene:
    """Round 2 runs after an incident at step 40, continued from step 30."""
    scene = scene.incident(an_incident(progress_step=40, at=-10)).status(round=2, released_round=2)
    scene = scene.status(ledger=Ledger(stage=Stage.START, stage_since=NOON, highest_step=40))
    scene = scene.all(round=2, state=AgentState.RUNNING, release=None)
    told = {"resumed_from": 30, **fields}
    return scene.agent(0, progress=Progress(step=step, at=scene.now, **told))  # type: ignore[arg-type]


def stage(name: str, **status: object) -> Want:
    return Want("AllRanksRunning", phase="Running", status={"ledger.stage": name, **status})


CASES: dict[str, tuple[Scene, Want]] = {
    "a program that reports nothing is productive while it runs": (running(), stage("productive")),
    "a program that reported before and not yet again is loading": (
        running().status(progress=running().job.status.progress.model_copy(update={"step": 3})), stage("load")),
    "init is loading": (running().steps(None, phase=ProgressPhase.INIT), stage("load")),  # type: ignore[arg-type]
    "compile": (running().steps(1, phase="compile"), stage("compile")),
    "save": (running().steps(1, phase="save"), stage("checkpointStall")),
    "eval counts as productive": (running().steps(1, phase="eval"), stage("productive")),
    "steps made before are replay": (
        resumed(running(), step=40), stage("replay", **{"incidents.-1.resolved_time": None})),
    "the first new step closes the incident": (
        resumed(running(), step=41),
        stage("productive", **{"incidents.-1.resolved_time": after(0), "incidents.-1.resumed_step": 30,
                               "incidents.-1.steps_lost": 10, "resumed_from_step": 30})),
    "where it does not say where it resumed, no lost steps are guessed": (
        resumed(running(), step=41, resumed_from=None),
        stage("productive", **{"incidents.-1.steps_lost": None, "incidents.-1.resumed_step": None})),
    "observedGeneration is the generation that was looked at": (
        fresh().metadata(generation=7), Want("ClusterSettling", status={"observed_generation": 7})),
    "startTime is the first release and stays": (
        at_barrier().status(start_time=after(-500)), Want("Released", intent=True, status={"start_time": after(-500)})),
    "progress is shown": (
        running().steps(5, total_steps=50, loss=3.5, tokens=100, tokens_per_second=9.5),
        stage("productive", **{"progress.step": 5, "progress.total_steps": 50, "progress.loss": 3.5,
                               "progress.first_loss": 3.5, "progress.tokens_per_second": 9.5, "progress.time": after(0)})),
    "the agent that is furthest speaks for the gang": (
        running(3).steps(5).steps(7, rank=2), stage("productive", **{"progress.step": 7})),
    "a checkpoint mark only rises": (
        running().status(last_checkpoint=CheckpointMark(step=9)).steps(12, checkpoint_step=8),
        stage("productive", **{"last_checkpoint.step": 9})),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CASES)
def test_what_people_read(sentence: str) -> None:
    check(*CASES[sentence])


# -- conditions


def test_a_transition_time_moves_only_when_the_status_does() -> None:
    scene = running().condition(ConditionType.RUNNING, True, "AllRanksRunning", at=-60).later(5).written()
    kept = scene.job.status.condition(ConditionType.RUNNING)
    assert kept is not None and kept.last_transition_time == after(-60)
    changed = (
        scene.later(1).agent(1, state=AgentState.READY).written().job.status.condition(ConditionType.RUNNING)
    )
    assert changed is not None and (changed.status, changed.last_transition_time) == ("False", after(6))


def test_every_condition_is_there_from_the_first_look() -> None:
    kinds = [c.type for c in fresh().written().job.status.conditions]
    assert kinds == [ConditionType.SUSPENDED, ConditionType.ADMITTED, ConditionType.RUNNING]


@pytest.mark.parametrize("end", ["suspend", "give back"])
def test_running_is_false_as_soon_as_it_is_not_so(end: str) -> None:
    scene = running().spec(suspend=True) if end == "suspend" else running().spec(num_nodes=3)
    status = scene.written().job.status
    assert not status.is_true(ConditionType.RUNNING) and not status.is_true(ConditionType.ADMITTED)


# -- writes


def test_progress_alone_is_written_every_ten_seconds() -> None:
    before = running().written().job.status
    moved = running().later(2).steps(9, loss=1.0, checkpoint_step=5).written().job.status
    assert not write_due(before, moved, SOFT_INTERVAL - timedelta(seconds=0.1))
    assert write_due(before, moved, SOFT_INTERVAL)
    assert not write_due(before, before, timedelta(days=1))


TRANSITIONS = {
    "the end": lambda s: s.all(state=AgentState.DONE),
    "a new generation": lambda s: s.metadata(generation=99),
    "a restart": lambda s: s.exits(1, code=1).later(2),
    "suspension": lambda s: s.spec(suspend=True),
}


@pytest.mark.parametrize("change", TRANSITIONS)
def test_a_transition_is_written_at_once(change: str) -> None:
    before = running().written()
    assert write_due(before.job.status, TRANSITIONS[change](before).written().job.status, timedelta(0))


STATIONS = {
    "a node that stops": lambda s: s.agent(1, state=AgentState.READY),
    "a fault whose root is not named yet": lambda s: s.exits(1, code=1),
}


@pytest.mark.parametrize("station", STATIONS)
def test_what_a_gang_passes_through_is_written_when_it_lasts(station: str) -> None:
    before = running().written()
    after_ = STATIONS[station](before).written().job.status
    assert not write_due(before.job.status, after_, SOFT_INTERVAL * 9, PASSING_INTERVAL / 2)
    assert write_due(before.job.status, after_, timedelta(0), PASSING_INTERVAL)


def test_running_again_is_written_at_once() -> None:
    stopped = running().agent(1, state=AgentState.READY).written()
    again = stopped.agent(1, state=AgentState.RUNNING).written().job.status
    assert write_due(stopped.job.status, again, timedelta(0))


# -- incidents


def test_the_last_sixteen_incidents_are_kept_and_only_the_newest_has_log_lines() -> None:
    known = tuple(an_incident(n, log_lines=("x",), resolved_time=after(-1)) for n in range(1, 17))
    scene = (
        running().incident(*known).steps(5).exits(0, code=1, lines=("a", "b")).written().later(1).written()
    )
    incidents = scene.job.status.incidents
    assert [i.number for i in incidents] == list(range(2, 18))
    assert [len(i.log_lines) for i in incidents] == [0] * 15 + [2]
    assert scene.job.status.restarts.total == 17


def test_an_incident_holds_no_more_than_twenty_lines() -> None:
    lines = tuple(f"line {n}" for n in range(60))
    scene = running().exits(0, code=1, lines=lines).written().later(1).written()
    assert scene.job.status.incidents[-1].log_lines == lines[-20:]


def walk(scene: Scene, *changes: object) -> Scene:
    """Write the status, one second apart, after each change."""
    for change in changes:
        scene = (change(scene) if callable(change) else scene).written().later(1)
    return scene


def test_the_stages_of_an_incident_sum_to_what_it_took() -> None:
    def ready(s: Scene) -> Scene:
        return s.all(state=AgentState.READY, round=2, exit=None, release=None, progress=None)

    scene = walk(
        running().steps(40).later(1),
        lambda s: s.exits(1, code=1, at=0.5),  # seen half a second after it happened
        None,  # named
        None,  # the agents stop
        ready,
        lambda s: s.all(state=AgentState.RUNNING),
        lambda s: s.steps(35, at=6.5, resumed_from=30),
        None,
        lambda s: s.steps(41, at=8.5, resumed_from=30),
    )
    (incident,) = scene.job.status.incidents
    assert incident.start_time == after(0.5) and incident.resolved_time is not None
    assert (
        sum(incident.stage_seconds.values()) == (incident.resolved_time - incident.start_time).total_seconds()
    )
    assert set(incident.stage_seconds) >= {Stage.DETECTION, Stage.STOP, Stage.REPLAY}
    assert Stage.PRODUCTIVE not in incident.stage_seconds


# -- the ledger

PASSES = st.lists(
    st.tuples(
        st.floats(0, 1e5, allow_nan=False),
        st.sampled_from(STAGES),
        st.none() | st.floats(0, 1e5, allow_nan=False),
    ),
    max_size=30,
)


@given(PASSES)
def test_the_parts_of_a_ledger_sum_to_the_wall_clock(passes: list[tuple[float, Stage, float | None]]) -> None:
    ledger, now = Ledger(), NOON
    for seconds, stage_, fault in passes:
        now += timedelta(seconds=seconds)
        fault_at = None if fault is None else now - timedelta(seconds=fault)
        before, ledger = ledger, advance(ledger, NOON, now, stage_, fault_at)
        assert ledger.productive_seconds >= before.productive_seconds
        assert all(seconds >= 0 for seconds in lost_between(before, ledger).values())
        assert 0 <= ledger.ettr <= 1
    parts = ledger.productive_seconds + sum(ledger.lost_seconds.values())
    assert parts == pytest.approx((now - NOON).total_seconds(), abs=1e-3)
    assert ledger.wall_seconds == pytest.approx(parts)


def test_a_clock_that_goes_back_books_nothing() -> None:
    ledger = advance(Ledger(), NOON, after(10), Stage.PRODUCTIVE)
    again = advance(ledger, NOON, after(5), Stage.PRODUCTIVE)
    assert (again.wall_seconds, again.stage_since) == (10, after(10))


def test_time_since_a_failure_was_detection_whatever_was_believed() -> None:
    ledger = Ledger(stage=Stage.PRODUCTIVE, stage_since=NOON)
    ledger = advance(ledger, NOON, after(10), Stage.DETECTION, fault_at=after(7))
    assert (ledger.productive_seconds, ledger.lost_seconds) == (7, {Stage.DETECTION: 3})


def test_nothing_is_detected_while_nothing_is_held() -> None:
    ledger = advance(
        Ledger(stage=Stage.SUSPENDED, stage_since=NOON), NOON, after(10), Stage.STOP, fault_at=after(1)
    )
    assert ledger.lost_seconds == {Stage.SUSPENDED: 10}


def test_ettr_leaves_out_queue_and_suspension() -> None:
    ledger = Ledger(stage=Stage.QUEUED, stage_since=NOON)
    ledger = advance(ledger, NOON, after(100), Stage.START)
    ledger = advance(ledger, NOON, after(110), Stage.PRODUCTIVE)
    ledger = advance(ledger, NOON, after(140), Stage.SUSPENDED)
    ledger = advance(ledger, NOON, after(999), Stage.START)
    assert ledger.ettr == pytest.approx(30 / 40)


def test_ettr_is_short_enough_for_a_column() -> None:
    ledger = Ledger(stage=Stage.PRODUCTIVE, stage_since=NOON)
    ledger = advance(ledger, NOON, after(10), Stage.STOP)
    ledger = advance(ledger, NOON, after(13), Stage.STOP)
    assert ledger.ettr == 0.7692


def test_what_was_decided_runs_ahead_of_what_is_written() -> None:
    stored = running().written().job.status
    decided = running().later(2).steps(9, loss=1.0).written().job.status
    ahead = overlaid(stored, decided)
    assert (ahead.ledger, ahead.progress) == (decided.ledger, decided.progress)
    assert overlaid(stored, None) == stored


def test_what_was_decided_is_not_believed_where_the_written_is_ahead() -> None:
    """A write whose reply was lost: what is remembered is older than what is stored."""
    decided = running().later(2).steps(9).written().job.status
    stored = running().exits(0, code=1).exits(1, code=1).later(5).written().job.status
    assert stored.round == 2
    assert overlaid(stored, decided) == stored


def test_the_end_of_an_incident_is_told_with_what_it_cost() -> None:
    old = an_incident(at=-10, progress_step=40)
    scene = resumed(running(), step=41).incident(old)
    scene = scene.status(ledger=Ledger(stage=Stage.START, stage_since=after(-10), highest_step=40))
    (note,) = scene.plan().notes
    assert note.message == (
        "incident 1 (ProcessFault) over: recovered in 10.0 s (start 10.0); in place; from step 30; "
        "10 steps made again; 0.0444 GPU-hours"
    )


def test_a_superseded_incident_keeps_what_it_had_cost() -> None:
    old = an_incident(at=-5, class_=IncidentClass.NODE_LOSS, stage_seconds={Stage.PLACEMENT: 4.0})
    scene = released().incident(old).status(ledger=Ledger(stage=Stage.START, stage_since=NOON)).later(3)
    scene = scene.exits(1, code=1, at=2).exits(0, code=1, at=2).written()
    first, second = scene.job.status.incidents
    assert isinstance(first, Incident)
    assert first.stage_seconds == {Stage.PLACEMENT: 4.0, Stage.START: 2.0}
    assert second.stage_seconds == {Stage.DETECTION: 1.0}


def unheard() -> Scene:
    """Ten seconds after the last word was booked another leader looks, and no agent has come yet."""
    scene = replace(running().written(), agents={}).later(10)
    return scene.see(leading_since=scene.now, memory={})


def test_until_the_agents_are_heard_a_new_leader_books_nothing() -> None:
    scene = unheard()
    assert scene.written().job.status.ledger == scene.job.status.ledger


def test_what_a_new_leader_hears_decides_what_the_time_before_was() -> None:
    heard = running().agents
    before = unheard().written().later(2)
    ran = replace(before, agents=heard).written().job.status.ledger
    failed = replace(before, agents=heard).exits(1, code=1, at=3).written().job.status.ledger
    assert (ran.productive_seconds, ran.lost_seconds) == (12, {})
    assert (failed.productive_seconds, failed.lost_seconds) == (3, {Stage.DETECTION: 9})

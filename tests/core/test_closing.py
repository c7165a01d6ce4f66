"""What a person reads when an incident is over, and what each class of failure has cost."""

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import Incident, IncidentClass, Ledger, Stage, TrainingJobStatus
from rerail_operator.core.closing import in_words

from .builders import Scene, a_pod, after, an_incident, running

K = IncidentClass


def over(**fields: object) -> Incident:
    known: dict[str, object] = {"resolved_time": after(7.4), "resumed_step": 30, "steps_lost": 12}
    return an_incident(3, **{**known, **fields})  # type: ignore[arg-type]


SPENT = {
    Stage.DETECTION: 0.3, Stage.DECISION: 0.2, Stage.STOP: 0.04, Stage.LOAD: 4.9, Stage.REPLAY: 1.96,
}  # fmt: skip

CASES: dict[str, tuple[Incident, str]] = {
    "all of it": (
        over(rank=5, node="gpu-7", pod="gpt-c0ffe-1-2", stage_seconds=SPENT, gpu_seconds_lost=57.6),
        "incident 3 (ProcessFault, rank 5, node gpu-7, pod gpt-c0ffe-1-2) over: recovered in 7.4 s (detection 0.3, "
        "decision 0.2, load 4.9, replay 2.0); in place; from step 30; 12 steps made again; 0.016 GPU-hours"),
    "without a rank the node rank is named": (
        over(class_=K.NODE_LOSS, node_rank=2, steps_lost=1),
        "incident 3 (NodeLoss, node rank 2) over: recovered in 7.4 s; in place; from step 30; 1 step made again"),
    "a program that tells no steps": (
        over(resumed_step=None, steps_lost=None), "incident 3 (ProcessFault) over: recovered in 7.4 s; in place"),
    "no step was lost": (
        over(steps_lost=0), "incident 3 (ProcessFault) over: recovered in 7.4 s; in place; from step 30"),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CASES)
def test_the_line_of_an_incident_that_is_over(sentence: str) -> None:
    incident, line = CASES[sentence]
    assert in_words(incident, ()) == line


def recovered(scene: Scene, *pods: int) -> str:
    """The line of the incident that ended round 1, once these node ranks have new pods."""
    scene = scene.incident(an_incident(progress_step=40)).status(round=2, released_round=2)
    for rank in pods:
        scene = scene.gone(rank).plus(a_pod(rank, round_=2, node=f"m{rank}")).agent(rank)
    agent = scene.agent_of(pods[0] if pods else 0)
    scene = scene.all(round=2, state=running().agent_of(0).state, release=agent.release)
    notes = scene.later(3).steps(41, resumed_from=40).plan().notes
    return next(note.message for note in notes if note.reason == "Resolved")


def test_pods_that_came_instead_of_others_are_named() -> None:
    name = a_pod(1, round_=2).name
    assert "; in place; " in recovered(running())
    assert f"; with {name} on m1 instead; " in recovered(running(), 1)
    assert f"; with {name} on m1 and 1 more instead; " in recovered(running(3), 1, 2)


# -- what ends before the job has recovered


def recovering(seconds: float = 4) -> Scene:
    """Rank 1 was killed after step 40; the gang stands before the barrier of round 2."""
    scene = running().steps(40).exits(1, signal=9).later(1).written()
    assert scene.job.status.round == 2
    return scene.later(seconds)


def back(scene: Scene) -> Scene:
    """The ranks of round 2 run and load."""
    scene = scene.status(released_round=2)
    return scene.all(round=2, state=AgentState.RUNNING, exit=None, release=None)


def told(scene: Scene) -> tuple[list[str], TrainingJobStatus]:
    """What the next pass says of incidents, and the status that it writes."""
    plan = scene.plan()
    assert plan.status is not None and plan.intent
    said = [f"{n.reason}: {n.message}" for n in plan.notes if n.reason in ("Resolved", "Unresolved")]
    after_it = scene.written().later(1).plan()
    assert not {n.reason for n in after_it.notes} & {"Resolved", "Unresolved"}, "told twice"
    return said, plan.status


WHO = "incident 1 (ProcessFault, rank 1, node n1, pod gpt-c0ffe-1-1) over"
CUT_SHORT: dict[str, tuple[Scene, str]] = {
    "the job is suspended": (
        recovering().spec(suspend=True),
        f"Unresolved: {WHO}: the job was suspended after 5.0 s (detection 1.0, decision 4.0); 0.0222 GPU-hours"),
    "its deadline ends it": (
        recovering().spec(active_deadline_seconds=5),
        f"Unresolved: {WHO}: the job failed after 5.0 s (detection 1.0, decision 4.0); 0.0222 GPU-hours"),
    "all ranks end with 0 before a step is told": (
        back(recovering()).all(state=AgentState.DONE),
        f"Resolved: {WHO}: the job completed after 5.0 s (detection 1.0, decision 4.0); 0.0222 GPU-hours"),
    "another rank fails meanwhile": (
        back(recovering()).exits(0, code=1, at=4.0).later(0.5),
        f"Unresolved: {WHO}: interrupted anew after 4.0 s (detection 1.0, decision 3.0); 0.0178 GPU-hours"),
    "it is the failure that ends the job": (
        running().policy(maxRestarts=0).steps(40).exits(1, signal=9).later(1.5),
        f"Unresolved: {WHO}: the job failed after 1.5 s (detection 1.5); 0.00667 GPU-hours"),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CUT_SHORT)
def test_an_incident_that_something_else_ends_is_closed_and_its_cost_is_told_once(sentence: str) -> None:
    scene, line = CUT_SHORT[sentence]
    said, status = told(scene)
    assert said == [line]
    first = status.incidents[0]
    assert first.resolved_time is not None and first.start_time is not None
    took = (first.resolved_time - first.start_time).total_seconds()
    assert sum(first.stage_seconds.values()) == pytest.approx(took)
    assert status.ledger.lost_seconds_by_class == {K.PROCESS_FAULT: pytest.approx(took)}


def test_nothing_is_told_of_incidents_where_a_job_without_an_open_one_ends() -> None:
    over_already = an_incident(resolved_time=after(0))
    for scene in (running(), running().incident(over_already)):
        assert told(scene.spec(suspend=True))[0] == []
        assert told(scene.all(state=AgentState.DONE))[0] == []


def test_what_passes_while_a_job_is_suspended_and_comes_back_is_not_the_cost_of_its_incident() -> None:
    scene = recovering().spec(suspend=True).written().gone(0).gone(1).later(1000).written()
    (incident,) = scene.job.status.incidents
    assert incident.stage_seconds == {Stage.DETECTION: 1, Stage.DECISION: 4}
    assert scene.job.status.ledger.lost_seconds[Stage.STOP] == 1000


def test_steps_made_again_after_such_a_suspension_are_still_no_progress() -> None:
    scene = (
        running()
        .incident(an_incident(progress_step=43, resolved_time=after(-9)))
        .status(round=2, released_round=2)
    )
    scene = scene.status(ledger=scene.job.status.ledger.model_copy(update={"highest_step": 43})).all(round=2)
    stages = {}
    for step in (41, 42, 43, 44):
        status = scene.steps(step, resumed_from=40).plan().status
        assert status is not None
        stages[step] = status.ledger.stage
    assert stages == {41: "replay", 42: "replay", 43: "productive", 44: "productive"}


# -- what each class has cost


def by_class(scene: Scene) -> dict[IncidentClass, float]:
    return scene.job.status.ledger.lost_seconds_by_class


def failing(scene: Scene, code: int = 1, **fields: object) -> Scene:
    return scene.exits(0, code=code, **fields).exits(1, code=code, **fields).written()  # type: ignore[arg-type]


def going_on(scene: Scene, seconds: float, step: int) -> Scene:
    """The gang of the open round is back after so many seconds, past its last step."""
    round_ = scene.job.status.round
    scene = scene.status(released_round=round_).later(seconds)
    scene = scene.all(round=round_, state=running().agent_of(0).state, exit=None, release=None)
    return scene.steps(step, at=(scene.now - after(0)).total_seconds()).written()


def test_an_open_incident_costs_nothing_yet_for_its_class_may_change() -> None:
    assert by_class(failing(running().steps(5)).later(5).written()) == {}


def test_incidents_that_have_fallen_off_the_list_are_still_in_the_sums() -> None:
    scene, count = running().steps(0), 20
    for number in range(1, count + 1):
        scene = failing(scene, at=(scene.now - after(0)).total_seconds())
        assert scene.job.status.incidents[-1].number == number
        scene = going_on(scene, 2, 10 * number)
    assert len(scene.job.status.incidents) == 16
    assert by_class(scene) == {K.PROCESS_FAULT: pytest.approx(2.0 * count)}


def test_each_class_has_its_own_sum() -> None:
    scene = going_on(failing(running().steps(5)), 3, 10)
    scene = going_on(failing(scene, ordered=True, at=3), 4, 20)
    assert by_class(scene) == {K.PROCESS_FAULT: 3, K.PREEMPTION: 4}


def test_the_incident_that_ends_the_job_is_in_the_sums_too() -> None:
    scene = running().policy(maxRestarts=0).later(2)
    scene = failing(scene, at=0.5)
    assert scene.job.status.finished
    assert by_class(scene) == {K.PROCESS_FAULT: 1.5}


def test_suspended_time_in_an_incident_is_no_cost() -> None:
    spent = {Stage.SUSPENDED: 1000.0, Stage.STOP: 2.0}
    scene = running().incident(an_incident(stage_seconds=spent)).status(round=2, released_round=2)
    scene = scene.status(ledger=Ledger(stage=Stage.PRODUCTIVE, stage_since=after(0)))
    scene = scene.all(round=2, release=None).later(1).steps(4).written()
    assert by_class(scene) == {K.PROCESS_FAULT: 2}

"""Complete, Failed, and what is left to do afterwards; a finished job never runs again."""

from dataclasses import replace

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import ConditionType
from rerail_operator.core.decide import decide
from rerail_operator.core.world import PodPhase

from .builders import (
    Scene,
    a_pod,
    admitted,
    after,
    an_incident,
    at_barrier,
    fresh,
    placed,
    released,
    running,
)
from .wants import Want, check


def complete(scene: Scene) -> Scene:
    return scene.all(state=AgentState.DONE, ranks_alive=0).written()


def failed(scene: Scene, rank: int = 1) -> Scene:
    """Ended by a rule, with that node rank as its evidence."""
    rules = [{"name": "no", "onExitCodes": {"operator": "In", "values": [3]}, "action": "FailJob"}]
    scene = (
        scene.policy(rules=rules)
        .exits(rank, code=3, lines=("Traceback", "ValueError: bad"))
        .written()
        .later(1)
        .written()
    )
    assert scene.job.status.is_true(ConditionType.FAILED)
    return scene


NOTHING = Want(None)
CASES: dict[str, tuple[Scene, Want]] = {
    "complete is written before any agent is released": (
        running().all(state=AgentState.DONE),
        Want("Completed", intent=True, phase="Complete", true=("Admitted", "Complete"),
             status={"completion_time": after(0), "ledger.stage": "stop"})),
    "one node of two that is done is not enough": (
        running().agent(0, state=AgentState.DONE), Want("AllRanksRunning", phase="Running")),
    "done in an older round is not enough": (
        running().all(state=AgentState.DONE).status(round=2, released_round=2),
        Want("NodesStarting", ("join p1-0 p1-1 to round 2",))),
    "done before the release was written is not enough": (
        at_barrier().all(state=AgentState.DONE), Want("AtBarrier", says="0 of 2")),
    "done and past the active deadline is past the deadline": (
        running().all(state=AgentState.DONE).spec(active_deadline_seconds=60).later(60),
        Want("ActiveDeadlineExceeded", intent=True, phase="Failed", says="longer than 60 s")),
    "a running job is looked at when its deadline comes": (
        running().spec(active_deadline_seconds=60).later(59.5), Want("AllRanksRunning", within=0.5)),
    "a deadline counts from the first start, not from the queue": (
        admitted().spec(active_deadline_seconds=60).later(600),
        Want("PlacingPods", ("create 0 on n0 in round 1", "create 1 on n1 in round 1"))),
    "an active deadline does not run while a job is suspended": (
        running().spec(active_deadline_seconds=60, suspend=True).written().later(60),
        Want("Suspending", ("delete the gang",), phase="Suspended")),
    # -- afterwards
    "then the agents are told to end": (complete(running()), Want(None, ("finish p1-0 p1-1 with 0",))),
    "an agent that cannot be reached has fifteen seconds": (
        complete(running()).silent(1), Want(None, ("finish p1-0 with 0",), within=2)),
    "and is then deleted": (
        complete(running()).silent(0).silent(1).later(16), Want(None, ("delete p1-0 within 5 s", "delete p1-1 within 5 s"))),
    "a complete job keeps its ended pods": (complete(running()).container(0, 0).container(1, 0), NOTHING),
    "the agents of a failed job are told to end with the root's code": (
        failed(running()), Want(None, ("finish p1-0 p1-1 with 3",))),
    "of a failed job the first failing pod and node rank 0 stay": (
        failed(running(3)).container(0, 3).container(1, 3).container(2, 3), Want(None, ("delete p1-2",))),
    "pods that cannot be told go at once, but for those with the evidence": (
        failed(running(3)).silent(0).silent(1).silent(2), Want(None, ("delete p1-2",))),
    "a pod that is on its way out is left alone": (
        failed(running(3)).container(0, 3).container(1, 3).container(2, 3).pod(2, deleting=True), NOTHING),
    # -- never again
    "a rank lost after success changes nothing": (complete(running()).gone(0).container(1, 0), NOTHING),
    "nor does one that fails after success": (complete(running()).container(0, 0).container(1, 1), NOTHING),
    "nor a node": (complete(running()).container(0, 0).container(1, 0).without_node("n1"), NOTHING),
    "nor suspending and resuming": (complete(running()).container(0, 0).container(1, 0).spec(suspend=True), NOTHING),
    "nor a changed spec": (complete(running()).container(0, 0).container(1, 0).spec(num_nodes=5), NOTHING),
    "nor an offer of nodes": (complete(running()).container(0, 0).container(1, 0).offered("n0", "n1"), NOTHING),
    "a pod that appears after the end is stopped": (
        complete(running()).container(0, 0).container(1, 0).plus(a_pod(0, round_=2, phase=PodPhase.PENDING, bound=False)).later(16),
        Want(None, ("delete p2-0 within 5 s",))),
    # -- deletion
    "a job without a ttl stays": (complete(running()).container(0, 0).container(1, 0).later(1e7), NOTHING),
    "a ttl is waited for": (
        complete(running()).container(0, 0).container(1, 0).spec(ttl_seconds_after_finished=60).later(59), NOTHING),
    "and then the job is deleted": (
        complete(running()).spec(ttl_seconds_after_finished=60).later(60), Want(None, ("delete the job",))),
    "a job that is being deleted loses its pods whatever it was doing": (
        running().metadata(deletion_timestamp=after(0)), Want(None, ("delete the gang",))),
    "at the barrier": (at_barrier().metadata(deletion_timestamp=after(0)), Want(None, ("delete the gang",))),
    "between two pods": (placed().gone(1).metadata(deletion_timestamp=after(0)), Want(None, ("delete the gang",))),
    "released": (released().metadata(deletion_timestamp=after(0)), Want(None, ("delete the gang",))),
    "while it waits in line there is nothing to delete": (
        fresh().offered("n0", "n1").metadata(deletion_timestamp=after(0)), NOTHING),
    "after its end": (complete(running()).metadata(deletion_timestamp=after(0)), Want(None, ("delete the gang",))),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CASES)
def test_endings(sentence: str) -> None:
    check(*CASES[sentence])


def test_the_object_that_is_gone_leaves_no_pods_and_creates_none() -> None:
    world = replace(running().world(), job=None)
    assert [type(action).__name__ for action in decide(world, after(0)).actions] == ["DeleteGang"]
    assert decide(replace(world, pods=()), after(0)).actions == ()
    # What cannot be read is not gone.
    unread = decide(replace(world, invalid="spec.numNodes: write a number"), after(0))
    assert unread.actions == () and "write a number" in unread.because


def test_a_failed_job_shows_the_last_lines_of_its_root() -> None:
    status = failed(running()).job.status
    found = status.condition(ConditionType.FAILED)
    assert found is not None and found.message.endswith("Traceback\nValueError: bad")
    assert status.incidents[-1].log_lines == ("Traceback", "ValueError: bad")
    assert status.incidents[-1].resolved_time == status.completion_time


def test_an_open_incident_is_closed_by_the_end() -> None:
    scene = running().incident(an_incident(round_=0)).steps(1).all(state=AgentState.DONE)
    assert scene.written().job.status.incidents[-1].resolved_time == after(0)

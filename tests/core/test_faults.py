"""What counts as a fault, which one is the root, and how long the evidence is waited for."""

from dataclasses import replace
from datetime import timedelta

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import IncidentClass
from rerail_operator.core.world import PodPhase, Progress

from .builders import Scene, after, an_agent, at_barrier, placed, released, running
from .told import last_words
from .wants import Want, check


def decided(scene: Scene) -> Scene:
    """Later, when no more evidence is waited for."""
    return scene if scene.plan().intent else scene.written().later(5)


def saved(scene: Scene) -> Scene:
    """Later, when ranks that were told to stop have had their grace."""
    return scene if scene.plan().intent else scene.written().later(120)


def incident(kind: IncidentClass, charged: bool, node_rank: int, **fields: object) -> dict[str, object]:
    known = {"class_": kind, "charged": charged, "node_rank": node_rank, **fields}
    return {f"incidents.-1.{name}": value for name, value in known.items()}


def restart(*facts: object, says: str = "", **fields: object) -> Want:
    """One incident, one restart, one round, in one guarded write."""
    kind, charged, node_rank = facts
    status = incident(kind, charged, node_rank, **fields)  # type: ignore[arg-type]
    counts = {"restarts.total": 1, "restarts.charged": int(bool(charged)), "nodes.ready": 0}
    return Want(
        "Restarting",
        intent=True,
        phase="Restarting",
        round=2,
        says=says,
        true=("Admitted",),
        within=0,
        status={**status, **counts},
    )


K = IncidentClass
TOLD = {"exit_code": 3, "rank": 2, "last_line": "bad", "lines": ["a", "bad"], "exception": "ValueError"}

ROOTS: dict[str, tuple[Scene, Want]] = {
    "an exit code is a process fault, charged": (
        decided(running().exits(1, code=1, exception="ValueError", lines=("Traceback", "ValueError: x"))),
        restart(
            K.PROCESS_FAULT,
            True,
            1,
            exit_code=1,
            exception="ValueError",
            pod="gpt-c0ffe-1-1",
            node="n1",
            log_lines=("Traceback", "ValueError: x"),
            fingerprint="ProcessFault/1/ValueError",
            round=1,
            number=1,
            says="rank 1 exited with code 1 on n1 (ValueError); ProcessFault, charged; round 2",
        ),
    ),
    "a signal that nobody ordered is a process fault with its name": (
        decided(running().exits(1, signal=9)),
        restart(K.PROCESS_FAULT, True, 1, signal="SIGKILL", exit_code=None, says="killed by signal 9"),
    ),
    "a program that declares the contract says what its code means": (
        decided(running().exits(0, code=82, contract=True)),
        restart(K.NUMERIC, True, 0, exit_code=82),
    ),
    "the same code of any other program is just a code": (
        decided(running().exits(0, code=82)),
        restart(K.PROCESS_FAULT, True, 0),
    ),
    "bad data": (decided(running().exits(0, code=83, contract=True)), restart(K.BAD_DATA, True, 0)),
    "a hang found by the program's own watchdog": (
        decided(running().exits(0, code=84, contract=True)),
        restart(K.HANG, True, 0),
    ),
    "a rendezvous that failed is free": (
        decided(running().exits(0, code=85, contract=True)),
        restart(K.RENDEZVOUS_FAULT, False, 0),
    ),
    "a program that wants to leave its node is free to, and the node is left out": (
        decided(running().exits(1, code=81, contract=True)),
        replace(restart(K.GPU_FAULT, False, 1), status={"excluded_nodes.0.name": "n1"}),
    ),
    "75 without an order is a failure": (
        decided(running().exits(0, code=75, contract=True)),
        restart(K.PROCESS_FAULT, True, 0),
    ),
    "75 after an order is free": (
        decided(running().exits(0, code=75, contract=True, ordered=True)),
        restart(K.PREEMPTION, False, 0),
    ),
    # -- who is root
    "the earliest exit is the root, the later one its victim": (
        decided(running().exits(0, code=1, at=0.5).exits(1, code=7, at=0.2)),
        restart(K.PROCESS_FAULT, True, 1, exit_code=7),
    ),
    "a code of the table comes before an earlier plain exit": (
        decided(running().exits(0, code=1, at=0.1).exits(1, code=82, at=0.4, contract=True)),
        restart(K.NUMERIC, True, 1),
    ),
    "a signal comes before a code of the table": (
        decided(running().exits(0, code=82, at=0.1, contract=True).exits(1, signal=11, at=0.4)),
        restart(K.PROCESS_FAULT, True, 1, signal="SIGSEGV"),
    ),
    "a lost container comes before a signal": (
        decided(running().exits(0, signal=6, at=0.1).container(1, 137, "OOMKilled")),
        restart(K.OUT_OF_MEMORY, True, 1),
    ),
    "an order to stop comes before a lost container": (
        saved(running(3).container(1, 137, "OOMKilled").pod(2, deleting=True)),
        restart(K.PREEMPTION, False, 2),
    ),
    "of two that are equal the lower node rank": (
        decided(running().exits(0, code=1, at=0.2).exits(1, code=1, at=0.2)),
        restart(K.PROCESS_FAULT, True, 0),
    ),
    # -- containers
    "a container killed for memory, agent and all": (
        decided(running().container(1, 137, "OOMKilled", message="step 3\nloading")),
        restart(
            K.OUT_OF_MEMORY, True, 1, exit_code=137, log_lines=("step 3", "loading"), says="out of memory"
        ),
    ),
    "a container that ended without a word": (
        decided(running().container(1, 2, "Error", message="sh: not found")),
        restart(K.CONTAINER_LOSS, True, 1, exit_code=2, says="without a word of its agent"),
    ),
    "a container whose agent left word tells the rank's own story": (
        decided(
            running().agent(1, state=AgentState.IDLE, round=0).container(1, 3, message=last_words(**TOLD))
        ),
        restart(
            K.PROCESS_FAULT, True, 1, exit_code=3, rank=2, exception="ValueError", log_lines=("a", "bad")
        ),
    ),
    "last words of an older round are not this round's story": (
        decided(
            running()
            .status(round=2, released_round=2)
            .agent(0, round=2)
            .agent(1, round=2)
            .container(1, 137, message=last_words(**TOLD))
        ),
        Want(
            "Restarting",
            intent=True,
            round=3,
            status=incident(K.CONTAINER_LOSS, True, 1, exit_code=137, log_lines=()),
        ),
    ),
    "a pod that failed with no container status": (
        decided(running().pod(1, phase=PodPhase.FAILED).agent(1, connected=False)),
        restart(K.CONTAINER_LOSS, True, 1),
    ),
    # -- pods and nodes
    "a pod that somebody deletes is free": (
        saved(running().pod(1, deleting=True)),
        restart(K.PREEMPTION, False, 1, says="it was deleted"),
    ),
    "a pod that is gone without a trace is free": (
        decided(running().gone(1)),
        restart(K.PREEMPTION, False, 1, says="deleted by force"),
    ),
    "a drain is free and its node is left alone for a while": (
        saved(running().pod(1, disruption="EvictionByEvictionAPI", deleting=True)),
        replace(
            restart(K.DRAIN, False, 1),
            status={"excluded_nodes.0.name": "n1", "excluded_nodes.0.until": after(240)},
        ),
    ),
    "a preemption by the scheduler is free": (
        saved(running().pod(1, disruption="PreemptionByScheduler")),
        restart(K.PREEMPTION, False, 1),
    ),
    "a node that is not ready and whose agent is silent is lost, and free": (
        decided(running().node("n1", ready=None).silent(1, since=-6)),
        restart(K.NODE_LOSS, False, 1, node="n1", start_time=after(-6), says="node n1 is not ready"),
    ),
    "a node that is gone from the cluster": (
        decided(running().without_node("n1").silent(1, since=-6)),
        restart(K.NODE_LOSS, False, 1, says="gone from the cluster"),
    ),
    "the victims of a lost node are not its cause": (
        decided(running().exits(0, code=1).node("n1", ready=False).silent(1, since=-7)),
        restart(K.NODE_LOSS, False, 1),
    ),
    "an agent that has been silent for long on a ready node": (
        decided(running().silent(1, since=-20)),
        restart(K.NETWORK, False, 1, says="silent for 20 s"),
    ),
    "an agent that never came back to a new leader": (
        decided(running().silent(1, forgotten=True).see(leading_since=after(-20))),
        restart(K.NETWORK, False, 1, says="silent for 20 s"),
    ),
    "processes that cannot be stopped": (
        decided(running().agent(1, state=AgentState.STUCK)),
        restart(K.CONTAINER_LOSS, True, 1, says="cannot be stopped"),
    ),
    "a node lost on the first way up: its pod's name is used, so a round is opened": (
        decided(placed().node("n1", ready=None)),
        Want("Restarting", intent=True, round=2, status=incident(K.NODE_LOSS, False, 1)),
    ),
    "a pod that dies on its first way up": (
        decided(placed().container(1, 2, "ContainerCannotRun")),
        Want("Restarting", intent=True, round=2, status=incident(K.CONTAINER_LOSS, True, 1)),
    ),
}


@pytest.mark.parametrize("sentence", ROOTS)
def test_the_root(sentence: str) -> None:
    check(*ROOTS[sentence])


def test_ending_with_zero_before_the_barrier_opened_is_no_success() -> None:
    scene = at_barrier().container(1, 0, "Completed", last_words(state="Idle"))
    check(decided(scene), Want("Restarting", intent=True, status=incident(K.CONTAINER_LOSS, True, 1)))


def test_the_whole_world_in_another_order_gives_the_same_plan() -> None:
    scene = running(4).exits(2, code=1).exits(1, code=1).container(3, 137, "OOMKilled").later(5)
    other = replace(scene, pods=scene.pods[::-1], agents=dict(reversed(scene.agents.items())))
    assert scene.plan() == other.plan()


def test_steps_told_with_the_exit_are_kept() -> None:
    scene = running().steps(37, checkpoint_step=30, loss=2.0).exits(1, code=1).later(2).written()
    status = scene.job.status
    assert (status.progress.step, status.ledger.highest_step, status.incidents[-1].progress_step) == (
        37,
        37,
        37,
    )
    assert status.last_checkpoint is not None and status.last_checkpoint.step == 30


def test_a_step_of_an_older_round_is_not_this_rounds() -> None:
    scene = released().status(round=2, released_round=2).agent(0, round=2, state=AgentState.RUNNING)
    old = an_agent(
        "p1-1", 1, after(0), state=AgentState.RUNNING, round=1, progress=Progress(step=99, at=after(0))
    )
    scene = replace(scene, agents={**scene.agents, "p1-1": old})
    plan = scene.later(timedelta(seconds=1).total_seconds()).plan()
    assert plan.status is not None and plan.status.progress.step is None

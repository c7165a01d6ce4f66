"""What counts as a fault, which one is the root, and how long the evidence is waited for."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import ConditionType, IncidentClass
from rerail_operator.core.world import PodPhase, Progress

from .builders import Scene, after, an_agent, at_barrier, placed, released, running
from .wants import Want, check


def decided(scene: Scene) -> Scene:
    """Later, when no more evidence is waited for."""
    return scene if scene.plan().intent else scene.written().later(5)


def saved(scene: Scene) -> Scene:
    """Later, when ranks that were told to stop have had their grace."""
    return scene if scene.plan().intent else scene.written().later(120)


def last_words(round_: int = 1, state: str = "Failed", **told: object) -> str:
    return json.dumps({"rerail": 1, "round": round_, "state": state, "exit": told or None})


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
        Want("Restarting", intent=True, round=2, status=incident(K.NODE_LOSS, False, 1))),
    "a pod that dies on its first way up": (
        decided(placed().container(1, 2, "ContainerCannotRun")),
        Want("Restarting", intent=True, round=2, status=incident(K.CONTAINER_LOSS, True, 1)),
    ),
}


@pytest.mark.parametrize("sentence", ROOTS)
def test_the_root(sentence: str) -> None:
    check(*ROOTS[sentence])


FAULT_SEEN = Want("FaultSeen", phase="Restarting", true=("Admitted",), round=1, status={"restarts.total": 0})
RUNS = Want("AllRanksRunning", phase="Running")
GOES = Want("Restarting", intent=True)

WAITS: dict[str, tuple[Scene, Want]] = {
    "after the first report the others have a second": (
        running().exits(0, code=1),
        replace(FAULT_SEEN, within=1.0),
    ),
    "the second is counted from the exit, not from the look": (
        running().exits(0, code=1, at=-0.7),
        replace(FAULT_SEEN, within=0.31),
    ),
    "then the root is named": (running().exits(0, code=1).written().later(1), GOES),
    "when every node has told everything, nobody waits": (running().exits(0, code=1).exits(1, code=1), GOES),
    "while ranks of a failed node still live, how they end is waited for": (
        running().exits(0, code=1, alive=1).exits(1, code=1),
        replace(FAULT_SEEN, within=1.0),
    ),
    "but for a second only": (running().exits(0, code=1, alive=1).exits(1, code=1).written().later(1), GOES),
    "a pod deleted is first seen now, and remembered": (
        running().silent(1).pod(1, deleting=True).written().later(0.9),
        replace(FAULT_SEEN, within=0.11),
    ),
    "and acted on after its second": (running().silent(1).pod(1, deleting=True).written().later(1), GOES),
    "an agent that went away may have been killed: the kubelet has five seconds to say": (
        running().exits(0, code=1).silent(1).written().later(4.9),
        replace(FAULT_SEEN, within=0.11),
    ),
    "and no more than five": (running().exits(0, code=1).silent(1).written().later(5), GOES),
    "a pod told to go has its grace to save, and the gang with it": (
        running().agent(1, state=AgentState.STOPPING).pod(1, deleting=True).written().later(119),
        replace(FAULT_SEEN, within=1.0),
    ),
    "no longer than its grace": (
        running().agent(1, state=AgentState.STOPPING).pod(1, deleting=True).written().later(120),
        GOES,
    ),
    "a second after it has saved the rest is called back": (
        running()
        .agent(1, state=AgentState.STOPPING)
        .pod(1, deleting=True)
        .written()
        .later(30)
        .exits(1, code=75, ordered=True, at=30)
        .agent(1, state=AgentState.STOPPED)
        .written()
        .later(1),
        GOES,
    ),
    "and not a moment earlier": (
        running()
        .agent(1, state=AgentState.STOPPING)
        .pod(1, deleting=True)
        .written()
        .later(30)
        .exits(1, code=75, ordered=True, at=30),
        replace(FAULT_SEEN, within=1.0),
    ),
    "at once when all have saved": (
        running()
        .agent(1, state=AgentState.STOPPING)
        .pod(1, deleting=True)
        .written()
        .later(30)
        .exits(1, code=75, ordered=True, at=30)
        .exits(0, code=75, at=30, contract=True),
        GOES,
    ),
    "nobody waits for a save that a dead peer makes impossible": (
        running(3)
        .agent(1, state=AgentState.STOPPING)
        .pod(1, deleting=True)
        .container(2, 137)
        .written()
        .later(5),
        GOES,
    ),
    "an order to stop needs no such confirmation": (
        running(3).pod(0, deleting=True).agent(0, ranks_alive=0).silent(1).written().later(1),
        GOES,
    ),
}

NO_FAULT: dict[str, tuple[Scene, Want]] = {
    "an agent that went away alone is waited for": (
        running().silent(1).later(19.9),
        Want("NodesStarting", phase="Starting", says="1 of 2"),
    ),
    "a silent agent is not lost while steps are made": (
        running().silent(1).later(60).steps(40, at=55),
        Want("NodesStarting", says="1 of 2"),
    ),
    "but when the steps end it is": (
        running().silent(1).later(60).steps(40, at=39),
        Want("Restarting", intent=True),
    ),
    "a not-ready node whose agent still talks is not lost": (running().node("n1", ready=None), RUNS),
    "nor one whose agent was heard five seconds ago": (
        running().node("n1", ready=None).silent(1).later(5),
        Want("NodesStarting", says="1 of 2"),
    ),
    "nor one whose agent may be on its way to a new leader": (
        running().node("n1", ready=None).silent(1, forgotten=True).see(leading_since=after(0)).later(19),
        RUNS,
    ),
    "a change of leaders is no news of the ranks: the job runs on": (
        running(3).silent(0, forgotten=True).silent(2, forgotten=True).see(leading_since=after(0)).later(5),
        replace(
            RUNS,
            says="2 of 3 agents are on their way",
            status={"nodes.summary": "3/3", "ledger.stage": "productive"},
        ),
    ),
    "but a job that was not known to run is not said to": (
        running(3)
        .silent(0, forgotten=True)
        .condition(ConditionType.RUNNING, False, "NodesStarting")
        .see(leading_since=after(0))
        .later(5),
        Want("NodesStarting", phase="Starting", says="2 of 3"),
    ),
    "nor is one whose agent came and went": (
        running().silent(1).see(leading_since=after(-1)).later(5),
        Want(
            "NodesStarting",
            says="1 of 2 nodes run their ranks; the agent of gpt-c0ffe-1-1 is not heard",
            status={"nodes.summary": "1/2", "ledger.stage": "detection"},
        ),
    ),
    "agents have twenty seconds to come to a new leader": (
        running().silent(1, since=-100).see(leading_since=after(0)).later(19),
        Want("NodesStarting", says="1 of 2"),
    ),
    "more than three silent at once are our own network": (
        running(5).silent(0).silent(1).silent(2).silent(3).later(60),
        Want("NodesStarting", says="1 of 5"),
    ),
    "three are not": (running(5).silent(0).silent(1).silent(2).later(60), Want("Restarting", intent=True)),
    "an exit of an older round is history": (
        at_barrier().agent(1, state=AgentState.FAILED, round=0).exits(1, code=1).agent(1, round=0),
        Want("AtBarrier", ("join p1-1 to round 1",)),
    ),
    "an ordered exit of an older round is history": (
        running().status(round=2).exits(1, code=75, ordered=True),
        Want("AtBarrier", ("join p1-0 p1-1 to round 2",)),
    ),
    "a node that is done may lose its pod": (
        running().agent(1, state=AgentState.DONE).container(1, 0, "Completed", last_words(state="Done")),
        RUNS,
    ),
    "done is known from last words alone": (
        running()
        .silent(1, forgotten=True)
        .pod(1, phase=PodPhase.RUNNING)
        .container(1, 0, "Completed", last_words(state="Done"))
        .silent(1, forgotten=True),
        RUNS,
    ),
    "a cordoned node keeps its pod": (running().node("n1", schedulable=False), RUNS),
}


@pytest.mark.parametrize("sentence", [*WAITS, *NO_FAULT])
def test_waiting_for_evidence(sentence: str) -> None:
    check(*{**WAITS, **NO_FAULT}[sentence])


def test_ending_with_zero_before_the_barrier_opened_is_no_success() -> None:
    scene = at_barrier().container(1, 0, "Completed", last_words(state="Idle"))
    check(decided(scene), Want("Restarting", intent=True, status=incident(K.CONTAINER_LOSS, True, 1)))


def test_a_fault_forgotten_by_a_new_leader_is_only_seen_later() -> None:
    scene = running().silent(1).pod(1, deleting=True).written().later(1)
    check(scene.see(memory={}), replace(FAULT_SEEN, within=1.0))


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

"""How long evidence is waited for, and what is no fault at all."""

from dataclasses import replace

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import ConditionType
from rerail_operator.core.world import PodPhase

from .builders import Scene, after, at_barrier, running
from .told import last_words
from .wants import Want, check

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
    "after a change of leaders, agents on their way may bring the root": (
        running(3).exits(0, code=1, at=-20).silent(1, forgotten=True).see(leading_since=after(-2)),
        replace(FAULT_SEEN, within=3.0),
    ),
    "for five seconds": (
        running(3).exits(0, code=1, at=-20).silent(1, forgotten=True).see(leading_since=after(-5)),
        GOES,
    ),
    "nobody waits once all have come": (
        running(3).exits(0, code=1, at=-20).see(leading_since=after(-2)),
        GOES,
    ),
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
        replace(RUNS, says="1 of 2 agents are not heard; steps are made all the same"),
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


def test_a_fault_forgotten_by_a_new_leader_is_only_seen_later() -> None:
    scene = running().silent(1).pod(1, deleting=True).written().later(1)
    check(scene.see(memory={}), replace(FAULT_SEEN, within=1.0))

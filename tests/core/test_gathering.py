"""From admitted to running: pods, barrier, release; and what a new round is opened for."""

from dataclasses import replace

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import CheckpointMark, ExcludedNode, IncidentClass, RestartCounts, SamePoint
from rerail_operator.core.world import Placement, PodPhase, Release

from .builders import (
    Scene,
    a_pod,
    a_release,
    admitted,
    after,
    an_incident,
    at_barrier,
    placed,
    released,
    running,
)
from .wants import Want, check


def between_rounds(scene: Scene, **incident: object) -> Scene:
    """A second round is open after a failure; whoever lives still belongs to the first."""
    return scene.incident(an_incident(**{"at": scene_time(scene), **incident})).status(
        round=2, restarts=RestartCounts(total=1)
    )


def scene_time(scene: Scene) -> float:
    return (scene.now - after(0)).total_seconds()


def joined(scene: Scene, round_: int = 2) -> Scene:
    return scene.all(state=AgentState.READY, round=round_, exit=None, release=None)


STUCK = {
    "unschedulable": "0/3 nodes are available: 1 Insufficient nvidia.com/gpu",
    "bound": False,
    "phase": PodPhase.PENDING,
}

CASES: dict[str, tuple[Scene, Want]] = {
    "all pods are created at once, each on its claimed node": (
        admitted(3),
        Want(
            "PlacingPods",
            ("create 0 on n0 in round 1", "create 1 on n1 in round 1", "create 2 on n2 in round 1"),
            phase="Starting",
            status={"ledger.stage": "placement"},
        ),
    ),
    "a place that is avoided by now is planned again elsewhere": (
        admitted().node("n0", struck="3 strikes in 7 days"),
        Want("PlacingPods", ("create 0 on n2 in round 1", "create 1 on n1 in round 1")),
    ),
    "an avoided node is better than no gang, and that is said": (
        admitted().node("n0", struck="3 strikes in 7 days").full("n2"),
        Want(
            "PlacingPods",
            ("create 0 on n0 in round 1", "create 1 on n1 in round 1"),
            says="creating 2 of 2 pods; for want of others with n0 (3 strikes in 7 days)",
        ),
    ),
    "nobody who runs on an avoided node is moved": (
        running().node("n0", struck="3 strikes in 7 days"),
        Want("AllRanksRunning", phase="Running"),
    ),
    "a claim that was forgotten is planned again": (
        admitted().see(claim=None).full("n0"),
        Want("PlacingPods", ("create 0 on n1 in round 1", "create 1 on n2 in round 1")),
    ),
    "only what is missing is created": (
        placed().gone(1),
        Want("PlacingPods", ("create 1 on n1 in round 1",)),
    ),
    "a name that somebody else has taken makes a new round with new names": (
        admitted().rejected("NameTaken", "exists", pod_name="gpt-c0ffe-1-0"),
        Want(
            "NameTaken",
            intent=True,
            round=2,
            says="gpt-c0ffe-1-0",
            status={"restarts.total": 0, "incidents": ()},
        ),
    ),
    "a name taken by our own pod is no trouble": (
        placed().rejected("NameTaken", "exists", pod_name="gpt-c0ffe-1-0"),
        Want("StartingPods"),
    ),
    "a quota hit at creation gives everything back": (
        placed().gone(1).rejected("CreatePod", "exceeded quota: gpus", retriable=True),
        Want("QuotaExceeded", intent=True, phase="Queued", says="exceeded quota: gpus", true=()),
    ),
    "pods that start are named while they are waited for": (
        placed(),
        Want("StartingPods", phase="Starting", says="gpt-c0ffe-1-0 is starting on n0", within=2),
    ),
    "an image that cannot be pulled is named": (
        placed().pod(1, waiting="ImagePullBackOff: example.com/x not found"),
        Want("ContainerWaiting", says="gpt-c0ffe-1-1: ImagePullBackOff: example.com/x not found"),
    ),
    "a pod that kube-scheduler has not bound yet is waited for": (
        placed().pod(1, bound=False),
        Want("PlacingPods", says="waits for kube-scheduler"),
    ),
    "a pod that does not get its node is given ten seconds": (
        placed().pod(1, **STUCK).written().later(9),
        Want("PlacingPods", says="1 Insufficient nvidia.com/gpu", round=1),
    ),
    "after that the node is left out and a round opened that counts for nothing": (
        placed().pod(1, **STUCK).written().later(10),
        Want(
            "PlacementLost",
            intent=True,
            round=2,
            says="gpt-c0ffe-1-1 does not get n1",
            status={"restarts.total": 0, "excluded_nodes.0.name": "n1", "excluded_nodes.0.until": after(310)},
        ),
    ),
    "then the pod that is stuck makes way for one elsewhere and the others stay": (
        placed().pod(1, **STUCK).written().later(10).written().pod(0, phase=PodPhase.RUNNING).agent(0),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n2 in round 2"), round=2),
    ),
    "time at which a pod is stuck goes on while another has no place": (
        placed(3).gone(2).full("n2").full("n3").pod(1, **STUCK).written().later(10),
        Want("PlacementLost", intent=True, round=2),
    ),
    "a container that runs and whose agent has not come is waited for": (
        placed().pod(0, phase=PodPhase.RUNNING).pod(1, phase=PodPhase.RUNNING),
        Want("WaitingForAgents", says="2 pods, first gpt-c0ffe-1-0: its agent is not connected"),
    ),
    "agents are called to the barrier": (
        placed().pod(0, phase=PodPhase.RUNNING).agent(0).pod(1, phase=PodPhase.RUNNING).agent(1),
        Want("AtBarrier", ("join p1-0 p1-1 to round 1",), says="0 of 2 nodes"),
    ),
    "one agent at the barrier waits for the other": (
        at_barrier().agent(1, state=AgentState.IDLE, round=0),
        Want("AtBarrier", ("join p1-1 to round 1",), says="1 of 2 nodes", phase="Starting"),
    ),
    "the release is written before any rank starts": (
        at_barrier(),
        Want(
            "Released",
            intent=True,
            phase="Starting",
            round=1,
            within=0,
            status={"released_round": 1, "start_time": after(0)},
        ),
    ),
    "then every agent is told to run, with rank 0's address and port": (
        released(),
        Want(
            "NodesStarting",
            ("run p1-0=0 p1-1=1 of round 1 at 10.0.0.0:20000",),
            phase="Starting",
            says="0 of 2",
        ),
    ),
    "an agent that missed the release gets it word for word": (
        running()
        .agent(1, state=AgentState.READY, release=None)
        .agent(
            0, release=a_release(0, 2, master_addr="10.9.9.9", master_port=31_000), address="10.0.0.7", port=5
        ),
        Want("NodesStarting", ("run p1-1=1 of round 1 at 10.9.9.9:31000",), says="1 of 2"),
    ),
    "no second release is made up while an agent that may hold the first is unheard": (
        released().silent(0, forgotten=True),
        Want("NodesStarting", says="0 of 2"),
    ),
    "nor while one of the others is": (
        released(3).silent(1, forgotten=True),
        Want("NodesStarting", says="0 of 3"),
    ),
    "never Running while one node is not": (
        running(3).agent(2, state=AgentState.READY, release=None),
        Want(
            "NodesStarting",
            ("run p1-2=2 of round 1 at 10.0.0.0:20000",),
            phase="Starting",
            true=("Admitted",),
            status={"nodes.ready": 2, "nodes.summary": "2/3"},
        ),
    ),
    "all ranks of all nodes run": (
        running(),
        Want(
            "AllRanksRunning",
            phase="Running",
            true=("Admitted", "Running"),
            status={"nodes.ready": 2, "nodes.desired": 2, "nodes.summary": "2/2"},
        ),
    ),
    "a node that is done already counts as running until all are": (
        running().agent(1, state=AgentState.DONE, ranks_alive=0),
        Want("AllRanksRunning", phase="Running", status={"nodes.ready": 2}),
    ),
    "two releases of one round open a new one that counts for nothing": (
        running().agent(1, release=a_release(1, 2, master_port=20_999)),
        Want(
            "ReleasesDiffer",
            intent=True,
            round=2,
            true=("Admitted",),
            status={"restarts.total": 0, "incidents": ()},
        ),
    ),
    "an operator that knows nothing of the frozen template touches no running gang": (
        running().see(template_frozen=False),
        Want("AllRanksRunning", phase="Running"),
    ),
    "a release begins at the last committed checkpoint": (
        released().status(last_checkpoint=CheckpointMark(step=150)),
        Want("NodesStarting", ("run p1-0=0 p1-1=1 of round 1 at 10.0.0.0:20000",)),
    ),
    # -- the second round
    "a new round calls the living to its barrier and lets them be": (
        between_rounds(running()),
        Want(
            "AtBarrier", ("join p1-0 p1-1 to round 2",), phase="Restarting", status={"ledger.stage": "stop"}
        ),
    ),
    "a rank that ends because it was called to the barrier is no new failure": (
        between_rounds(running())
        .exits(0, code=None, signal=9, ordered=True)
        .agent(0, state=AgentState.STOPPING),
        Want("AtBarrier", ("join p1-0 p1-1 to round 2",), round=2),
    ),
    "a pod that died is replaced where it was and its remains go": (
        between_rounds(running().container(1, 137)),
        Want(
            "PlacingPods",
            ("delete p1-1", "join p1-0 to round 2", "create 1 on n1 in round 2"),
            phase="Restarting",
        ),
    ),
    "a replacement does not wait for an old pod that hangs in Terminating": (
        between_rounds(running().pod(1, deleting=True).full("n1").silent(1)),
        Want("PlacingPods", ("join p1-0 to round 2", "create 1 on n2 in round 2")),
    ),
    "an old pod in Terminating holds up nobody at the barrier": (
        joined(between_rounds(running().pod(1, deleting=True).plus(a_pod(1, round_=2, node="n2")))),
        Want("Released", intent=True, status={"released_round": 2, "start_time": after(0)}),
    ),
    "a superseded pod that still lives goes before the barrier opens": (
        joined(between_rounds(running().plus(a_pod(1, round_=2, node="n2")))),
        Want("AtBarrier", ("delete p1-1",), says="superseded"),
    ),
    "a rank whose node is lost is moved; the others wait at the barrier": (
        between_rounds(running().node("n1", ready=None).silent(1, since=-50)),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n2 in round 2")),
    ),
    "a node lost while the gang gathers is part of the same interruption": (
        joined(between_rounds(running())).without_node("n0").silent(0, since=-50),
        Want(
            "PlacingPods", ("delete p1-0", "create 0 on n2 in round 2"), round=2, status={"restarts.total": 1}
        ),
    ),
    "a pod that cannot stop its ranks is replaced elsewhere": (
        between_rounds(running()).agent(1, state=AgentState.STUCK),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n2 in round 2"), round=2),
    ),
    "a node that a program asked to leave is left though its pod lives": (
        between_rounds(running()).status(excluded_nodes=(ExcludedNode(name="n1", until=after(100)),)),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n2 in round 2")),
    ),
    "a node that was left out for a while may serve again after it": (
        between_rounds(running().container(1, 1))
        .status(excluded_nodes=(ExcludedNode(name="n1", until=after(100)),))
        .later(100),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n1 in round 2")),
    ),
    "a rank with no room is waited for at the barrier": (
        between_rounds(running().node("n1", ready=None).silent(1, since=-50)).full("n2"),
        Want(
            "Unplaceable",
            ("delete p1-1", "join p1-0 to round 2"),
            phase="Restarting",
            says="needs 1 node",
            within=15,
        ),
    ),
    "a rank with no room until the deadline: everything is given back": (
        between_rounds(running().gone(1)).full("n1").full("n2").later(900),
        Want("GaveBack", intent=True, phase="Queued", true=(), says="1 of 2 node ranks have no pod, first 1"),
    ),
    "more silent agents than one network fault explains are all waited for": (
        between_rounds(running(5)).silent(0).silent(1).silent(2).silent(3).later(60),
        Want("WaitingForAgents", ("join p1-4 to round 2",), says="4 pods"),
    ),
    # -- back-off
    "the first failure of its kind restarts at once": (
        joined(between_rounds(running()).status(same_point=SamePoint(fingerprint="a", count=1))),
        Want("Released", intent=True),
    ),
    "the second of the same kind is held back for five seconds": (
        joined(between_rounds(running()).status(same_point=SamePoint(fingerprint="a", count=2))).later(4),
        Want("BackingOff", phase="Restarting", within=1, status={"ledger.stage": "decision"}),
    ),
    "and then it goes": (
        joined(between_rounds(running()).status(same_point=SamePoint(fingerprint="a", count=2))).later(5),
        Want("Released", intent=True),
    ),
    "back-off never grows beyond five minutes": (
        joined(between_rounds(running()).status(same_point=SamePoint(fingerprint="a", count=40))).later(300),
        Want("Released", intent=True),
    ),
    # -- deadlines
    "a first start that is late fails with what it waited for": (
        placed().pod(1, waiting="ImagePullBackOff: x").later(900),
        Want(
            "StartupDeadlineExceeded",
            intent=True,
            phase="Failed",
            says="ImagePullBackOff: x",
            true=("Admitted", "Failed"),
        ),
    ),
    "a first start that has no place gives back and stands in line again": (
        placed().gone(1).full("n1").full("n2").later(900),
        Want("GaveBack", intent=True, phase="Queued", true=()),
    ),
    "a later start that is late gives back": (
        between_rounds(running()).later(900),
        Want("GaveBack", intent=True, phase="Queued"),
    ),
    "a gang that was released in time is not late": (
        released().later(901),
        Want("NodesStarting", ("run p1-0=0 p1-1=1 of round 1 at 10.0.0.0:20000",)),
    ),
}


@pytest.mark.parametrize("sentence", CASES)
def test_gathering(sentence: str) -> None:
    check(*CASES[sentence])


def test_the_release_carries_the_committed_step_and_the_ranks_per_node() -> None:
    scene = released().status(last_checkpoint=CheckpointMark(step=150))
    (run,) = scene.plan().actions
    assert run.releases["p1-1"] == Release(1, 1, 2, 2, "10.0.0.0", 20_000, 150)


def test_delete_and_apply_again_never_meet() -> None:
    """The pods of the job of before carry its UID in their names and labels: they are not in this world."""
    before = admitted()
    again = before.metadata(uid="0ddba11-0000-4000-8000-000000000000")
    old = {action.name for action in before.plan().actions}
    new = {action.name for action in again.plan().actions}
    assert len(old) == len(new) == 2 and not old & new


def test_a_restart_keeps_its_claim_for_the_missing_rank_only() -> None:
    plan = between_rounds(running().container(1, 137)).plan()
    assert plan.placement == Placement({0: "n0", 1: "n1"})


def test_an_unplaceable_rank_is_no_new_incident() -> None:
    scene = between_rounds(
        running().node("n1", ready=None).silent(1, since=-50), class_=IncidentClass.NODE_LOSS
    ).full("n2")
    for _ in range(5):
        scene = scene.later(15).written()
    assert (scene.job.status.round, len(scene.job.status.incidents)) == (2, 1)


def test_after_a_loss_of_very_many_nodes_nobody_is_forgotten() -> None:
    """More nodes than the status can name as excluded: all their pods are replaced in one round."""
    scene = running(140)
    for rank in range(100):
        scene = replace(scene.node(f"n{rank}", ready=None), pods=scene.pods).silent(rank, since=-50)
    for spare in range(141, 250):
        scene = scene.node(f"n{spare}")
    scene = scene.later(1).written()
    if not scene.job.status.incidents:  # evidence was collected first
        scene = scene.later(5).written()
    assert (scene.job.status.round, len(scene.job.status.incidents)) == (2, 1)
    plan = scene.plan()
    assert not plan.intent
    assert sum(type(action).__name__ == "CreatePod" for action in plan.actions) == 100

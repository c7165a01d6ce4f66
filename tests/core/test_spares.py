"""Spares: kept beside a gang that runs, first in line for a lost node rank, first to go for another job."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_api.contract import AgentState
from rerail_api.status import ConditionType, ExcludedNode, IncidentClass, RestartCounts
from rerail_operator.core.gang import seats
from rerail_operator.core.plan import CreatePod, OrderRun, PromoteSpare
from rerail_operator.core.spares import ASK_AGAIN, CREATE_SPARE, LOOK_AGAIN, NO_ROOM
from rerail_operator.core.world import SPARE, Placement, Pod, PodPhase

from . import ground
from .builders import NOON, Scene, a_condition, a_pod, after, an_agent, an_incident, running
from .wants import Want, check


def a_spare(slot: int, *, node: str | None = None, round_: int = 1, **fields: object) -> Pod:
    known = {"node_rank": SPARE, **fields}
    return replace(a_pod(slot, round_=round_, node=node), **known)


def with_spare(
    scene: Scene, slot: int = 2, *, state: AgentState | None = AgentState.READY, **pod: object
) -> Scene:
    """A spare in that slot on node n<slot>, at the barrier of round 1 unless said otherwise."""
    made = a_spare(slot, **pod)
    scene = scene.plus(made)
    if state is None:
        return scene
    agent = an_agent(made.uid, slot, scene.now, state=state, round=1)
    return replace(scene, agents={**scene.agents, made.uid: agent})


def spare_agent(scene: Scene, uid: str = "p1-2", **fields: object) -> Scene:
    return replace(scene, agents={**scene.agents, uid: replace(scene.agents[uid], **fields)})


def spare_pod(scene: Scene, uid: str = "p1-2", **fields: object) -> Scene:
    return replace(scene, pods=tuple(replace(p, **fields) if p.uid == uid else p for p in scene.pods))


def repaired(scene: Scene, kind: IncidentClass = IncidentClass.NODE_LOSS) -> Scene:
    """Round 2 is open after a failure; what lives still belongs to round 1."""
    return scene.incident(an_incident(class_=kind)).status(round=2, restarts=RestartCounts(total=1))


def lost(scene: Scene, rank: int) -> Scene:
    """The node of that node rank is gone, and left out for a while."""
    node = scene.of(rank).node
    away = ExcludedNode(name=node, reason="lost", until=after(120))
    scene = scene.node(node, ready=None).silent(rank, since=-30)
    return scene.status(excluded_nodes=(*scene.job.status.excluded_nodes, away))


GANG = running(2, spares=1)
HELD = with_spare(GANG)
TWO = with_spare(with_spare(running(3, spares=2), 3), 4).node("n4")

CASES: dict[str, tuple[Scene, Want]] = {
    # -- made
    "a gang that runs gets its spare beside it": (
        GANG,
        Want("AllRanksRunning", ("create spare 2 on n2 in round 1",), status={"nodes.spares": 0, "nodes.ready": 2}),
    ),
    "a spare that runs is called to the barrier": (
        spare_agent(HELD, state=AgentState.IDLE, round=0),
        Want("AllRanksRunning", ("join p1-2 to round 1",)),
    ),
    "a spare at the barrier is counted, and in no other figure": (
        HELD,
        Want("AllRanksRunning", status={"nodes.spares": 1, "nodes.ready": 2, "nodes.summary": "2/2"}),
    ),
    "a spare that still starts is not counted": (
        with_spare(GANG, state=None, phase=PodPhase.PENDING),
        Want("AllRanksRunning", status={"nodes.spares": 0}),
    ),
    "no spare is made before the gang is released": (
        GANG.status(released_round=0).all(state=AgentState.IDLE, round=0),
        Want("AtBarrier", ("join p1-0 p1-1 to round 1",)),
    ),
    "no spare is made while something has failed": (
        GANG.exits(1, signal=9),
        Want("FaultSeen"),
    ),
    "no spare is made where there is no room, and the gang runs": (
        GANG.full("n2"),
        Want("AllRanksRunning", phase="Running"),
    ),
    "nodes are not searched in every pass for what they did not have": (
        GANG.full("n2").written().node("n3").later(LOOK_AGAIN.total_seconds() - 1),
        Want("AllRanksRunning"),
    ),
    "but again after a while": (
        GANG.full("n2").written().node("n3").later(LOOK_AGAIN.total_seconds()),
        Want("AllRanksRunning", ("create spare 2 on n3 in round 1",)),
    ),
    "as many spares are made as find room": (
        running(2, spares=5).node("n3"),
        Want("AllRanksRunning", ("create spare 2 on n2 in round 1", "create spare 3 on n3 in round 1")),
    ),
    "a spare never stands on a node of its own gang": (
        running(2, template=ground.a_template(gpus=0), spares=1).without_node("n2"),
        Want("AllRanksRunning"),
    ),
    "nor on one that the job stays away from": (
        GANG.status(excluded_nodes=(ExcludedNode(name="n2", reason="lost", until=after(9)),)),
        Want("AllRanksRunning"),
    ),
    "no spare is made while another job could start on what is left": (
        GANG.see(room_for_spares=False),
        Want("AllRanksRunning"),
    ),
    "a spare that the API server refused is tried again later, and the gang runs": (
        GANG.rejected(CREATE_SPARE, "exceeded quota: gpus", retriable=True, pod_name="gpt-c0ffe-1-2"),
        Want("AllRanksRunning", phase="Running"),
    ),
    "that is after a minute": (
        GANG.rejected(CREATE_SPARE, "exceeded quota", retriable=True).later(ASK_AGAIN.total_seconds()),
        Want("AllRanksRunning", ("create spare 2 on n2 in round 1",)),
    ),
    "the template is read back before a spare is made from it": (
        GANG.see(template_frozen=False),
        Want("AllRanksRunning", ("freeze the template",)),
    ),
    "a slot whose name of this round hangs in Terminating is not used again": (
        with_spare(GANG, deleting=True).node("n3"),
        Want("AllRanksRunning"),
    ),
    # -- let go
    "spares go when fewer are asked for": (
        HELD.spec(spares=0),
        Want("AllRanksRunning", ("delete p1-2",)),
    ),
    "those that are ready are kept": (
        with_spare(HELD, 3, state=None, phase=PodPhase.PENDING).node("n3"),
        Want("AllRanksRunning", ("delete p1-3",)),
    ),
    "a spare makes room for another job": (
        HELD.see(called_in=frozenset({"p1-2"}), room_for_spares=False),
        Want("AllRanksRunning", ("delete p1-2",)),
    ),
    "a spare on a lost node goes at once, for nobody would confirm its end": (
        spare_agent(HELD.node("n2", ready=None), connected=False),
        Want("AllRanksRunning", ("delete p1-2 within 0 s",)),
    ),
    "a spare that is drained goes": (
        spare_pod(HELD, disruption="EvictionByEvictionAPI"),
        Want("AllRanksRunning", ("delete p1-2",), status={"incidents": ()}),
    ),
    "a spare that kube-scheduler finds no room for goes": (
        with_spare(GANG, state=None, phase=PodPhase.PENDING, bound=False, unschedulable="Insufficient gpu"),
        Want("AllRanksRunning", ("delete p1-2",)),
    ),
    "a spare that has ended keeps its slot for a minute": (
        spare_pod(HELD, phase=PodPhase.FAILED).node("n3").written().later(59),
        Want("AllRanksRunning", status={"nodes.spares": 0}),
    ),
    "then it goes and another is made": (
        spare_pod(HELD, phase=PodPhase.FAILED).node("n3").written().later(60),
        Want("AllRanksRunning", ("delete p1-2",)),
    ),
    "a spare that fails is no fault of the gang": (
        spare_agent(HELD, state=AgentState.STUCK),
        Want("AllRanksRunning", ("delete p1-2",), status={"incidents": (), "round": 1}),
    ),
    "a suspended job keeps no spare": (
        HELD.spec(suspend=True).condition(ConditionType.ADMITTED, False, "Suspended")
        .condition(ConditionType.SUSPENDED, False, "Suspending"),
        Want("Suspending", ("delete the gang",)),
    ),
    "a finished job keeps no spare": (
        HELD.status(conditions=(a_condition(ConditionType.COMPLETE, True, "Completed"),), completion_time=NOON),
        Want(None, ("delete p1-2", "finish p1-0 p1-1 with 0")),
    ),
    # -- promoted
    "a spare takes the node rank of a lost node, and no pod is created": (
        lost(repaired(HELD), 1),
        Want(
            "PlacingPods",
            ("delete p1-1", "join p1-0 to round 2", "promote p1-2 to 1 in round 2", "join p1-2 to round 2"),
            says="1 node rank goes to a spare",
        ),
    ),
    "also that of node rank 0": (
        lost(repaired(HELD), 0),
        Want(
            "PlacingPods",
            ("delete p1-0", "join p1-1 to round 2", "promote p1-2 to 0 in round 2", "join p1-2 to round 2"),
        ),
    ),
    "also before the template is read back": (
        lost(repaired(HELD), 1).see(template_frozen=False),
        Want(
            "PlacingPods",
            ("delete p1-1", "join p1-0 to round 2", "promote p1-2 to 1 in round 2", "join p1-2 to round 2"),
        ),
    ),
    "a container that died on a healthy node is replaced by a spare too": (
        repaired(HELD, IncidentClass.OUT_OF_MEMORY).container(1, 137, "OOMKilled"),
        Want(
            "PlacingPods",
            ("delete p1-1", "join p1-0 to round 2", "promote p1-2 to 1 in round 2", "join p1-2 to round 2"),
        ),
    ),
    "without a ready spare by a new pod on its node": (
        spare_agent(repaired(HELD).container(1, 137), connected=False),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n1 in round 2")),
    ),
    "several are replaced at once": (
        lost(lost(repaired(TWO), 0), 2),
        Want(
            "PlacingPods",
            (
                "delete p1-0",
                "delete p1-2",
                "join p1-1 to round 2",
                "promote p1-3 to 0 in round 2",
                "promote p1-4 to 2 in round 2",
                "join p1-3 p1-4 to round 2",
            ),
            says="2 node ranks go to spares",
        ),
    ),
    "one spare for two: it goes where a node was lost, the other gets a new pod at home": (
        lost(repaired(HELD).container(0, 137), 1).node("n3"),
        Want(
            "PlacingPods",
            (
                "delete p1-0",
                "delete p1-1",
                "promote p1-2 to 1 in round 2",
                "create 0 on n0 in round 2",
                "join p1-2 to round 2",
            ),
            says="creating 1 of 2 pods; 1 node rank goes to a spare",
        ),
    ),
    "a spare whose node is left out takes nothing and goes": (
        lost(repaired(HELD), 1)
        .node("n3")
        .status(
            excluded_nodes=(
                ExcludedNode(name="n1", reason="lost", until=after(99)),
                ExcludedNode(name="n2", reason="lost", until=after(99)),
            )
        ),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n3 in round 2", "delete p1-2")),
    ),
    "a spare that still starts waits while there is room elsewhere": (
        lost(repaired(with_spare(GANG, state=None, phase=PodPhase.PENDING)), 1).node("n3"),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 on n3 in round 2")),
    ),
    "and serves where there is none": (
        lost(repaired(with_spare(GANG, state=None, phase=PodPhase.PENDING)), 1),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "promote p1-2 to 1 in round 2")),
    ),
    "without spare and room the others wait": (
        lost(repaired(GANG.full("n2")), 1),
        Want("Unplaceable", ("delete p1-1", "join p1-0 to round 2")),
    ),
    "a new pod takes another slot where a spare has the number of its node rank": (
        lost(repaired(spare_agent(with_spare(GANG, 1, node="n2", round_=7), "p7-1", connected=False)), 1).node("n3"),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 2", "create 1 as slot 2 on n3 in round 2")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_spares(case: tuple[Scene, Want]) -> None:
    check(*case)


def promoted(scene: Scene, rank: int, uid: str = "p1-2", round_: int = 2) -> Scene:
    """The label patch has been made, and the pod that it replaces is on its way out."""
    scene = scene.pod(rank, deleting=True)
    return spare_pod(scene, uid, node_rank=rank, since_round=round_)


def at_barrier_of_two(scene: Scene) -> Scene:
    agents = {
        uid: replace(a, state=AgentState.READY, round=2, exit=None, release=None)
        for uid, a in scene.agents.items()
        if a.connected
    }
    return replace(scene, agents={**scene.agents, **agents})


def test_the_barrier_opens_with_the_spare_in_its_new_place() -> None:
    scene = at_barrier_of_two(promoted(lost(repaired(HELD), 1), 1))
    check(scene, Want("Released", intent=True, status={"released_round": 2}))
    told = scene.written().plan().actions
    assert [
        (uid, r.node_rank) for a in told if isinstance(a, OrderRun) for uid, r in sorted(a.releases.items())
    ] == [
        ("p1-0", 0),
        ("p1-2", 1),
    ]


def test_a_spare_in_the_place_of_node_rank_0_is_the_master() -> None:
    scene = at_barrier_of_two(promoted(lost(repaired(HELD), 0), 0)).written()
    run = next(a for a in scene.plan().actions if isinstance(a, OrderRun))
    assert {(r.master_addr, r.master_port) for r in run.releases.values()} == {("10.0.0.2", 20_002)}


def test_the_barrier_waits_until_the_replaced_pod_is_on_its_way_out() -> None:
    scene = at_barrier_of_two(promoted(lost(repaired(HELD), 1), 1))
    scene = replace(scene, pods=tuple(replace(p, deleting=False) for p in scene.pods))
    check(scene, Want("AtBarrier", ("delete p1-1",), says="a superseded pod has not gone yet"))


def test_a_promoted_spare_that_dies_before_the_release_is_an_incident_of_its_own() -> None:
    scene = promoted(lost(repaired(HELD), 1), 1)
    scene = spare_pod(scene, phase=PodPhase.FAILED)
    check(scene, Want("FaultSeen"))
    check(scene.written().later(10), Want("Restarting", intent=True, round=3))


def test_what_a_spare_does_is_told_once() -> None:
    plan = lost(repaired(HELD), 1).plan()
    assert [(n.reason, n.message) for n in plan.notes] == [
        ("SpareTakesRank", "spare gpt-c0ffe-1-2 on n2 takes node rank 1 in place of gpt-c0ffe-1-1 on n1")
    ]
    gives = HELD.see(called_in=frozenset({"p1-2"}))
    assert [n.message for n in gives.plan().notes] == [
        "spare gpt-c0ffe-1-2 on n2: another job needs its node"
    ]
    assert gives.written().plan().notes == ()


def test_a_claim_for_a_spare_lasts_until_its_pod_is_seen() -> None:
    assert GANG.plan().placement == Placement({0: "n0", 1: "n1", 2: "n2"})
    seen = with_spare(GANG.written(), state=None, phase=PodPhase.PENDING)
    assert seen.plan().placement == Placement({0: "n0", 1: "n1"})
    assert seen.written().plan().placement is None


def test_a_memory_of_no_room_does_not_outlive_its_time() -> None:
    scene = GANG.full("n2").written()
    assert NO_ROOM in scene.plan().memory
    assert NO_ROOM not in HELD.see(memory={NO_ROOM: NOON}).later(60).plan().memory


@given(
    losses=st.lists(st.integers(0, 3), unique=True, max_size=4),
    ready=st.lists(st.booleans(), max_size=3),
    room_left=st.integers(0, 2),
)
def test_a_swap_moves_nobody_doubles_nobody_and_lets_no_spare_into_a_rendezvous(
    losses: list[int], ready: list[bool], room_left: int
) -> None:
    scene = repaired(running(4, spares=len(ready)))
    for index in range(room_left):
        scene = scene.node(f"m{index}")
    scene = scene.full("n4")
    for index, is_ready in enumerate(ready):
        slot = 4 + index
        scene = with_spare(scene, slot, node=f"s{slot}").node(f"s{slot}", free=dict.fromkeys(ground.ROOM, 0))
        scene = scene if is_ready else spare_agent(scene, f"p1-{slot}", connected=False)
    for rank in losses:
        scene = lost(scene, rank)
    before = {pod.uid: pod.node_rank for pod in scene.pods if not pod.spare}
    actions = scene.plan().actions
    taken = [(a.node_rank, a.uid) for a in actions if isinstance(a, PromoteSpare)]
    made = [a.node_rank for a in actions if isinstance(a, CreatePod) and a.node_rank != SPARE]
    filled = sorted([rank for rank, _ in taken] + made)
    assert filled == sorted(set(filled)) and set(filled) <= set(losses)
    assert len({uid for _, uid in taken}) == len(taken) and not {uid for _, uid in taken} & before.keys()
    assert len(taken) >= min(len(losses), sum(ready)), "a spare stood ready and was not taken"
    for rank, uid in taken:
        scene = spare_pod(scene, uid, node_rank=rank, since_round=2)
    after_swap = seats(scene.world(), 4)
    for rank in set(range(4)) - set(losses):
        assert after_swap[rank].pod is not None and before[after_swap[rank].pod.uid] == rank
    assert not any(isinstance(a, OrderRun) for a in actions)

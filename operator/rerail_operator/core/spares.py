"""Spares: pods that hold a node and wait at the barrier without a node rank.

They are kept best effort, beside a gang that is complete and never at its cost; they are first in line for a
node rank that has lost its pod, and the first to go when another job needs their room.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from rerail_api.contract import AgentState
from rerail_api.status import ConditionType
from rerail_api.v1alpha1 import TrainingJob

from .devices import said_against
from .gang import Seat, all_bound
from .names import pod_name
from .outcome import Outcome
from .placement import HELD, gang_request, spare_places
from .plan import Action, CreatePod, DeletePod, FreezeTemplate, Note, OrderJoin, PromoteSpare
from .queueing import CREATE_SPARE
from .reasons import Reason
from .waiting import avoided
from .world import SPARE, Placement, Pod, PodPhase, World

ENDED_PATIENCE = timedelta(seconds=60)
"""How long an ended spare keeps its slot: one that cannot live is not made anew in every pass."""
LOOK_AGAIN = timedelta(seconds=15)
"""How soon nodes are looked at again after there was no room for a spare."""
ASK_AGAIN = timedelta(seconds=60)
"""How soon a spare is tried again that the API server refused."""
NO_ROOM = "spares/no-room"
RUNS = frozenset({Reason.ALL_RANKS_RUNNING, Reason.NODES_STARTING})


@dataclass(frozen=True, slots=True)
class Care:
    """What is to be done about spares, and what the next pass is to know of it."""

    actions: tuple[Action, ...] = ()
    notes: tuple[Note, ...] = ()
    memory: Mapping[str, datetime] = field(default_factory=dict)


def ready_spares(world: World, job: TrainingJob, now: datetime) -> tuple[Pod, ...]:
    """Spares that could take a node rank this moment: on a good node, their agent here and at leisure."""
    return tuple(pod for pod in _fit(world, job, now) if _stands_ready(world, pod))


def promotions(
    world: World, job: TrainingJob, ranks: Iterable[int], now: datetime, *, ready: bool
) -> dict[int, Pod]:
    """Which spare takes which of `ranks`, first come first served: the ready ones, or those that still start.

    A spare that starts is no nearer to the barrier than a pod made now: it serves where there is no room for
    one, because it holds a node.
    """
    able = (pod for pod in _fit(world, job, now) if _stands_ready(world, pod) is ready)
    return dict(zip(ranks, (pod for pod in able if ready or not pod.unschedulable), strict=False))


def promote(chosen: Mapping[int, Pod], round_: int) -> tuple[PromoteSpare, ...]:
    """The label patches by which these spares take their node ranks."""
    return tuple(
        PromoteSpare(pod.name, pod.uid, pod.resource_version, rank, round_)
        for rank, pod in sorted(chosen.items())
    )


def tend(world: World, job: TrainingJob, taken: tuple[Seat, ...], outcome: Outcome, now: datetime) -> Outcome:
    """The outcome with what the job's spares need: calls to the barrier, deletions, new ones."""
    if outcome.intent or job.spec.suspend or not job.status.is_true(ConditionType.ADMITTED):
        return outcome
    if not job.spec.spares and not any(pod.spare for pod in world.pods):
        return outcome
    taken_on = {action.uid for action in outcome.actions if isinstance(action, PromoteSpare)}
    dismissed = _dismissed(world, job, taken_on, now)
    gone = {action.uid for action in dismissed.actions if isinstance(action, DeletePod)}
    made = _made(world, job, gone, now) if _may_grow(world, job, taken, outcome, now) else Care()
    remembered = world.memory.get(NO_ROOM)
    waits = {NO_ROOM: remembered} if remembered is not None and now - remembered < LOOK_AGAIN else {}
    return replace(
        outcome,
        actions=(*outcome.actions, *dismissed.actions, *_joins(world, job, gone), *made.actions),
        notes=(*outcome.notes, *dismissed.notes),
        memory={**outcome.memory, **waits, **dismissed.memory, **made.memory},
        placement=_claim(world, job, outcome, made),
    )


def _fit(world: World, job: TrainingJob, now: datetime) -> tuple[Pod, ...]:
    """Living spares on nodes that are well and not avoided by this job, by slot; on struck nodes last."""
    away = avoided(job, now)
    return tuple(
        sorted(
            (p for p in world.pods if p.spare and p.alive and _well_placed(world, p, away)),
            key=lambda pod: (_is_struck(world, pod), pod.slot, pod.name),
        )
    )


def _is_struck(world: World, pod: Pod) -> bool:
    node = world.nodes.get(pod.node)
    return node is not None and bool(node.struck)


def _well_placed(world: World, pod: Pod, away: Mapping[str, str]) -> bool:
    node = world.nodes.get(pod.node)
    if node is None or node.ready is not True or pod.node in away:
        return False
    return not pod.disruption and not said_against(world.nodes, pod, pod.node)


def _stands_ready(world: World, pod: Pod) -> bool:
    agent = world.agents.get(pod.uid)
    return (
        pod.phase is PodPhase.RUNNING
        and agent is not None
        and agent.connected
        and agent.state in (AgentState.IDLE, AgentState.READY)
    )


# -- letting go


def _dismissed(world: World, job: TrainingJob, taken_on: set[str], now: datetime) -> Care:
    """Spares that are of no use, too many, or in the way of another job."""
    away = avoided(job, now)
    actions: list[Action] = []
    notes: list[Note] = []
    memory: dict[str, datetime] = {}
    kept: list[Pod] = []
    for pod in sorted(world.pods, key=lambda p: (not _stands_ready(world, p), p.slot, p.name)):
        if not pod.spare or pod.deleting or pod.uid in taken_on:
            continue
        key = f"spare/{pod.uid}"
        first = world.memory.get(key)
        why = _no_use(world, pod, away, now - (first or now))
        if not why and pod.uid in world.called_in:
            why = "another job needs its node"
            if first is None:
                notes.append(Note(Reason.SPARE_GIVEN_UP, f"spare {pod.name} on {pod.node}: {why}"))
        if not why and len(kept) >= job.spec.spares:
            why = f"spec.spares is {job.spec.spares}"
        if why or pod.ended:
            memory[key] = first or now
        if why:
            actions.append(DeletePod(pod.name, pod.uid, _grace(world, pod), why))
        else:
            kept.append(pod)
    return Care(tuple(actions), tuple(notes), memory)


def _no_use(world: World, pod: Pod, away: Mapping[str, str], ended_for: timedelta) -> str:
    """Why a spare cannot serve and never will; "" while it can."""
    agent = world.agents.get(pod.uid)
    if pod.ended:
        return "it has ended" if ended_for >= ENDED_PATIENCE else ""
    if pod.node in away:
        return f"its node is left out: {away[pod.node]}"
    if _lost(world, pod):
        return "its node is lost"
    if pod.disruption or pod.unschedulable:
        return pod.disruption or pod.unschedulable
    if against := said_against(world.nodes, pod, pod.node):
        return against
    return "its agent is stuck" if agent is not None and agent.state is AgentState.STUCK else ""


def _lost(world: World, pod: Pod) -> bool:
    node, agent = world.nodes.get(pod.node), world.agents.get(pod.uid)
    heard = agent is not None and agent.connected
    return pod.bound and not heard and (node is None or node.ready is not True)


def _grace(world: World, pod: Pod) -> int | None:
    # Nobody would confirm on a lost node, and the slot would be blocked. A spare has never run anything.
    return 0 if _lost(world, pod) else None


def _joins(world: World, job: TrainingJob, gone: set[str]) -> tuple[Action, ...]:
    """Spares stand at the barrier of every round, so that whoever is taken is there already."""
    late = sorted(
        pod.uid
        for pod in world.pods
        if pod.spare
        and pod.alive
        and (agent := world.agents.get(pod.uid)) is not None
        and agent.connected
        and agent.round < job.status.round
        and pod.uid not in gone
    )
    return (OrderJoin(tuple(late), job.status.round),) if late else ()


# -- growing


def _may_grow(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], outcome: Outcome, now: datetime
) -> bool:
    """Only beside a gang that is complete and released, and while nobody waits for the room."""
    refused = any(r.action == CREATE_SPARE and now < r.at + ASK_AGAIN for r in world.rejections)
    no_room = world.memory.get(NO_ROOM)
    return (
        outcome.reason in RUNS
        and job.status.released_round == job.status.round
        and all_bound(taken)
        and world.room_for_spares
        and not refused
        and (no_room is None or now - no_room >= LOOK_AGAIN)
    )


def _made(world: World, job: TrainingJob, gone: set[str], now: datetime) -> Care:
    """New spares, as many as are missing and find room."""
    there = [p for p in world.pods if p.spare and not p.deleting and p.uid not in gone]
    missing = job.spec.spares - len(there)
    slots = _free_slots(world, job)[: max(0, missing)]
    if not slots:
        return Care()
    held = dict.fromkeys((pod.node for pod in world.pods if not pod.ended), HELD)
    away = avoided(job, now) | held
    places = spare_places(gang_request(job.spec.template, len(slots), away), world.nodes, len(slots))
    memory = {NO_ROOM: now} if len(places) < len(slots) else {}
    if places and not world.template_frozen:
        revision, shape = job.status.template_revision or "", job.status.template_hash or ""
        return Care((FreezeTemplate(revision, shape),))
    name, uid, round_ = job.metadata.name, job.metadata.uid, job.status.round
    creates = tuple(
        CreatePod(pod_name(name, uid, round_, slot), node, SPARE, slot, round_)
        for slot, node in zip(slots, places, strict=False)
    )
    return Care(creates, memory=memory)


def _free_slots(world: World, job: TrainingJob) -> list[int]:
    """Slots that nobody has and whose name in this round is free; those beyond the node ranks first."""
    used = {
        pod.slot
        for pod in world.pods
        if pod.alive or (pod.spare and not pod.deleting) or pod.birth_round == job.status.round
    }
    size, spares = job.spec.num_nodes, job.spec.spares
    return [slot for slot in (*range(size, size + spares), *range(size)) if slot not in used]


def _claim(world: World, job: TrainingJob, outcome: Outcome, made: Care) -> Placement | None:
    """The gang's claim and that of spares being made; those made before are pods by now, or gone."""
    claimed = outcome.placement or world.claim
    if claimed is None:
        return outcome.placement
    gang = {rank: node for rank, node in claimed.nodes.items() if rank < job.spec.num_nodes}
    new = {action.slot: action.node for action in made.actions if isinstance(action, CreatePod)}
    after = Placement({**gang, **new})
    return outcome.placement if after == world.claim else after

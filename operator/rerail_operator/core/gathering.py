"""From admitted to a full set of pods: template, pods, places. Each look does what is missing."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count

from rerail_api.status import ExcludedNode, Stage
from rerail_api.v1alpha1 import TrainingJob

from .barrier import assemble
from .evidence import finished_with_zero
from .gang import Seat
from .ledger import gathering_stage
from .names import pod_name
from .outcome import Outcome
from .placement import HELD, gang_request, place_missing, taken_all_the_same
from .plan import CreatePod, FreezeTemplate, Note
from .queueing import NAME_TAKEN, give_back
from .reasons import Reason
from .silence import is_container_gone
from .spares import promote, promotions
from .waiting import (
    avoided,
    excluding,
    joins,
    new_round,
    removals,
    starting,
    startup_time_left,
    stuck_memory,
)
from .world import Placement, Pod, Refusal, World

UNSCHEDULABLE_PATIENCE = timedelta(seconds=10)
"""How long a pinned pod may stay unschedulable before its node is planned again."""
RETRY_PLACE = timedelta(seconds=15)
KEEP_AWAY = timedelta(minutes=5)
SPARES_NAMED = 16
"""How many spares of one swap get an event of their own."""


def gather(world: World, job: TrainingJob, taken: tuple[Seat, ...], now: datetime) -> Outcome:
    """One look at a gang that holds its nodes and has no fault."""
    taken_name = _name_taken(world, job, taken)
    if taken_name is not None:
        return new_round(job, Reason.NAME_TAKEN, f"a pod named {taken_name} exists and is not ours", {})
    refused = next((r for r in world.rejections if r.action == "CreatePod"), None)
    if refused is not None:
        reason = Reason.QUOTA_EXCEEDED if refused.retriable else Reason.TEMPLATE_REJECTED
        return give_back(reason, f"the API server refuses a pod of the gang: {refused.message}")
    lost = _placement_lost(world, job, taken, now)
    if lost is not None:
        return lost
    missing = tuple(s.node_rank for s in taken if not s.filled and not _is_through(job, s))
    if not missing:
        return assemble(world, job, taken, now)
    return replace(_fill(world, job, taken, missing, now), memory=stuck_memory(world, taken, now))


def _is_through(job: TrainingJob, seat: Seat) -> bool:
    """Whether this node's part in the released round is done: its pod may end, none takes its place."""
    round_ = job.status.round
    return job.status.released_round == round_ and finished_with_zero(seat, round_)


def _freeze(job: TrainingJob) -> Outcome:
    revision, shape = job.status.template_revision or "", job.status.template_hash or ""
    return starting(
        job,
        Reason.PLACING_PODS,
        "the template is being frozen",
        Stage.PLACEMENT,
        actions=(FreezeTemplate(revision, shape),),
        because="pods come from a frozen template only",
    )


def _name_taken(world: World, job: TrainingJob, taken: tuple[Seat, ...]) -> str | None:
    ours = {pod.name for pod in world.pods}
    for rejection in world.rejections:
        if rejection.action == NAME_TAKEN and rejection.pod_name not in ours:
            return rejection.pod_name
    return None


def _placement_lost(world: World, job: TrainingJob, taken: tuple[Seat, ...], now: datetime) -> Outcome | None:
    """Pods whose planned node was taken by somebody else: leave those nodes out and plan again."""
    stuck = [
        seat.pod
        for seat in taken
        if seat.pod is not None and seat.filled and not seat.pod.bound and seat.pod.unschedulable
    ]
    overdue = [
        pod for pod in stuck if now - world.memory.get(f"stuck/{pod.uid}", now) >= UNSCHEDULABLE_PATIENCE
    ]
    if not overdue:
        return None
    first = overdue[0]
    message = f"pod {first.name} does not get {first.node}: {first.unschedulable}"
    away = [ExcludedNode(name=p.node, reason=p.unschedulable, until=now + KEEP_AWAY) for p in overdue]
    return new_round(job, Reason.PLACEMENT_LOST, message, {"excluded_nodes": excluding(job, away, now)})


def _fill(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], missing: tuple[int, ...], now: datetime
) -> Outcome:
    """Give every node rank without a pod one: a spare that stands ready, else a new pod on its claimed or a
    newly planned node, else, where no node has room, a spare that is still starting."""
    round_ = job.status.round
    tidy = (*removals(world, taken, round_), *joins(taken, round_))
    chosen = promotions(world, job, _strangers_first(world, job, taken, missing, now), now, ready=True)
    plan = _where(world, job, taken, _without(missing, chosen), now)
    if isinstance(plan, Refusal) and (
        late := promotions(world, job, _without(missing, chosen), now, ready=False)
    ):
        chosen |= late
        plan = _where(world, job, taken, _without(missing, chosen), now)
    rest = _without(missing, chosen)
    tidy, notes = (*tidy, *promote(chosen, round_)), _told(taken, chosen)
    if isinstance(plan, Refusal):
        waits = _waits_for_room(job, plan, _going(world, taken, avoided(job, now)), now)
        return replace(waits, actions=tidy, notes=notes)
    if rest and not world.template_frozen:
        return replace(_freeze(job), actions=(*tidy, *_freeze(job).actions), notes=notes)
    name, uid, slots = job.metadata.name, job.metadata.uid, _slots(world, taken, rest)
    creates = tuple(
        CreatePod(pod_name(name, uid, round_, slots[rank]), plan.nodes[rank], rank, slots[rank], round_)
        for rank in rest
    )
    outcome = starting(
        job,
        Reason.PLACING_PODS,
        _in_words(job, creates, chosen) + taken_all_the_same(world.nodes, [pod.node for pod in creates]),
        gathering_stage(taken, round_),
        actions=(*tidy, *creates),
        placement=Placement({**plan.nodes, **{rank: pod.node for rank, pod in chosen.items()}}),
        because="node ranks without a pod get one",
    )
    return replace(outcome, notes=notes)


def _waits_for_room(job: TrainingJob, refusal: Refusal, going: str, now: datetime) -> Outcome:
    return starting(
        job,
        Reason.PLACING_PODS if going else Reason.UNPLACEABLE,
        going or refusal.message,
        Stage.PLACEMENT,
        requeue_after=min(startup_time_left(job, now), RETRY_PLACE),
        because="a node rank must move and there is no room: the others wait at the barrier",
    )


def _going(world: World, taken: tuple[Seat, ...], away: Mapping[str, str]) -> str:
    """Which pods of the gang are about to leave good nodes, and make room there; "" when none is."""
    kept = {seat.pod.uid for seat in taken if seat.filled and seat.pod is not None}
    going = [
        pod.name
        for pod in world.pods
        if pod.uid not in kept
        and not pod.spare
        and not pod.ended
        and pod.node not in away
        and (node := world.nodes.get(pod.node)) is not None
        and node.ready is True
    ]
    return f"{len(going)} pods of the gang have not gone yet, first {min(going)}" if going else ""


def _without(missing: tuple[int, ...], chosen: Mapping[int, Pod]) -> tuple[int, ...]:
    return tuple(rank for rank in missing if rank not in chosen)


def _slots(world: World, taken: tuple[Seat, ...], ranks: tuple[int, ...]) -> dict[int, int]:
    """A slot for each of these node ranks: its own number, or where a spare has that, the lowest free one."""
    held = {s.pod.slot for s in taken if s.filled and s.pod is not None}
    held |= {pod.slot for pod in world.pods if pod.spare and not pod.deleting}
    free = (slot for slot in count() if slot not in held and slot not in ranks)
    return {rank: rank if rank not in held else next(free) for rank in ranks}


def _strangers_first(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], missing: tuple[int, ...], now: datetime
) -> list[int]:
    """The node ranks in the order in which spares serve them: those that must leave their node come first."""
    away = avoided(job, now)

    def has_home(rank: int) -> bool:
        pod = taken[rank].pod
        node = world.nodes.get(pod.node) if pod is not None else None
        if node is None or node.ready is not True or node.trouble:
            return False
        return node.schedulable and node.name not in away

    return sorted(missing, key=lambda rank: (has_home(rank), rank))


def _told(taken: tuple[Seat, ...], chosen: Mapping[int, Pod]) -> tuple[Note, ...]:
    notes = []
    for rank, pod in sorted(chosen.items())[:SPARES_NAMED]:
        old = taken[rank].pod
        was = f" in place of {old.name} on {old.node}" if old is not None else ""
        notes.append(
            Note(Reason.SPARE_TAKES_RANK, f"spare {pod.name} on {pod.node} takes node rank {rank}{was}")
        )
    return tuple(notes)


def _in_words(job: TrainingJob, creates: tuple[CreatePod, ...], chosen: Mapping[int, Pod]) -> str:
    spares = f"{len(chosen)} node {'rank goes to a spare' if len(chosen) == 1 else 'ranks go to spares'}"
    if not creates:
        return spares
    return f"creating {len(creates)} of {job.spec.num_nodes} pods" + (f"; {spares}" if chosen else "")


def _where(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], missing: tuple[int, ...], now: datetime
) -> Placement | Refusal:
    if not missing:
        return Placement({s.node_rank: s.pod.node for s in taken if s.filled and s.pod is not None})
    doomed = [
        seat.pod.node
        for seat in taken
        if seat.condemned and seat.pod is not None and not is_container_gone(seat.agent)
    ]
    away = avoided(job, now) | dict.fromkeys(doomed, "its pod is being replaced")
    away |= {pod.node: HELD for pod in world.pods if pod.spare and not pod.ended}
    keep = {seat.node_rank: seat.pod.node for seat in taken if seat.filled and seat.pod is not None}
    claimed = dict(world.claim.nodes) if world.claim is not None else {}
    gaps = frozenset(missing)
    for seat in taken:
        # A pod that died on a healthy node is replaced where it was: its data and caches are there.
        if seat.pod is not None and seat.node_rank in gaps:
            claimed.setdefault(seat.node_rank, seat.pod.node)
    wished = {r: claimed[r] for r in missing if r in claimed and claimed[r] not in away}
    request = gang_request(job.spec.template, job.spec.num_nodes, away)
    found = place_missing(request, world.nodes, missing, keep, wished)
    if isinstance(found, Refusal):
        return found
    return Placement({**keep, **found.nodes})

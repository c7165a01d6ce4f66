"""What every step towards running shares: how a gang that is not complete is described, tidied, called in."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from rerail_api.contract import AgentState
from rerail_api.status import MAX_EXCLUDED_NODES, ConditionType, ExcludedNode, Phase, Stage
from rerail_api.v1alpha1 import TrainingJob

from .gang import Seat, leftovers
from .outcome import Outcome
from .plan import Action, DeletePod, Level, Note, OrderJoin
from .reasons import Reason
from .world import Placement, World

SOON = timedelta(seconds=2)
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


def excluding(job: TrainingJob, added: list[ExcludedNode], now: datetime) -> tuple[ExcludedNode, ...]:
    """The job's excluded nodes with these added; those whose time is over go, the oldest fall off at 64."""
    by_name = {e.name: e for e in job.status.excluded_nodes if e.until is None or e.until > now}
    for node in added:
        by_name.pop(node.name, None)
        by_name[node.name] = node
    return tuple([*by_name.values()][-MAX_EXCLUDED_NODES:])


def avoided(job: TrainingJob, now: datetime) -> dict[str, str]:
    """Nodes that this job stays away from now, with the reason."""
    return {e.name: e.reason for e in job.status.excluded_nodes if e.until is None or e.until > now}


def waiting_since(job: TrainingJob) -> datetime:
    """Since when the gang has been trying to get going."""
    status = job.status
    times = [status.admitted_time]
    if status.incidents and (began := status.incidents[-1].start_time) is not None:
        # A hang is noticed long after it began: that time is not the restart's.
        detection = status.incidents[-1].stage_seconds.get(Stage.DETECTION, 0.0)
        times.append(began + timedelta(seconds=detection))
    known = [t for t in times if t is not None]
    return max(known, default=job.metadata.creation_timestamp or EARLIEST)


def startup_time_left(job: TrainingJob, now: datetime) -> timedelta:
    """Until the startup deadline; never so little that a pass follows itself."""
    left = waiting_since(job) + timedelta(seconds=job.spec.startup_deadline_seconds) - now
    return max(left, timedelta(seconds=0.1))


def deadline_in(job: TrainingJob, now: datetime) -> timedelta:
    return min(startup_time_left(job, now), SOON)


def past_startup_deadline(job: TrainingJob, now: datetime) -> bool:
    """Whether an unreleased gang has had its time."""
    status = job.status
    if status.released_round == status.round:
        return False
    return now - waiting_since(job) >= timedelta(seconds=job.spec.startup_deadline_seconds)


def blocked_by(taken: tuple[Seat, ...], round_: int) -> str:
    """What a gang that missed its deadline was waiting for."""
    return waiting_for(taken, round_)[1]


def waiting_for(taken: tuple[Seat, ...], round_: int) -> tuple[Reason, str]:
    """The least advanced seat, named: what everybody else waits for."""
    missing = [s.node_rank for s in taken if not s.filled]
    if missing:
        return (
            Reason.PLACING_PODS,
            f"{len(missing)} of {len(taken)} node ranks have no pod, first {missing[0]}",
        )
    waiting = [s.pod for s in taken if s.pod is not None and s.pod.waiting]
    if waiting:
        return Reason.CONTAINER_WAITING, f"{_more(len(waiting))}{waiting[0].name}: {waiting[0].waiting}"
    unbound = [s.pod for s in taken if s.pod is not None and not s.pod.bound]
    if unbound:
        why = next((p.unschedulable for p in unbound if p.unschedulable), "waits for kube-scheduler")
        return Reason.PLACING_PODS, f"{_more(len(unbound))}{unbound[0].name}: {why}"
    away = [s.pod for s in taken if s.pod is not None and (s.agent is None or not s.agent.connected)]
    if away:
        starting = [p for p in away if p.phase != "Running"]
        if starting:
            return (
                Reason.STARTING_PODS,
                f"{_more(len(starting))}{starting[0].name} is starting on {starting[0].node}",
            )
        return Reason.WAITING_FOR_AGENTS, f"{_more(len(away))}{away[0].name}: its agent is not connected"
    ready = sum(1 for s in taken if s.at(AgentState.READY, round_))
    return Reason.AT_BARRIER, f"{ready} of {len(taken)} nodes are at the barrier of round {round_}"


def _more(count: int) -> str:
    return f"{count} pods, first " if count > 1 else ""


def removals(world: World, taken: tuple[Seat, ...], round_: int) -> tuple[Action, ...]:
    """Dead pods whose seat is being filled anew, and pods that hold no seat."""
    dead = [
        seat.pod
        for seat in taken
        if seat.pod is not None
        and not seat.filled
        and not seat.pod.deleting
        and seat.pod.since_round < round_
    ]
    return tuple(DeletePod(pod.name, pod.uid, why="superseded") for pod in (*dead, *leftovers(world, taken)))


def joins(taken: tuple[Seat, ...], round_: int) -> tuple[Action, ...]:
    late = tuple(
        seat.pod.uid
        for seat in taken
        if seat.pod is not None
        and seat.filled
        and seat.agent is not None
        and seat.agent.connected
        and seat.agent.round < round_
    )
    return (OrderJoin(late, round_),) if late else ()


def stuck_memory(world: World, taken: tuple[Seat, ...], now: datetime) -> dict[str, datetime]:
    """Since when each pinned pod is known to be unschedulable, to be handed to the next pass."""
    return {
        f"stuck/{s.pod.uid}": world.memory.get(f"stuck/{s.pod.uid}", now)
        for s in taken
        if s.pod is not None and s.pod.unschedulable and not s.pod.bound
    }


def new_round(job: TrainingJob, reason: Reason, message: str, changes: Mapping[str, object]) -> Outcome:
    """Open a round that is charged to nobody: new names, new port, same job."""
    return Outcome(
        Phase.RESTARTING if job.status.start_time else Phase.STARTING,
        reason,
        message,
        Stage.PLACEMENT,
        changes={"round": job.status.round + 1, **changes},
        notes=(Note(reason, f"round {job.status.round + 1}: {message}", Level.WARNING),),
        intent=True,
        because="an uncounted round: nothing of the job's own failed",
    )


def starting(  # noqa: PLR0913 - one named constructor for every way of not running yet
    job: TrainingJob,
    reason: Reason,
    message: str,
    stage: Stage,
    *,
    actions: tuple[Action, ...] = (),
    placement: Placement | None = None,
    requeue_after: timedelta | None = None,
    memory: Mapping[str, datetime] | None = None,
    because: str = "",
) -> Outcome:
    incidents = job.status.incidents
    restarting = bool(incidents) and incidents[-1].resolved_time is None
    return Outcome(
        Phase.RESTARTING if restarting else Phase.STARTING,
        reason,
        message,
        stage,
        conditions=((ConditionType.RUNNING, False, reason, message),),
        actions=actions,
        placement=placement,
        requeue_after=requeue_after or SOON,
        memory=memory or {},
        because=because,
    )

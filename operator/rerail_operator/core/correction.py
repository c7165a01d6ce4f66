"""What is learned of an open incident once it was answered: class, charge and counts follow.

The restart stays the one it was. It had to be given when it was; the kubelet, the node controller and whoever
evicts may speak later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from rerail_api.status import ExcludedNode, Incident, IncidentClass, RestartCounts, SamePoint
from rerail_api.v1alpha1 import TrainingJob

from .devices import said_against
from .elsewhere import DEVICE_SOON, root_elsewhere
from .evidence import DRAINS, OUT_OF_MEMORY, Fault
from .gang import Seat
from .plan import Level, Note
from .reasons import Reason
from .taxonomy import BY_SIGN, DEVICE_EXPLAINS, TABLE, Row, Sign
from .waiting import excluding
from .world import Pod, World

DISRUPTED_SOON = timedelta(seconds=30)
"""A disruption that is told later than this after a failure is another story."""

_LOST = frozenset({IncidentClass.CONTAINER_LOSS, IncidentClass.NETWORK})
_EXPLAINED = frozenset(BY_SIGN[sign].kind for sign in DEVICE_EXPLAINS)
_NO_POISON = frozenset(row.kind for row in TABLE if row.poison is None)


@dataclass(frozen=True, slots=True)
class Correction:
    """Fields of the status that change, and what is told of it."""

    changes: Mapping[str, object]
    note: Note


def correction(world: World, job: TrainingJob, taken: tuple[Seat, ...], now: datetime) -> Correction | None:
    """What the newest incident really was, if that is known by now and it has not closed."""
    status = job.status
    if not status.incidents or status.incidents[-1].resolved_time is not None:
        return None
    last = status.incidents[-1]
    found = _disrupted(world, job, taken, last, now) or _out_of_memory(world, job, taken, last)
    found = found or _node_lost(world, taken, last) or _device_bad(world, last, now)
    if found is not None and found[0].kind is not last.class_:
        return _corrected(job, last, *found, now)
    elsewhere = root_elsewhere(world, taken, last, now) if found is None else None
    return _rooted_anew(job, last, elsewhere, now) if elsewhere is not None else None


Found = tuple[Row, str]


def _disrupted(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], last: Incident, now: datetime
) -> Found | None:
    """The pod was on its way out: what its ranks died of was that."""
    pod = _their_pod(world, job, taken, last)
    faults = (*_LOST, IncidentClass.PROCESS_FAULT, IncidentClass.RENDEZVOUS_FAULT)
    if pod is None or not pod.disruption or last.class_ not in faults:
        return None
    if not (pod.ended or pod.deleting) or last.start_time is None:
        return None
    if now - last.start_time > DISRUPTED_SOON:
        return None
    sign = Sign.POD_DRAINED if pod.disruption in DRAINS else Sign.POD_PREEMPTED
    return BY_SIGN[sign], f"pod {pod.name} on {pod.node}: {pod.disruption}"


def _out_of_memory(world: World, job: TrainingJob, taken: tuple[Seat, ...], last: Incident) -> Found | None:
    killed = last.class_ is IncidentClass.PROCESS_FAULT and last.signal == "SIGKILL"
    pod = _their_pod(world, job, taken, last)
    if pod is None or pod.termination is None or not (killed or last.class_ in _LOST):
        return None
    if pod.termination.reason != OUT_OF_MEMORY:
        return None
    return BY_SIGN[Sign.OUT_OF_MEMORY], f"the container of {pod.name} was killed: out of memory"


def _node_lost(world: World, taken: Iterable[Seat], last: Incident) -> Found | None:
    """An agent had fallen silent, and now the API server says that its node has, too."""
    if last.class_ is not IncidentClass.NETWORK or not last.node:
        return None
    node = world.nodes.get(last.node)
    if node is not None and node.ready is True:
        return None
    if any(seat.filled and seat.pod is not None and seat.pod.node == last.node for seat in taken):
        return None
    what = "gone from the cluster" if node is None else "not ready"
    return BY_SIGN[Sign.NODE_GONE], f"node {last.node} is {what}"


def _device_bad(world: World, last: Incident, now: datetime) -> Found | None:
    """The device was bad, although that was not known: the same pod may well have gone on with it."""
    if last.class_ not in _EXPLAINED or last.start_time is None or now - last.start_time > DEVICE_SOON:
        return None
    pod = next((p for p in world.pods if p.name == last.pod), None)
    why = said_against(world.nodes, pod, last.node)
    return (BY_SIGN[Sign.DEVICE_BAD], why) if why else None


def _their_pod(world: World, job: TrainingJob, taken: tuple[Seat, ...], last: Incident) -> Pod | None:
    """The incident's pod, unless it serves in a later round: then its end is another incident."""
    pod = next((p for p in world.pods if p.name == last.pod), None)
    if pod is None or job.status.released_round <= last.round:
        return pod
    return None if any(seat.pod is not None and seat.pod.uid == pod.uid for seat in taken) else pod


def _corrected(job: TrainingJob, last: Incident, row: Row, why: str, now: datetime) -> Correction:
    """The same root, which was something else."""
    mark = "/".join([row.mark, *last.fingerprint.split("/")[1:]])
    told = f"incident {last.number} was {row.kind.value}, {_cost(last, row)}, not {last.class_.value}: {why}"
    return _followed(job, _judged(last, row, why, mark), row, told, now)


def _rooted_anew(job: TrainingJob, last: Incident, root: Fault, now: datetime) -> Correction:
    """Another root: who was named first had only followed it, and so had its exit and its last words."""
    what = (
        f"{root.kind.value} on {root.node}, {_cost(last, root.row)}, not {last.class_.value} on {last.node}"
    )
    incident = _judged(last, root.row, root.message, root.row.mark).model_copy(
        update={
            "node_rank": root.node_rank,
            "pod": root.pod.name if root.pod is not None else None,
            "node": root.node,
            **dict.fromkeys(("rank", "exit_code", "signal", "exception")),
            "log_lines": (),
        }
    )
    return _followed(job, incident, root.row, f"incident {last.number} was {what}: {root.message}", now)


def _cost(last: Incident, row: Row) -> str:
    return "charged" if _is_charged(last, row) else "free"


def _is_charged(last: Incident, row: Row) -> bool:
    """What a rule of the user has decided stays decided."""
    return last.charged if last.rule is not None else not row.free


def _judged(last: Incident, row: Row, why: str, mark: str) -> Incident:
    return last.model_copy(
        update={
            "class_": row.kind,
            "charged": _is_charged(last, row),
            "fingerprint": mark,
            "message": f"{why} (first taken for {last.class_.value}: {last.message})"[:512],
        }
    )


def _followed(job: TrainingJob, incident: Incident, row: Row, told: str, now: datetime) -> Correction:
    """The counts, the poison and the nodes to leave follow the incident as it is known now."""
    status, last = job.status, job.status.incidents[-1]
    incidents = (*status.incidents[:-1], incident)
    more = int(incident.charged) - int(last.charged)
    restarts = RestartCounts(
        total=status.restarts.total,
        charged=max(0, status.restarts.charged + more),
        since_progress=max(0, status.restarts.since_progress + more),
    )
    point = same_point(incidents)
    changes: dict[str, object] = {"incidents": incidents, "restarts": restarts, "same_point": point}
    away = row.away_at(max(1, point.count if point is not None else 1))
    if away is not None and incident.node is not None:
        left = ExcludedNode(name=incident.node, reason=incident.message, until=now + away)
        changes["excluded_nodes"] = excluding(job, [left], now)
    return Correction(changes, Note(Reason.CORRECTED, told, Level.WARNING))


def same_point(incidents: tuple[Incident, ...]) -> SamePoint | None:
    """The poison counter as the incidents tell it: those that are no poison neither count nor wipe out."""
    counted = [i for i in reversed(incidents) if i.class_ not in _NO_POISON]
    if not counted:
        return None
    newest = counted[0]
    count = 0
    for incident in counted:
        if (incident.fingerprint, incident.progress_step) != (newest.fingerprint, newest.progress_step):
            break
        count += 1
    return SamePoint(fingerprint=newest.fingerprint, step=newest.progress_step, count=count)

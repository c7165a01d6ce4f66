"""A rung that takes too long: the gang goes on from the next one, in an uncounted round."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from rerail_api.status import ExcludedNode, Incident, Rung, TrainingJobStatus
from rerail_api.v1alpha1 import TrainingJob

from .gang import Seat, more_than_few
from .ladder import deadline, late, open_rung
from .outcome import Outcome
from .placement import HELD, gang_request
from .pod_resources import pod_request
from .queueing import give_back
from .reasons import Reason
from .silence import SILENT_IS_LOST
from .spares import ready_spares
from .survey import survey
from .waiting import EARLIEST, avoided, excluding, new_round, waiting_for
from .world import Node, Nodes, World

KEEP_AWAY_LATE = timedelta(minutes=5)
"""Away from a node whose agent did not come to the barrier in time."""
TO_COME_BACK = SILENT_IS_LOST
"""For agents to find a new leader (3 s of jitter) and to be at the barrier (15 s to stop)."""


def climb(world: World, job: TrainingJob, taken: tuple[Seat, ...], now: datetime) -> Outcome | None:
    """The next rung, when the one that the gang stands on has had its time; None while it may stay there."""
    standing, round_ = open_rung(job.status), job.status.round
    if standing is None:
        return None
    limit = deadline(job.spec.failure_policy.ladder, standing)
    missing = late(taken, round_)
    if not missing or now < _due(world, job.status, limit):
        return None
    why = f"not at the barrier {limit.total_seconds():.0f} s after the round was opened: "
    why += waiting_for(taken, round_)[1]
    if standing is Rung.RECREATE:
        return give_back(Reason.GAVE_BACK, f"recreated, and {why}")
    if standing is Rung.IN_PLACE:
        return _swap(world, job, missing, f"in place, and {why}", now)
    return _recreate(world, job, missing, f"swapped, and {why}", now)


def _due(world: World, status: TrainingJobStatus, limit: timedelta) -> datetime:
    """When the rung has had its time. It counts from the round's opening, whoever led then: a new leader only
    gives the agents what they need to find it, and to stop their ranks if nobody had told them to."""
    opened = status.round_time or world.leading_since or status.admitted_time or EARLIEST
    if world.leading_since is None:
        return opened + limit
    return max(opened + limit, world.leading_since + min(limit, TO_COME_BACK))


def _swap(
    world: World, job: TrainingJob, missing: tuple[Seat, ...], why: str, now: datetime
) -> Outcome | None:
    """Other pods for those who are late; None where pods are not to blame, or none could take their part."""
    if more_than_few(len(missing), job.spec.num_nodes) or room_elsewhere(world, job, now) < len(missing):
        return None
    changes = {"excluded_nodes": excluding(job, _nodes_of(missing, now), now)}
    return new_round(job, Reason.RUNG_GIVEN_UP, f"{why}; swap", {**changes, **_on(job, Rung.SWAP)})


def _recreate(
    world: World, job: TrainingJob, missing: tuple[Seat, ...], why: str, now: datetime
) -> Outcome | None:
    """All pods anew; None where the cluster would not hold the gang."""
    away = excluding(job, _nodes_of(missing, now), now)
    elsewhere = avoided(job, now) | {node.name: node.reason for node in away}
    for excluded, names in ((away, elsewhere), (job.status.excluded_nodes, avoided(job, now))):
        if _gang_fits(world, job, names):
            changes = {"excluded_nodes": excluded, "gang_round": job.status.round + 1}
            changes |= _on(job, Rung.RECREATE)
            return new_round(job, Reason.RUNG_GIVEN_UP, f"{why}; recreate the gang", changes)
    return None


def room_elsewhere(world: World, job: TrainingJob, now: datetime) -> int:
    """How many pods of the gang could go to spares and to nodes that hold none of its pods."""
    held = {pod.node: HELD for pod in world.pods if not pod.ended}
    request = gang_request(job.spec.template, 1, avoided(job, now) | held)
    return len(survey(request, world.nodes).fitting()) + len(ready_spares(world, job, now))


def _gang_fits(world: World, job: TrainingJob, away: Mapping[str, str]) -> bool:
    """Whether the whole gang would find nodes, were its own pods not there."""
    request = gang_request(job.spec.template, job.spec.num_nodes, away)
    mine = {pod.node for pod in world.pods if not pod.ended}
    nodes = {name: _freed(node, job) if name in mine else node for name, node in world.nodes.by_name.items()}
    return len(survey(request, Nodes(nodes)).fitting_for(request.num_nodes)) >= request.num_nodes


def _freed(node: Node, job: TrainingJob) -> Node:
    asked = pod_request(job.spec.template)
    return replace(node, free={name: amount + asked.get(name, 0) for name, amount in node.free.items()})


def _nodes_of(seats: Iterable[Seat], now: datetime) -> list[ExcludedNode]:
    return [
        ExcludedNode(name=seat.pod.node, reason="its pod was late at the barrier", until=now + KEEP_AWAY_LATE)
        for seat in seats
        if seat.pod is not None and seat.pod.alive
    ]


def _on(job: TrainingJob, taken: Rung) -> dict[str, tuple[Incident, ...]]:
    *older, last = job.status.incidents
    return {"incidents": (*older, last.model_copy(update={"rung": taken}))}

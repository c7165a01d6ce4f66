"""Pods that are alive and yet have to go: what opening the round was the answer to.

A lost, stuck, silent or evicted pod is one incident, not one in every pass until its object is gone.
"""

from dataclasses import replace
from datetime import datetime

from rerail_api.status import TrainingJobStatus
from rerail_api.v1alpha1 import TrainingJob

from .evidence import hold_if_ours, unfit
from .gang import Seat
from .waiting import avoided
from .world import World


def with_condemned(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], now: datetime
) -> tuple[Seat, ...]:
    """The seats, those marked whose living pod of an older round must not serve in this one.

    Until the barrier of the round is released, such a pod is replaced without another incident or round.
    """
    round_ = job.status.round
    if job.status.released_round == round_:
        return taken
    away = avoided(job, now)
    faults = [fault for seat in taken if (fault := unfit(world, seat, now)) is not None]
    bad = {fault.node_rank for fault in hold_if_ours(world, faults, taken, now)}
    return tuple(
        replace(seat, condemned=True) if _is_condemned(seat, job.status, away, bad) else seat
        for seat in taken
    )


def _is_condemned(seat: Seat, status: TrainingJobStatus, away: dict[str, str], bad: set[int]) -> bool:
    pod = seat.pod
    if pod is None or not pod.alive or pod.since_round >= status.round:
        return False
    return pod.since_round < status.gang_round or pod.node in away or seat.node_rank in bad

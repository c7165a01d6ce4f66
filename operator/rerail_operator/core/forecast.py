"""What the model expects of a job, fed with the job's own figures; stands in the ledger beside the measured.

No decision reads it; the budget by rate (`rate`) reads the same prior and posterior.
"""

from collections.abc import Sequence

from rerail_api.ettr import SECONDS_PER_DAY, Interruptions, best_interval, ettr
from rerail_api.status import STAGES_OUTSIDE_ETTR, Forecast, Incident, Ledger, Stage

PRIOR_RATE = 6.5
"""Interruptions per 1,000 node-days before anything is known: Meta's RSC-1 (arXiv 2410.21680)."""
PRIOR_INTERRUPTIONS = 1.0
"""What the prior weighs: as much as so many interruptions at that rate, 154 node-days."""
UNKNOWN_STALL_SECONDS = 0.5
"""Per checkpoint, while none was committed."""
LEAST_STALL_SECONDS = 0.05
"""The best that is known; saves that report no stall at all are not free."""
BOUNDS_SECONDS = (10, 3600)
"""Of the interval, where the job sets no others."""

_FIRST_START = (Stage.RENDEZVOUS, Stage.LOAD, Stage.COMPILE)


def forecast(
    ledger: Ledger,
    incidents: Sequence[Incident],
    num_nodes: int,
    bounds: tuple[int, int] = BOUNDS_SECONDS,
) -> Forecast:
    """The model's view of a job that has run; `incidents`: the newest ones, oldest first; `bounds` of the
    interval in seconds.

    The ETTR is that of the interval which the job keeps, to be held against the measured one; with
    fewer than two checkpoints, that of the interval which the model would choose.
    """
    rate = posterior_rate(incidents[-1].number if incidents else 0, num_nodes * held_seconds(ledger))
    what = Interruptions(1 / (rate * num_nodes), _dead(ledger, incidents), _stall(ledger))
    best = min(max(best_interval(what), bounds[0]), bounds[1])
    kept = _kept_interval(ledger) or best
    return Forecast(
        interruptions_per_thousand_node_days=round(rate * SECONDS_PER_DAY * 1000, 3),
        dead_seconds=round(what.dead, 2),
        stall_seconds=round(what.stall, 3),
        interval_seconds=round(best, 1),
        ettr=round(ettr(what, kept), 4),
    )


def posterior_rate(interruptions: int, node_seconds: float) -> float:
    """Interruptions per node-second: the mean of a gamma posterior, so that few node-days move it little."""
    prior_node_seconds = PRIOR_INTERRUPTIONS * 1000 * SECONDS_PER_DAY / PRIOR_RATE
    return (PRIOR_INTERRUPTIONS + interruptions) / (prior_node_seconds + node_seconds)


def held_seconds(ledger: Ledger) -> float:
    """Seconds for which the job has held its nodes."""
    outside = sum(ledger.lost_seconds.get(stage, 0.0) for stage in STAGES_OUTSIDE_ETTR)
    return max(ledger.wall_seconds - outside, 0.0)


def _dead(ledger: Ledger, incidents: Sequence[Incident]) -> float:
    """Mean dead seconds of the interruptions that are over; before the first, what the start took."""
    over = incidents[-1].number - (incidents[-1].resolved_time is None) if incidents else 0
    if not over:
        return sum(ledger.lost_seconds.get(stage, 0.0) for stage in _FIRST_START)
    return ledger.dead_seconds / over


def _stall(ledger: Ledger) -> float:
    if not ledger.checkpoints:
        return UNKNOWN_STALL_SECONDS
    measured = ledger.lost_seconds.get(Stage.CHECKPOINT_STALL, 0.0) / ledger.checkpoints
    return max(measured, LEAST_STALL_SECONDS)


def _kept_interval(ledger: Ledger) -> float | None:
    """Seconds of stepping per checkpoint, those in vain included."""
    if ledger.checkpoints < 2:
        return None
    stepped = ledger.productive_seconds + ledger.lost_seconds.get(Stage.REPLAY, 0.0)
    return stepped / ledger.checkpoints

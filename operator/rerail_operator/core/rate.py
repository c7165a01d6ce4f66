"""The budget by rate: more free restarts than any model expects hold the next ones back and never fail a job.

Restarts for which nobody is charged have no other limit. Where there are far too many of them the assumption
is broken, not the job: a cluster that loses nodes so fast is not made better by starting on it at once.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from rerail_api.ettr import SECONDS_PER_DAY
from rerail_api.status import MAX_INCIDENTS, Incident, IncidentClass
from rerail_api.v1alpha1 import TrainingJob

from .forecast import PRIOR_RATE, held_seconds, posterior_rate

WINDOW: Final = timedelta(hours=6)
FACTOR: Final = 3
"""So many times the expected count is still taken for chance."""
AT_LEAST: Final = 6
"""Free restarts in the window that are never held back: of few nodes hardly any failure is expected."""
AT_MOST: Final = 10
"""What is counted at most: the status remembers 16 incidents. A large job gets a shorter window instead."""
WORST_RATE: Final = 20.0
"""Interruptions per 1,000 node-days; no fleet is believed to be worse (the worst published: 21, DLRover)."""
FIRST_DELAY: Final = timedelta(seconds=30)
LONGEST_DELAY: Final = timedelta(seconds=600)

ORDERED: Final = frozenset({IncidentClass.PREEMPTION, IncidentClass.DRAIN})
"""Somebody's will: the model expects none of them."""


@dataclass(frozen=True, slots=True)
class Hold:
    """How long after the newest incident its restart is held back, and why."""

    delay: timedelta
    why: str


def hold(job: TrainingJob) -> Hold | None:
    """What the rate of free restarts says of the restart after the newest incident; from the status alone."""
    incidents = job.status.incidents
    if not incidents or not _counts(incidents[-1]) or incidents[-1].start_time is None:
        return None
    now = incidents[-1].start_time
    per_day = _assumed(job, now) * job.spec.num_nodes / 1000
    window, limit = WINDOW, FACTOR * per_day * (WINDOW / timedelta(days=1))
    if limit > AT_MOST:
        window, limit = WINDOW * (AT_MOST / limit), AT_MOST
    limit = max(AT_LEAST, int(limit))
    counted = sum(1 for i in incidents if _counts(i) and i.start_time and now - i.start_time <= window)
    over = counted - limit
    if over <= 0:
        return None
    delay = min(FIRST_DELAY * 2 ** min(over - 1, 10), LONGEST_DELAY)
    # Half of what a start may take: a gang that is held back must not lose its nodes for it.
    delay = min(delay, timedelta(seconds=job.spec.startup_deadline_seconds) / 2)
    expected = per_day * (window / timedelta(days=1))
    why = (
        f"{counted} free restarts in {_span(window)}, where {expected:.2g} are expected of"
        f" {job.spec.num_nodes} nodes and {limit} are let pass: look at the cluster (`rerail nodes`)"
    )
    return Hold(delay, why)


def _counts(incident: Incident) -> bool:
    return not incident.charged and incident.class_ not in ORDERED


def _assumed(job: TrainingJob, now: datetime) -> float:
    """Interruptions per 1,000 node-days, before the window; bounded: a runaway must not become the rule."""
    incidents, since = job.status.incidents, now - WINDOW
    older = [i.number for i in incidents if i.start_time is not None and i.start_time <= since]
    full = len(incidents) == MAX_INCIDENTS
    known = older[-1] if older else incidents[0].number - 1 if full else 0
    seconds = max(held_seconds(job.status.ledger) - WINDOW.total_seconds(), 0.0)
    rate = posterior_rate(known, seconds * job.spec.num_nodes) * SECONDS_PER_DAY * 1000
    return min(max(rate, PRIOR_RATE), WORST_RATE)


def _span(window: timedelta) -> str:
    minutes = window.total_seconds() / 60
    return f"{minutes / 60:.0f} h" if minutes >= 120 else f"{minutes:.0f} min"

"""The whole story of one pass: what was seen and the time in, a Plan out. Steps return early, by name."""

from dataclasses import replace
from datetime import datetime, timedelta

from rerail_api.status import ConditionType
from rerail_api.v1alpha1 import TrainingJob

from . import queueing
from .climbing import climb
from .condemned import with_condemned
from .correction import correction
from .elsewhere import known_devices
from .ending import after_the_end, completed, failed, tear_down
from .evidence import find_faults, finished_with_zero
from .fallen import with_fallen
from .gang import Seat, all_bound, seats
from .gathering import gather
from .outcome import Outcome
from .plan import Plan
from .publish import publish
from .reasons import Reason
from .repair import answer, answer_standstill
from .spares import tend
from .stalls import settled
from .standstill import all_heard, standstill
from .waiting import blocked_by, past_startup_deadline
from .world import World


def decide(world: World, now: datetime) -> Plan:
    """What to do about one job. Pure: the same world at the same time gives the same plan."""
    job = world.job
    if job is None and world.invalid:
        return Plan(None, because=f"the stored object cannot be read: {world.invalid}")
    if job is None or job.metadata.deletion_timestamp is not None:
        return tear_down(world)
    if job.status.finished:
        return after_the_end(world, job, now)
    job = settled(world, job)
    world = replace(world, job=job)
    taken = with_condemned(world, job, seats(world, job.spec.num_nodes), now)
    known = correction(world, job, taken, now)
    if known is None:
        return publish(world, job, taken, _outcome(world, job, taken, now), now)
    # Decided as if it had been known from the start, and written before anything is done.
    better = job.model_copy(update={"status": job.status.model_copy(update=dict(known.changes))})
    outcome = _outcome(replace(world, job=better), better, taken, now)
    changes, notes = {**known.changes, **outcome.changes}, (known.note, *outcome.notes)
    return publish(world, job, taken, replace(outcome, changes=changes, notes=notes, intent=True), now)


def _outcome(world: World, job: TrainingJob, taken: tuple[Seat, ...], now: datetime) -> Outcome:
    outcome = with_fallen(world, job, _step(world, job, taken, now))
    outcome = tend(world, job, taken, outcome, now)
    return replace(outcome, memory={**known_devices(world, job, now), **outcome.memory})


def _step(world: World, job: TrainingJob, taken: tuple[Seat, ...], now: datetime) -> Outcome:
    status = job.status
    if _deadline_passed(job, now):
        return failed(
            job,
            Reason.ACTIVE_DEADLINE_EXCEEDED,
            f"active for longer than {job.spec.active_deadline_seconds} s",
            now,
        )
    if _all_done(job, taken):
        return completed(job, now)
    if job.spec.suspend:
        return queueing.suspend(world, job, now)
    if not status.is_true(ConditionType.ADMITTED):
        return queueing.queue(world, job, now)
    if status.template_hash != queueing.shape_hash(job):
        return queueing.give_back(
            Reason.SPEC_CHANGED,
            "the spec was changed while suspended: save, stop, and start from the new one",
        )
    faults = find_faults(world, taken, now)
    if faults:
        return answer(world, job, taken, faults, now)
    found = standstill(world, job)
    if found is not None and now >= found.due and all_heard(taken, status.round):
        return answer_standstill(world, job, taken, found, now)
    if past_startup_deadline(job, now) and not status.start_time and all_bound(taken):
        return failed(
            job,
            Reason.STARTUP_DEADLINE_EXCEEDED,
            f"not all ranks ran within {job.spec.startup_deadline_seconds} s: "
            + blocked_by(taken, status.round),
            now,
        )
    if past_startup_deadline(job, now):
        return queueing.give_back(
            Reason.GAVE_BACK, f"the gang was not complete in time: {blocked_by(taken, status.round)}"
        )
    return climb(world, job, taken, now) or gather(world, job, taken, now)


def _all_done(job: TrainingJob, taken: tuple[Seat, ...]) -> bool:
    """Whether the gang that was released has done its work; even when it was just asked to stop."""
    status = job.status
    return (
        status.is_true(ConditionType.ADMITTED)
        and status.released_round == status.round
        and status.template_hash == queueing.shape_hash(job)
        and all(finished_with_zero(s, status.round) for s in taken)
    )


def _deadline_passed(job: TrainingJob, now: datetime) -> bool:
    limit, began = job.spec.active_deadline_seconds, job.status.start_time
    return limit is not None and began is not None and now - began >= timedelta(seconds=limit)

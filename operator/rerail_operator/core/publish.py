"""An outcome dressed as a Plan: the status that people read, derived from the world in one place."""

from datetime import datetime, timedelta

from rerail_api.contract import AgentState
from rerail_api.status import (
    ConditionType,
    Incident,
    Ledger,
    NodeCounts,
    Phase,
    Stage,
    TrainingJobStatus,
)
from rerail_api.v1alpha1 import TrainingJob

from .advice import interval_to_tell
from .closing import closed, cut_short, is_over
from .conditions import condition, stop_is_ordered, with_condition
from .forecast import forecast
from .gang import Seat
from .ledger import (
    advance,
    charge,
    lost_between,
    newly_over,
    priced,
    running_stage,
    stood_still,
    with_cost,
)
from .outcome import Outcome
from .plan import Note, Plan
from .progress import highest_step, newest, progress_changes
from .reasons import Reason
from .restarts import has_moved
from .spares import ready_spares
from .stalls import with_told_stall
from .stragglers import name_stragglers
from .template_facts import accelerators_of
from .world import Progress, World

SOFT_INTERVAL = timedelta(seconds=10)
"""How often progress and ledger alone may cause a write; transitions are written at once."""
PASSING_INTERVAL = timedelta(seconds=2)
"""For how long a station between a fault and running may be untold: a restart in place is over by then, and
costs the API server three writes of status, whatever the size of the gang."""
_ON_THE_WAY = frozenset({Phase.STARTING, Phase.RESTARTING})
SOFT_FIELDS = frozenset({"progress", "last_checkpoint", "ledger", "incidents", "resumed_from_step"})


def publish(world: World, job: TrainingJob, taken: tuple[Seat, ...], outcome: Outcome, now: datetime) -> Plan:
    """The plan for `outcome`, its status complete."""
    status, notes = _status(world, job, taken, outcome, now)
    return Plan(
        status=status,
        actions=() if outcome.intent else outcome.actions,
        intent=outcome.intent,
        notes=notes,
        requeue_after=timedelta(0) if outcome.intent else _look_again(job, outcome, now),
        placement=outcome.placement,
        because=outcome.because,
        memory=outcome.memory,
    )


def _status(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], outcome: Outcome, now: datetime
) -> tuple[TrainingJobStatus, tuple[Note, ...]]:
    """The status after this outcome, and the notes that only the whole of it can tell."""
    told, written = newest(world, job.status.round), job.status.ledger
    generation = job.metadata.generation
    opened = {"round_time": now} if "round" in outcome.changes else {}
    base = job.status.model_copy(
        update={**progress_changes(job, told), **outcome.changes, **opened, "observed_generation": generation}
    )
    stage = _stage(outcome, base, told)
    ledger = _with_told(_booked(job, outcome, stage, now), job.status, base, told)
    incidents = _incidents(job.status, base.incidents, ledger, now)
    incidents = priced(incidents, accelerators_of(world, job)) if incidents else ()
    notes = (*outcome.notes, *_cut_short(job.status, incidents, outcome.phase))
    if is_over(incidents, base, stage):
        # What ran unnoticed since the last write was productive already.
        ran = ledger.productive_seconds - written.productive_seconds
        done, note = closed(incidents[-1], told, taken, now - timedelta(seconds=ran))
        incidents, notes = (*incidents[:-1], done), (*notes, note)
    if "restarts" not in outcome.changes and has_moved(job.status, told.step if told is not None else None):
        base = base.model_copy(update={"restarts": base.restarts.model_copy(update={"since_progress": 0})})
    ledger = _summed_up(ledger, job, base, incidents)
    naming = name_stragglers(world, job, taken, outcome.phase, now)
    changes = {
        "phase": outcome.phase,
        "reason": outcome.reason.value,
        "message": outcome.message[:1024],
        "conditions": _conditions(base, outcome, generation, now),
        "nodes": _counts(job, taken, base.round, outcome.phase, len(ready_spares(world, job, now))),
        "incidents": incidents,
        "ledger": ledger,
        "stragglers": naming.stragglers,
        "checkpoint_interval_seconds": interval_to_tell(
            job.spec.checkpoint, job.status.checkpoint_interval_seconds, ledger.forecast
        ),
    }
    return base.model_copy(update=changes), (*notes, *naming.notes)


def _booked(job: TrainingJob, outcome: Outcome, stage: Stage, now: datetime) -> Ledger:
    """The ledger with the time since the last booking, from here on in `stage`."""
    ledger = job.status.ledger
    if outcome.stood_still and outcome.fault_at is not None:
        ledger = stood_still(ledger, outcome.fault_at)
    if outcome.unheard:
        return ledger
    return advance(ledger, job.metadata.creation_timestamp or now, now, stage, outcome.fault_at)


def _with_told(
    ledger: Ledger, before: TrainingJobStatus, after: TrainingJobStatus, told: Progress | None
) -> Ledger:
    """The ledger with what the program tells of steps and saves."""
    written = before.ledger
    ledger = with_told_stall(written, ledger, told.stall_seconds if told is not None else None)
    changes: dict[str, object] = {
        "highest_step": highest_step(written, told),
        "checkpoints": written.checkpoints + _has_saved(before, after),
    }
    if after.released_round != before.released_round:  # other processes, which count from zero
        changes["stall_before_round"] = ledger.lost_seconds.get(Stage.CHECKPOINT_STALL, 0.0)
    return ledger.model_copy(update=changes)


def _summed_up(
    ledger: Ledger, job: TrainingJob, after: TrainingJobStatus, incidents: tuple[Incident, ...]
) -> Ledger:
    """The ledger with what interruptions that are over have cost, and with what the model makes of it."""
    written = job.status.ledger
    ledger = with_cost(ledger, newly_over(job.status.incidents, incidents))
    if after.start_time is None and written.forecast is None:
        return ledger
    view = forecast(ledger, incidents, job.spec.num_nodes, job.spec.checkpoint.auto_bounds)
    return ledger.model_copy(update={"forecast": view})


def _has_saved(before: TrainingJobStatus, after: TrainingJobStatus) -> bool:
    """Whether a commit was told that was not known before."""
    known, now = before.last_checkpoint, after.last_checkpoint
    return now is not None and (known is None or now.step > known.step)


def _look_again(job: TrainingJob, outcome: Outcome, now: datetime) -> timedelta | None:
    limit, began = job.spec.active_deadline_seconds, job.status.start_time
    if limit is None or began is None:
        return outcome.requeue_after
    left = max(began + timedelta(seconds=limit) - now, timedelta(0))
    return left if outcome.requeue_after is None else min(left, outcome.requeue_after)


def _stage(outcome: Outcome, status: TrainingJobStatus, told: Progress | None) -> Stage:
    if outcome.phase is Phase.RUNNING and outcome.stage is Stage.PRODUCTIVE:
        # Against what is written: a step told twice is not a step made twice.
        return running_stage(status, told, status.ledger.highest_step)
    return outcome.stage


def _incidents(
    written: TrainingJobStatus, incidents: tuple[Incident, ...], ledger: Ledger, now: datetime
) -> tuple[Incident, ...]:
    """The incidents with what was lost since the status was written, so that each one's stages sum up.

    The written status is the one place where ledger and incidents belong together. A new incident begins with
    its own detection, which is all that has passed since it began.
    """
    lost = lost_between(written.ledger, ledger)
    was_open = bool(written.incidents) and written.incidents[-1].resolved_time is None
    known = written.incidents[-1].number if written.incidents else 0
    if not incidents or incidents[-1].number == known:
        return (*incidents[:-1], charge(incidents[-1], lost)) if was_open else incidents
    *older, newest_one = incidents
    if was_open and older:
        lost.pop(Stage.DETECTION, None)
        older[-1] = charge(older[-1], lost)
    began = newest_one.start_time or now
    detection = {Stage.DETECTION: max(0.0, (now - began).total_seconds())}
    return (*older, charge(newest_one, detection))


def _cut_short(written: TrainingJobStatus, incidents: tuple[Incident, ...], phase: Phase) -> tuple[Note, ...]:
    return tuple(cut_short(done, phase) for done in newly_over(written.incidents, incidents))


def _counts(job: TrainingJob, taken: tuple[Seat, ...], round_: int, phase: Phase, spares: int) -> NodeCounts:
    ready = sum(1 for s in taken if s.at(AgentState.RUNNING, round_) or s.at(AgentState.DONE, round_))
    desired = job.spec.num_nodes
    if phase is Phase.RUNNING:
        ready = desired  # agents that are on their way to a new leader included
    return NodeCounts(desired=desired, ready=ready, spares=spares, summary=f"{ready}/{desired}")


def _conditions(
    base: TrainingJobStatus, outcome: Outcome, generation: int, now: datetime
) -> tuple[object, ...]:
    conditions = base.conditions
    for kind in (ConditionType.SUSPENDED, ConditionType.ADMITTED, ConditionType.RUNNING):
        if base.condition(kind) is None:
            why = (
                (Reason.NOT_SUSPENDED, "")
                if kind is ConditionType.SUSPENDED
                else (outcome.reason, outcome.message)
            )
            conditions = with_condition(conditions, condition(kind, False, why, now))
    for kind, value, reason, message in (*_overtaken(base, outcome), *outcome.conditions):
        new = condition(kind, value, (reason, message), now)
        conditions = with_condition(conditions, new.model_copy(update={"observed_generation": generation}))
    return conditions


def _overtaken(
    base: TrainingJobStatus, outcome: Outcome
) -> tuple[tuple[ConditionType, bool, Reason, str], ...]:
    """Conditions that are True and that this outcome's phase contradicts."""
    found = []
    if outcome.phase is not Phase.RUNNING and base.is_true(ConditionType.RUNNING):
        found.append((ConditionType.RUNNING, False, outcome.reason, outcome.message))
    if outcome.phase is not Phase.SUSPENDED and stop_is_ordered(base):
        found.append((ConditionType.SUSPENDED, False, Reason.RESUMED, "waits for nodes"))
    return tuple(found)


def write_due(
    before: TrainingJobStatus,
    after: TrainingJobStatus,
    since_last_write: timedelta,
    unwritten: timedelta = timedelta(0),
) -> bool:
    """Whether `after` must be written now: at once for transitions, every 10 s for progress and ledger.

    What a gang passes through on its way to running is written when it lasts. `unwritten`: for how long there
    has been a difference that `is_passing` calls so.
    """
    if before == after:
        return False
    if hard(before) == hard(after):
        return since_last_write >= SOFT_INTERVAL
    return not is_passing(before, after) or unwritten >= PASSING_INTERVAL


def is_passing(before: TrainingJobStatus, after: TrainingJobStatus) -> bool:
    """Whether the two tell only different stations between a fault and running, of the same round."""
    if before.phase not in _ON_THE_WAY | {Phase.RUNNING} or after.phase not in _ON_THE_WAY:
        return False
    return _without_station(hard(before)) == _without_station(hard(after)) and hard(before) != hard(after)


def _without_station(status: TrainingJobStatus) -> TrainingJobStatus:
    conditions = tuple(c for c in status.conditions if c.type != ConditionType.RUNNING)
    blank = {"phase": None, "reason": None, "nodes": NodeCounts(), "conditions": conditions}
    return status.model_copy(update=blank)


def hard(status: TrainingJobStatus) -> TrainingJobStatus:
    """The status without what moves all the time."""
    empty = TrainingJobStatus()
    blank: dict[str, object] = {name: getattr(empty, name) for name in SOFT_FIELDS}
    bare: dict[str, object] = {"stage_seconds": {}, "gpu_seconds_lost": None}
    blank["incidents"] = tuple(i.model_copy(update=bare) for i in status.incidents)
    blank["stragglers"] = tuple(s.model_copy(update={"ratio": 0.0}) for s in status.stragglers)
    blank["message"] = ""
    blank["conditions"] = tuple(c.model_copy(update={"message": ""}) for c in status.conditions)
    return status.model_copy(update=blank)

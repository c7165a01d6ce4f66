"""The one door to set a condition."""

from datetime import datetime

from rerail_api.status import Condition, ConditionStatus, ConditionType, TrainingJobStatus

from .reasons import Reason

ORDER = tuple(ConditionType)


def with_condition(conditions: tuple[Condition, ...], new: Condition) -> tuple[Condition, ...]:
    """`conditions` with `new` in place of its type; the transition time moves only when the status does."""
    old = next((c for c in conditions if c.type is new.type), None)
    if old is not None and old.status is new.status:
        new = new.model_copy(update={"last_transition_time": old.last_transition_time})
    rest = [c for c in conditions if c.type is not new.type]
    return tuple(sorted([*rest, new], key=lambda c: ORDER.index(c.type)))


def condition(kind: ConditionType, value: bool, why: tuple[Reason, str], now: datetime) -> Condition:
    """A condition with its reason and sentence."""
    reason, message = why
    return Condition(
        type=kind,
        status=ConditionStatus.TRUE if value else ConditionStatus.FALSE,
        reason=reason.value,
        message=message,
        last_transition_time=now,
    )


def stop_is_ordered(status: TrainingJobStatus) -> bool:
    """Whether a suspension has been written; the condition turns True only once nothing runs any more."""
    told = status.condition(ConditionType.SUSPENDED)
    return told is not None and told.reason in (Reason.SUSPENDING, Reason.SUSPENDED)

"""Whether a failure is answered by a restart or by the end: the user's rules, then the two budgets.

Poison: the same fingerprint at the same progress point. Rate: charged restarts since the last progress.
What is free and what is no poison, the table in `taxonomy` says.
"""

import signal
from dataclasses import dataclass
from datetime import timedelta

from rerail_api.spec import ExitCodeOperator, FailurePolicy, FailureRule, RuleAction
from rerail_api.status import IncidentClass, RestartCounts, SamePoint, TrainingJobStatus

from .evidence import Fault
from .reasons import Reason
from .taxonomy import Action, Cause

BEFORE_FIRST_STEP_LIMIT = 2
"""The limit when no step was ever made and every rank died with the same code and last line."""
LONG_ROUND = timedelta(minutes=30)
"""A round of a program that reports no steps counts as progress when it ran for this long."""
FIRST_DELAY = timedelta(seconds=5)
LONGEST_DELAY = timedelta(seconds=300)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a root cause leads to. `end` None: restart, not before `delay` has passed."""

    kind: IncidentClass
    charged: bool
    fingerprint: str
    same_point: SamePoint
    restarts: RestartCounts
    action: Action
    rule: str | None = None
    end: Reason | None = None
    why: str = ""


def judge(
    policy: FailurePolicy, status: TrainingJobStatus, root: Fault, step: int | None, everywhere: bool
) -> Verdict:
    """The verdict on `root` at progress point `step` (None: no step was ever made).

    `everywhere`: every rank of every node ended with the same code and last line.
    """
    rule = _matching_rule(policy, root)
    charged = not root.row.free if rule is None else rule.action is not RuleAction.IGNORE
    mark = fingerprint(root)
    point = _same_point(status.same_point, mark, step, root)
    moved = has_moved(status, step) or (step is None and _ran_long(status, root))
    if moved and point.count > 1:
        point = point.model_copy(update={"count": 1})
    since = (0 if moved else status.restarts.since_progress) + (1 if charged else 0)
    restarts = RestartCounts(
        total=status.restarts.total + 1,
        charged=status.restarts.charged + (1 if charged else 0),
        since_progress=since,
    )
    end, why = _fatal(root, rule)
    if end is None and root.row.poison is not None:
        end, why = _exhausted(root, point, everywhere, root.row.poison)
    if end is None and since > policy.max_restarts:
        end, why = (
            Reason.RESTART_BUDGET_EXHAUSTED,
            f"{root.message}: charged failure {since} without progress, maxRestarts is {policy.max_restarts}",
        )
    # A rule that lets a fatal code go on lets it go on where it is.
    action = root.row.action_at(point.count) if root.row.action is not Action.FAIL else Action.IN_PLACE
    if end is not None:
        restarts, action = status.restarts, Action.FAIL
    name = rule.name if rule is not None else None
    return Verdict(root.kind, charged, mark, point, restarts, action, name, end, why)


def fingerprint(root: Fault) -> str:
    """Class, code or signal, and exception type of a failure, in one word."""
    parts = [root.row.mark]
    if root.exit is not None:
        if root.exit.signal is not None:
            parts.append(signal_name(root.exit.signal))
        elif root.exit.exit_code is not None:
            parts.append(str(root.exit.exit_code))
        if root.exit.exception:
            parts.append(root.exit.exception)
    return "/".join(parts)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def delay_before(status: TrainingJobStatus) -> timedelta:
    """How long after the newest incident its restart is held back: nothing at first, then doubling."""
    count = status.same_point.count if status.same_point is not None else 1
    if count < 2:
        return timedelta(0)
    doublings = min(count - 2, 10)
    return min(FIRST_DELAY * (1 << doublings), LONGEST_DELAY)


def _matching_rule(policy: FailurePolicy, root: Fault) -> FailureRule | None:
    if root.exit is None or root.cause is Cause.ORDERED:
        return None
    code = root.exit.exit_code
    if root.exit.signal is not None:
        code = 128 + root.exit.signal
    if code is None or code == 0:
        return None
    for rule in policy.rules:
        listed = code in rule.on_exit_codes.values
        if listed is (rule.on_exit_codes.operator is ExitCodeOperator.IN):
            return rule
    return None


def _same_point(before: SamePoint | None, mark: str, step: int | None, root: Fault) -> SamePoint:
    if root.row.poison is None:
        # A preemption in between neither adds to the count of a repeating failure nor wipes it out.
        return before if before is not None else SamePoint(fingerprint=mark, step=step, count=0)
    if before is not None and before.fingerprint == mark and before.step == step:
        return SamePoint(fingerprint=mark, step=step, count=before.count + 1)
    return SamePoint(fingerprint=mark, step=step, count=1)


def has_moved(status: TrainingJobStatus, step: int | None) -> bool:
    """Whether the job got further than at its last incident."""
    if step is None or not status.incidents:
        return False
    last = status.incidents[-1].progress_step
    return last is None or step > last


def _ran_long(status: TrainingJobStatus, root: Fault) -> bool:
    """Whether the round that `root` ended ran long enough to count as progress without any report of it."""
    times = [status.start_time, status.admitted_time]
    if status.incidents:
        last = status.incidents[-1]
        if last.resolved_time is None:
            return False  # the gang never ran again since
        times.append(last.resolved_time)
    known = [t for t in times if t is not None]
    return status.start_time is not None and root.at - max(known) >= LONG_ROUND


def _fatal(root: Fault, rule: FailureRule | None) -> tuple[Reason | None, str]:
    if rule is not None and rule.action is RuleAction.FAIL_JOB:
        return Reason.USER_RULE, f"rule {rule.name!r} ends the job: {root.message}"
    if rule is None and root.row.action is Action.FAIL:
        return Reason.USER_ERROR, f"a restart cannot help: {root.message}"
    return None, ""


def _exhausted(root: Fault, point: SamePoint, everywhere: bool, limit: int) -> tuple[Reason | None, str]:
    if point.step is None and everywhere:
        limit = min(limit, BEFORE_FIRST_STEP_LIMIT)
    if point.count < limit:
        return None, ""
    where = f"at step {point.step}" if point.step is not None else "before the first step"
    return (
        Reason.REPEATED_FAILURE,
        f"{root.message}: the same failure {where} for the {_nth(point.count)} time",
    )


def _nth(count: int) -> str:
    return {2: "second", 3: "third"}.get(count, f"{count}th")

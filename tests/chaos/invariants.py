"""What holds of every job that ended well, however often it was disturbed. One list for all rings of chaos.

Whoever lived a life fills in an `Account` with what was seen from outside; `broken` says in sentences what does
not hold. It knows neither clusters nor processes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOLERANCE_SECONDS = 0.1
"""To which a ledger sums up."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """How one round began: the step that it continued from, and the newest committed step at that moment."""

    round: int
    step: int
    committed: int


@dataclass(frozen=True, slots=True)
class Account:
    """One life as it was seen. What a ring cannot see is None, and is not asked for."""

    status: Mapping[str, Any]
    """The job's status as JSON: of the API server, or of the report of `rerail run`."""
    restarts: int | None = None
    """How many restarts were caused, each counted once; None where a blow may have met a gang that did not run."""
    most_restarts: int | None = None
    """How many there may be at most."""
    lived: float | None = None
    """Seconds from the job's creation to its end, by the clock of the observer."""
    slack: float = TOLERANCE_SECONDS
    """How much the observer's clock may differ from the ledger's."""
    losses: Sequence[tuple[int, float]] = ()
    """(step, loss) of every step that was made, again where it was made again."""
    reference: Mapping[int, float] | None = None
    """Loss of every step of a life that nothing disturbed."""
    resumptions: Sequence[Resumption] = ()
    pods: Sequence[str] = ()
    """What is left of it after its end and the tidying-up."""
    processes: Sequence[int] = ()


def broken(account: Account) -> list[str]:
    """Every promise that was not kept; empty when all were."""
    return [
        *ledger_sums(account),
        *restarts_are_counted_once(account),
        *losses_agree(account),
        *no_committed_step_is_lost(account.resumptions),
        *nothing_is_left(account.pods, account.processes),
    ]


def ledger_sums(account: Account) -> Iterable[str]:
    """Every second is booked once: the parts sum to the wall clock, those of an incident to its length."""
    ledger = account.status.get("ledger") or {}
    parts = ledger.get("productiveSeconds", 0.0) + sum((ledger.get("lostSeconds") or {}).values())
    wall = ledger.get("wallSeconds", 0.0)
    if abs(parts - wall) >= TOLERANCE_SECONDS:
        yield f"the ledger's parts sum to {parts:.3f} s, its wall clock says {wall:.3f} s"
    if account.lived is not None and abs(wall - account.lived) > account.slack:
        yield f"the job lived for {account.lived:.3f} s, its ledger says {wall:.3f} s"


def restarts_are_counted_once(account: Account) -> Iterable[str]:
    """Neither lost nor doubled, each with its incident, numbered without a gap."""
    status = account.status
    total = (status.get("restarts") or {}).get("total", 0)
    numbers = [incident["number"] for incident in status.get("incidents") or ()]
    newest = numbers[-1] if numbers else 0
    fatal = newest == total + 1 and status.get("phase") == "Failed"
    if newest != total and not fatal:
        yield f"{total} restarts are counted, the newest incident is number {newest}"
    if numbers != list(range(newest - len(numbers) + 1, newest + 1)):
        yield f"incidents are numbered {numbers}"
    if total > max(0, status.get("round", 0) - 1):
        yield f"{total} restarts in {status.get('round', 0)} rounds"
    if account.restarts is not None and total != account.restarts:
        yield f"{account.restarts} restarts were caused, {total} are counted"
    if account.most_restarts is not None and newest > account.most_restarts:
        yield f"{account.most_restarts} blows were dealt, {newest} interruptions are counted"


def losses_agree(account: Account) -> Iterable[str]:
    """The loss of every step is that of the uninterrupted run, whenever it was made, and no step is missing."""
    if account.reference is None:
        return
    for step, loss in account.losses:
        expected = account.reference.get(step)
        if expected is None:
            yield f"step {step} was made, which the uninterrupted run has not"
        elif loss != expected:
            yield f"the loss of step {step} is {loss!r}, uninterrupted {expected!r}"
    missing = sorted(account.reference.keys() - {step for step, _ in account.losses})
    if missing and account.status.get("phase") == "Complete":
        yield f"these steps were never made: {missing}"


def no_committed_step_is_lost(resumptions: Iterable[Resumption]) -> Iterable[str]:
    """No round continues from before a step that was committed when it began, and rounds only rise."""
    last = 0
    for begun in resumptions:
        if begun.step < begun.committed:
            yield f"round {begun.round} continued from step {begun.step}, step {begun.committed} was committed"
        if begun.round <= last:
            yield f"round {begun.round} began after round {last}"
        last = begun.round


def nothing_is_left(pods: Sequence[str], processes: Sequence[int]) -> Iterable[str]:
    """No orphan."""
    if pods:
        yield f"pods are left: {', '.join(pods)}"
    if processes:
        yield f"processes are left: {', '.join(map(str, processes))}"

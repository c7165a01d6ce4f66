"""The end of an incident: when it is over, and how it is told what it was, what was done and what it cost.

Most end when steps are made again. One that the end of the job, a suspension or another failure cuts short is
told as well: every incident whose cost is final is told of once.
"""

from datetime import datetime

from rerail_api.status import Incident, Phase, Stage, TrainingJobStatus

from .gang import Seat
from .ledger import TIMES_OF_AN_INCIDENT
from .plan import Note
from .reasons import Reason
from .world import Progress

SHOWN_SECONDS = 0.05
"""A stage that took less is not worth a word."""

_CUT_SHORT = {
    Phase.COMPLETE: "the job completed after",
    Phase.FAILED: "the job failed after",
    Phase.SUSPENDED: "the job was suspended after",
}


def is_over(incidents: tuple[Incident, ...], status: TrainingJobStatus, stage: Stage) -> bool:
    """Whether the gang is productive again, in a later round than the one that the open incident ended."""
    if not incidents or incidents[-1].resolved_time is not None or stage is not Stage.PRODUCTIVE:
        return False
    return status.released_round > incidents[-1].round


def left_open(incidents: tuple[Incident, ...], now: datetime) -> dict[str, object]:
    """Fields of the status that close an open incident: what ends it now is not its recovery."""
    if not incidents or incidents[-1].resolved_time is not None:
        return {}
    return {"incidents": (*incidents[:-1], incidents[-1].model_copy(update={"resolved_time": now}))}


def cut_short(done: Incident, phase: Phase) -> Note:
    """What is told of an incident that something else has ended; `phase`: of the job from there on.

    A job that has completed is past every point at which it was interrupted.
    """
    parts = [f"{_CUT_SHORT.get(phase, 'interrupted anew after')} {_took(done):.1f} s{_stages(done)}"]
    reason = Reason.RESOLVED if phase is Phase.COMPLETE else Reason.UNRESOLVED
    return Note(reason, _line(done, [*parts, *_price(done)]))


def closed(
    last: Incident, told: Progress | None, taken: tuple[Seat, ...], at: datetime
) -> tuple[Incident, Note]:
    """The incident as it ended `at`, and the note that tells of it; its stages are booked already."""
    resumed = told.resumed_from if told is not None else None
    lost = None
    if last.progress_step is not None and resumed is not None:
        lost = max(0, last.progress_step - resumed)
    done = last.model_copy(update={"resolved_time": at, "resumed_step": resumed, "steps_lost": lost})
    return done, Note(Reason.RESOLVED, in_words(done, taken))


def in_words(done: Incident, taken: tuple[Seat, ...]) -> str:
    """One line: what happened to whom, how long each stage of the recovery took, what was done, what it cost.

    The line of the restart, when the incident began, has the evidence.
    """
    parts = [f"recovered in {_took(done):.1f} s{_stages(done)}", _done(done, taken)]
    if done.resumed_step is not None:
        parts.append(f"from step {done.resumed_step}")
    if done.steps_lost:
        parts.append(f"{done.steps_lost} step{'' if done.steps_lost == 1 else 's'} made again")
    return _line(done, [*parts, *_price(done)])


def _line(done: Incident, parts: list[str]) -> str:
    return f"incident {done.number} ({_whom(done)}) over: " + "; ".join(parts)


def _price(done: Incident) -> list[str]:
    return [f"{done.gpu_seconds_lost / 3600:.3g} GPU-hours"] if done.gpu_seconds_lost else []


def _took(done: Incident) -> float:
    if done.start_time is None or done.resolved_time is None:
        return sum(done.stage_seconds.values())
    return (done.resolved_time - done.start_time).total_seconds()


def _stages(done: Incident) -> str:
    spent = [(stage, done.stage_seconds.get(stage, 0.0)) for stage in TIMES_OF_AN_INCIDENT]
    words = [f"{stage} {seconds:.1f}" for stage, seconds in spent if seconds >= SHOWN_SECONDS]
    return f" ({', '.join(words)})" if words else ""


def _whom(done: Incident) -> str:
    who = [str(done.class_)]
    if done.rank is not None:
        who.append(f"rank {done.rank}")
    elif done.node_rank is not None:
        who.append(f"node rank {done.node_rank}")
    if done.node is not None:
        who.append(f"node {done.node}")
    if done.pod is not None:
        who.append(f"pod {done.pod}")
    return ", ".join(who)


def _done(done: Incident, taken: tuple[Seat, ...]) -> str:
    """In place where all pods are those of before; else which pods are new to their node ranks."""
    new = [seat.pod for seat in taken if seat.pod is not None and seat.pod.since_round > done.round]
    if not new:
        return "in place"
    more = f" and {len(new) - 1} more" if len(new) > 1 else ""
    return f"with {new[0].name} on {new[0].node}{more} instead"

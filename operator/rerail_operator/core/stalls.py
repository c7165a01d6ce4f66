"""What saves cost: the seconds for which a program says that they held its steps up.

They are told once a save is over, when its time has been booked as stepping: from there they are taken. What
was booked as a stall already, because the program named the phase, counts against them: no second is booked
twice.
"""

from dataclasses import dataclass

from rerail_api.status import Incident, Ledger, Stage, TrainingJobStatus
from rerail_api.v1alpha1 import TrainingJob

from .ledger import charge, ratio
from .progress import newest
from .world import World


def settled(world: World, job: TrainingJob) -> TrainingJob:
    """The job with the stalls of the round released last taken from what was booked as its steps before.

    Also when it has ended meanwhile: the last beats of a round come after its failure, and some when the next
    round is open already.
    """
    status = job.status
    if status.ledger.stage is Stage.CHECKPOINT_STALL:
        return job  # the time since the last booking is part of it
    told = newest(world, status.released_round)
    owed = _owed(status.ledger, told.stall_seconds) if told is not None else 0.0
    if owed <= 0:
        return job
    stepped = _stepped(status)
    from_steps = min(owed, stepped.productive, status.ledger.productive_seconds)
    from_replay = min(owed - from_steps, stepped.replay, status.ledger.lost_seconds.get(Stage.REPLAY, 0.0))
    if from_steps + from_replay <= 0:
        return job
    moved = {Stage.REPLAY: -from_replay, Stage.CHECKPOINT_STALL: from_replay}
    changes = {
        "ledger": _moved(status.ledger, from_steps, from_replay),
        "incidents": tuple(charge(i, moved) if i is stepped.of else i for i in status.incidents),
    }
    return job.model_copy(update={"status": status.model_copy(update=changes)})


def with_told_stall(before: Ledger, after: Ledger, told: float | None) -> Ledger:
    """`after`, the next ledger, with the stalls taken from the steps that were booked since `before`.

    `told`: seconds since the round began; None from a program that does not say. For what is still owed then
    `settled` looks further back.
    """
    owed = _owed(after, told)
    replayed = after.lost_seconds.get(Stage.REPLAY, 0.0) - before.lost_seconds.get(Stage.REPLAY, 0.0)
    stepped = max(0.0, after.productive_seconds - before.productive_seconds)
    if owed <= 0 or stepped + replayed <= 0:
        return after
    from_steps = min(owed, stepped)
    return _moved(after, from_steps, min(owed - from_steps, replayed))


def _owed(ledger: Ledger, told: float | None) -> float:
    booked = ledger.lost_seconds.get(Stage.CHECKPOINT_STALL, 0.0) - ledger.stall_before_round
    return (told or 0.0) - booked


def _moved(ledger: Ledger, from_steps: float, from_replay: float) -> Ledger:
    productive, lost = ledger.productive_seconds - from_steps, dict(ledger.lost_seconds)
    stalled = lost.get(Stage.CHECKPOINT_STALL, 0.0)
    lost[Stage.CHECKPOINT_STALL] = stalled + from_steps + from_replay
    if from_replay:
        lost[Stage.REPLAY] -= from_replay
    changes = {
        "productive_seconds": productive,
        "lost_seconds": lost,
        "wall_seconds": productive + sum(lost.values()),
        "ettr": ratio(productive, lost),
    }
    return ledger.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class _Stepped:
    """Seconds that were booked as steps of the round released last, at most; replay is an incident's."""

    productive: float = 0.0
    replay: float = 0.0
    of: Incident | None = None


def _stepped(status: TrainingJobStatus) -> _Stepped:
    until, incidents = status.ledger.stage_since, status.incidents
    if incidents and incidents[-1].resolved_time is None and incidents[-1].round >= status.released_round:
        # It ended that round: what it was like before it, counts.
        until, incidents = incidents[-1].start_time, incidents[:-1]
    begun = [status.start_time, status.round_time if status.released_round == status.round else None]
    if incidents:
        last = incidents[-1]
        if last.resolved_time is None or (until is not None and last.resolved_time >= until):
            return _Stepped(replay=last.stage_seconds.get(Stage.REPLAY, 0.0), of=last)
        begun.append(last.resolved_time)
    known = [at for at in begun if at is not None]
    if until is None or not known:
        return _Stepped()
    return _Stepped(productive=max(0.0, (until - max(known)).total_seconds()))

"""The ledger: every second of a job's life is booked to exactly one stage, on the leader's clock."""

from collections.abc import Mapping
from datetime import datetime

from rerail_api.contract import AgentState, ProgressPhase
from rerail_api.status import (
    STAGES_OUTSIDE_ETTR,
    Incident,
    Ledger,
    Stage,
    TrainingJobStatus,
)

from .gang import Seat
from .world import Progress

TIMES_OF_AN_INCIDENT = (
    Stage.DETECTION,
    Stage.DECISION,
    Stage.STOP,
    Stage.PLACEMENT,
    Stage.START,
    Stage.RENDEZVOUS,
    Stage.LOAD,
    Stage.COMPILE,
    Stage.REPLAY,
    Stage.CHECKPOINT_STALL,
    Stage.QUEUED,
    Stage.SUSPENDED,
)
"""The stages in the order in which an interruption goes through them."""

_NOT_DEAD = STAGES_OUTSIDE_ETTR | {Stage.REPLAY, Stage.CHECKPOINT_STALL}


def advance(
    before: Ledger, created: datetime, now: datetime, next_stage: Stage, fault_at: datetime | None = None
) -> Ledger:
    """Book the time since the last booking to the stage that ran, and enter `next_stage`.

    `fault_at`: a failure that has just been noticed; what passed since then was detection, whatever the
    ledger believed. The parts always sum to `now - created`.
    """
    since = before.stage_since or created
    stage = before.stage or Stage.QUEUED
    now = max(now, since)
    turn = now
    if fault_at is not None and stage not in STAGES_OUTSIDE_ETTR:
        turn = min(max(fault_at, since), now)
    booked = [(stage, (turn - since).total_seconds()), (Stage.DETECTION, (now - turn).total_seconds())]
    booked = [(s, seconds) for s, seconds in booked if seconds > 0]
    lost = dict(before.lost_seconds)
    productive = before.productive_seconds
    for spent_on, seconds in booked:
        if spent_on is Stage.PRODUCTIVE:
            productive += seconds
        else:
            lost[spent_on] = lost.get(spent_on, 0.0) + seconds
    split = {
        "wall_seconds": productive + sum(lost.values()),
        "productive_seconds": productive,
        "lost_seconds": lost,
        "stage": next_stage,
        "stage_since": now,
        "ettr": ratio(productive, lost),
    }
    return before.model_copy(update=split)


def ratio(productive: float, lost: Mapping[Stage, float]) -> float:
    """ETTR, rounded: it is a printed column, and the seconds beside it are exact."""
    counted = productive + sum(seconds for stage, seconds in lost.items() if stage not in STAGES_OUTSIDE_ETTR)
    return round(min(1.0, productive / counted), 4) if counted > 0 else 0.0


def stood_still(before: Ledger, since: datetime) -> Ledger:
    """The ledger without the productive seconds that were booked after the last step: they were detection."""
    if before.stage is not Stage.PRODUCTIVE or before.stage_since is None:
        return before
    wrong = min((before.stage_since - since).total_seconds(), before.productive_seconds)
    if wrong <= 0:
        return before
    lost = dict(before.lost_seconds)
    lost[Stage.DETECTION] = lost.get(Stage.DETECTION, 0.0) + wrong
    return before.model_copy(
        update={"productive_seconds": before.productive_seconds - wrong, "lost_seconds": lost}
    )


def lost_between(before: Ledger, after: Ledger) -> dict[Stage, float]:
    """What was lost from one ledger to a later one of the same job, by stage."""
    lost = {
        stage: seconds - before.lost_seconds.get(stage, 0.0) for stage, seconds in after.lost_seconds.items()
    }
    return {stage: seconds for stage, seconds in lost.items() if seconds > 0}


def charge(incident: Incident, lost: Mapping[Stage, float]) -> Incident:
    """The incident with these seconds added to what it cost."""
    spent = dict(incident.stage_seconds)
    for stage, seconds in lost.items():
        spent[stage] = spent.get(stage, 0.0) + seconds
    return incident.model_copy(update={"stage_seconds": spent})


def newly_over(written: tuple[Incident, ...], incidents: tuple[Incident, ...]) -> tuple[Incident, ...]:
    """Incidents of which it was not written yet that they are over or superseded: their cost is final now."""
    known = {incident.number for incident in _final(written)}
    return tuple(incident for incident in _final(incidents) if incident.number not in known)


def _final(incidents: tuple[Incident, ...]) -> tuple[Incident, ...]:
    return incidents if incidents and incidents[-1].resolved_time is not None else incidents[:-1]


def dead_seconds(incident: Incident) -> float:
    """What it took until steps were made again, while nodes were held."""
    return sum(seconds for stage, seconds in incident.stage_seconds.items() if stage not in _NOT_DEAD)


def with_cost(ledger: Ledger, over: tuple[Incident, ...]) -> Ledger:
    """The ledger with these, whose cost is final now, in its sums over all interruptions."""
    by_class = dict(ledger.lost_seconds_by_class)
    for incident in over:
        by_class[incident.class_] = by_class.get(incident.class_, 0.0) + held_seconds(incident)
    dead = ledger.dead_seconds + sum(map(dead_seconds, over))
    return ledger.model_copy(update={"dead_seconds": dead, "lost_seconds_by_class": by_class})


def held_seconds(incident: Incident) -> float:
    """What it took, replay and saves included, while nodes were held."""
    return sum(s for stage, s in incident.stage_seconds.items() if stage not in STAGES_OUTSIDE_ETTR)


def priced(incidents: tuple[Incident, ...], accelerators: int) -> tuple[Incident, ...]:
    """The incidents with what the last two, which alone still change, cost a gang of so many accelerators."""
    if not accelerators:
        return incidents
    return (*incidents[:-2], *(_priced(incident, accelerators) for incident in incidents[-2:]))


def _priced(incident: Incident, accelerators: int) -> Incident:
    return incident.model_copy(update={"gpu_seconds_lost": round(held_seconds(incident) * accelerators, 1)})


def running_stage(status: TrainingJobStatus, progress: Progress | None, highest: int | None) -> Stage:
    """The stage of a gang whose ranks all run, by what its program says of itself."""
    reports = status.progress.step is not None or status.ledger.highest_step is not None
    if progress is None:
        # A program that has never reported: its running is all that can be known of it.
        return Stage.LOAD if reports else Stage.PRODUCTIVE
    if progress.phase == ProgressPhase.COMPILE:
        return Stage.COMPILE
    if progress.phase == ProgressPhase.SAVE:
        return Stage.CHECKPOINT_STALL
    if progress.phase == ProgressPhase.INIT or progress.step is None:
        return Stage.LOAD
    return Stage.REPLAY if _makes_again(status, progress.step, highest) else Stage.PRODUCTIVE


def _makes_again(status: TrainingJobStatus, step: int, highest: int | None) -> bool:
    """Whether steps after `step` were made before. `highest` may be of this very round; only below it is that
    sure where an incident does not say that there was an interruption."""
    if not status.incidents or highest is None:
        return False
    last = status.incidents[-1]
    if last.resolved_time is None:
        return step <= highest
    return last.resumed_step is None and step < highest  # a suspension cut its recovery short


def gathering_stage(taken: tuple[Seat, ...], round_: int) -> Stage:
    """The stage of a gang on its way to the barrier: the least advanced seat decides."""
    if any(not seat.filled or not (seat.pod and seat.pod.bound) for seat in taken):
        return Stage.PLACEMENT
    if any(_stops(seat, round_) for seat in taken):
        return Stage.STOP
    if any(seat.agent is None or not seat.agent.connected for seat in taken):
        return Stage.START
    return Stage.RENDEZVOUS


def _stops(seat: Seat, round_: int) -> bool:
    agent = seat.agent
    return (
        agent is not None
        and agent.connected
        and agent.state is not AgentState.READY
        and (0 < agent.round < round_ or agent.state is AgentState.STOPPING)
    )

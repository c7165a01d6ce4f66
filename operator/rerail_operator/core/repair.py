"""From a fault to its answer: collect evidence, name the root, write the intent. The next pass acts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rerail_api.contract import LOG_LINES, STACKS_SECONDS
from rerail_api.status import (
    ConditionType,
    ExcludedNode,
    Incident,
    Phase,
    Rung,
    Stage,
)
from rerail_api.v1alpha1 import TrainingJob

from .climbing import room_elsewhere
from .ending import failed, with_incident
from .evidence import Fault, joined
from .gang import Seat
from .ladder import Case, Choice, rung, rungs_taken
from .outcome import Outcome
from .plan import AskStacks, Level, Note
from .progress import last_step
from .reasons import Reason
from .restarts import Verdict, judge, signal_name
from .rootcause import root_cause, still_collecting
from .standstill import Standstill, hang, unanswered
from .taxonomy import BROKEN, Action, Cause
from .waiting import excluding
from .world import World

ASKED = timedelta(seconds=STACKS_SECONDS)


def answer(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], faults: tuple[Fault, ...], now: datetime
) -> Outcome:
    """The gang's answer to its faults: wait for more evidence, restart, or end."""
    memory = {fault.key: fault.at for fault in faults}
    grace = timedelta(seconds=job.spec.checkpoint.grace_seconds)
    more = still_collecting(taken, faults, grace, world.leading_since, now)
    if more is not None:
        first = root_cause(faults)
        return Outcome(
            Phase.RESTARTING if job.status.start_time else Phase.STARTING,
            Reason.FAULT_SEEN,
            first.message,
            Stage.DETECTION,
            fault_at=min(f.at for f in faults),
            requeue_after=more,
            memory=memory,
            conditions=((ConditionType.RUNNING, False, Reason.FAULT_SEEN, first.message),),
            because="others may still report: the root is named when they had their second",
        )
    return _settle(world, job, taken, faults, now)


def answer_standstill(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], found: Standstill, now: datetime
) -> Outcome:
    """The answer to a hang: ask where the ranks stand, then restart; a step made meanwhile calls it off."""
    key = f"hang/{job.status.round}/{found.step}/{found.phase}"
    asked = world.memory.get(key, now)
    silent = unanswered(taken, found)
    left = asked + ASKED - now
    if not silent or left <= timedelta(0):
        return _settle(world, job, taken, (joined(world, hang(taken, found)),), now)
    return Outcome(
        Phase.RUNNING,
        Reason.FAULT_SEEN,
        f"{found}; {len(silent)} of {len(taken)} nodes have not said where their ranks stand",
        Stage.DETECTION,
        actions=(AskStacks(silent, job.status.round, found.step),),
        fault_at=found.since,
        stood_still=True,
        requeue_after=left,
        memory={key: asked},
        because="stacks first: they name the rank that the others wait for, and killing ends them",
    )


def _settle(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], faults: tuple[Fault, ...], now: datetime
) -> Outcome:
    """The root is named: restart, or end."""
    root = root_cause(faults)
    step = last_step(world, job)
    verdict = judge(job.spec.failure_policy, job.status, root, step, _everywhere(taken, faults))
    incident = _incident(job, root, verdict, step, now)
    if verdict.end is not None:
        end = failed(job, verdict.end, verdict.why, now, incident=incident)
        return replace(end, stood_still=root.stood_still)
    case = Case(root.node_rank, _moves(faults, verdict), verdict.charged, _everywhere(taken, faults))
    choice = _choice(world, job, case, now)
    if choice.rung is None:
        return failed(job, Reason.LADDER_EXHAUSTED, f"{root.message}: {choice.why}", now, incident=incident)
    left = _nodes_to_leave(faults, root, verdict.same_point.count, now)
    if choice.leave and root.node is not None:
        left.append(ExcludedNode(name=root.node, reason=choice.why, until=now + BROKEN))
    incident = incident.model_copy(update={"rung": choice.rung})
    changes: dict[str, object] = {"excluded_nodes": excluding(job, left, now)}
    if choice.rung is Rung.RECREATE:
        changes["gang_round"] = job.status.round + 1
    return _restart(job, root, verdict, _Repair(incident, choice, changes))


@dataclass(frozen=True, slots=True)
class _Repair:
    """What is done about an incident: by which rung, and what of the status it changes."""

    incident: Incident
    choice: Choice
    changes: Mapping[str, object]


def _moves(faults: tuple[Fault, ...], verdict: Verdict) -> bool:
    """Whether some pod cannot serve again where it is."""
    moving = (Action.NEW_POD, Action.OTHER_NODE)
    return verdict.action in moving or any(
        fault.row.action in moving or (fault.pod is not None and not fault.pod.alive) for fault in faults
    )


def _choice(world: World, job: TrainingJob, case: Case, now: datetime) -> Choice:
    """The rung of the ladder. Nodes are searched only where it matters whether one has room."""
    ladder = job.spec.failure_policy.ladder
    tried = rungs_taken(job.status.incidents, last_step(world, job), case.node_rank, now)
    if not case.moves and not case.alike and tried.in_place >= ladder.in_place.limit:
        case = replace(case, room=room_elsewhere(world, job, now) > 0)
    return rung(ladder, case, tried)


def _nodes_to_leave(faults: tuple[Fault, ...], root: Fault, count: int, now: datetime) -> list[ExcludedNode]:
    """The nodes that are to blame, each for as long as the table says; `count`: of the root at this point."""
    left = []
    for fault in faults:
        away = fault.row.away_at(max(1, count) if fault.sign is root.sign else 1)
        if away is not None and fault.node is not None:
            left.append(ExcludedNode(name=fault.node, reason=fault.message, until=now + away))
    return left


def _everywhere(taken: tuple[Seat, ...], faults: tuple[Fault, ...]) -> bool:
    """Whether every rank of every node ended in the same way."""
    exits = [f.exit for f in faults if f.exit is not None]
    if len(exits) < len(taken):
        return False
    ways = {(e.exit_code, e.signal, e.last_line) for e in exits}
    return len(ways) == 1 and all(e.same_on_all for e in exits)


def _restart(job: TrainingJob, root: Fault, verdict: Verdict, repair: _Repair) -> Outcome:
    status, incident = job.status, repair.incident
    cost = "charged" if verdict.charged else "free"
    message = (
        f"{root.message}; {incident.class_.value}, {cost}; round {status.round + 1}, {repair.choice.why}"
    )
    changes: dict[str, object] = {
        "round": status.round + 1,
        "restarts": verdict.restarts,
        "same_point": verdict.same_point,
        "incidents": with_incident(status.incidents, incident),
        **repair.changes,
    }
    return Outcome(
        Phase.RESTARTING,
        Reason.RESTARTING,
        message,
        Stage.DECISION,
        changes=changes,
        conditions=((ConditionType.RUNNING, False, Reason.RESTARTING, message),),
        notes=(Note(Reason.RESTARTING, message, Level.WARNING),),
        intent=True,
        fault_at=root.at,
        stood_still=root.stood_still,
        because=f"root cause {root.cause.name.lower()}: round and counts rise together, then the gang stops",
    )


def _incident(job: TrainingJob, root: Fault, verdict: Verdict, step: int | None, now: datetime) -> Incident:
    status, told, pod = job.status, root.exit, root.pod
    lines = told.lines[-LOG_LINES:] if told is not None else ()
    return Incident(
        number=(status.incidents[-1].number if status.incidents else 0) + 1,
        round=status.round,
        class_=verdict.kind,
        charged=verdict.charged,
        rule=verdict.rule,
        fingerprint=verdict.fingerprint,
        rank=told.rank if told is not None else None,
        node_rank=root.node_rank,
        pod=pod.name if pod is not None else None,
        node=pod.node if pod is not None else None,
        exit_code=told.exit_code if told is not None else None,
        signal=signal_name(told.signal) if told is not None and told.signal is not None else None,
        exception=told.exception if told is not None else None,
        message=root.message,
        log_lines=lines if root.cause is not Cause.ORDERED else (),
        progress_step=step,
        start_time=min(root.at, now),
    )

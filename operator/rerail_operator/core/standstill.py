"""No steps are made though every agent talks: since when, when that is a hang, and whose it is.

Ages are the agents', turned into the leader's time as they arrive: a change of leaders does not begin
the count anew. What an agent does not say for want of a connection is not judged here.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from rerail_api.contract import AgentState, ProgressPhase
from rerail_api.v1alpha1 import TrainingJob

from .evidence import Fault, finished_with_zero
from .gang import Seat
from .taxonomy import Sign
from .world import Exit, Place, Progress, World

SLOWEST_STEPS = 4
"""Times the 99th percentile of a step: no healthy step takes so long."""
AT_LEAST = timedelta(seconds=45)
"""Below it a pause of storage, network or garbage collection would count as a hang."""
PHASE = timedelta(minutes=30)
"""For phases that are not timed: longer than any load, compilation, save or evaluation that makes sense, and
what the shipped trainer's own watchdog grants."""
TOLD_PLACES = 20


@dataclass(frozen=True, slots=True)
class Standstill:
    """No step and no change of phase `since`; a hang once it is `due`."""

    step: int | None
    phase: str | None
    since: datetime
    limit: timedelta
    due: datetime

    def __str__(self) -> str:
        after = "before the first step" if self.step is None else f"after step {self.step}"
        during = f" in phase {self.phase}" if self.phase is not None else ""
        return f"nothing moves {after}{during} (limit {self.limit.total_seconds():.0f} s)"


def standstill(world: World, job: TrainingJob) -> Standstill | None:
    """Since when the released gang makes no step; None where none is to be expected."""
    status = job.status
    if status.released_round != status.round:
        return None
    told = [
        a.progress
        for a in world.agents.values()
        if a.progress is not None and a.progress.says_where and a.round == status.round
    ]
    limits = [limit for p in told if (limit := limit_of(p, job.spec.failure_policy.hang_seconds)) is not None]
    moves = [at for p in told if (at := p.moved_at or p.at) is not None]
    if not limits or not moves:
        return None
    since = max(moves)
    furthest = max(told, key=lambda p: -1 if p.step is None else p.step)
    limit = max(limits)
    return Standstill(furthest.step, furthest.phase, since, limit, since + limit)


def limit_of(told: Progress, hang_seconds: int | None) -> timedelta | None:
    """How long a program that says this may make no step; None: no telling."""
    if told.phase is None and (hang_seconds is None or told.step is None):
        return None
    if told.phase not in (None, ProgressPhase.TRAIN) or _has_made_all(told):
        return PHASE
    if hang_seconds is not None:
        return timedelta(seconds=hang_seconds)
    if told.step_seconds_p99 is None:
        return PHASE  # its first steps may compile
    return max(AT_LEAST, timedelta(seconds=SLOWEST_STEPS * told.step_seconds_p99))


def _has_made_all(told: Progress) -> bool:
    return told.step is not None and told.total_steps is not None and told.step >= told.total_steps


def all_heard(taken: Iterable[Seat], round_: int) -> bool:
    """Whether every agent is heard and has its ranks running or done: only then a hang is a hang."""
    return all(finished_with_zero(seat, round_) or seat.at(AgentState.RUNNING, round_) for seat in taken)


def unanswered(taken: Iterable[Seat], found: Standstill) -> tuple[str, ...]:
    """Pod UIDs whose agents have not said yet where their ranks stand."""
    return tuple(
        seat.pod.uid
        for seat in taken
        if seat.pod is not None
        and seat.agent is not None
        and seat.agent.state is AgentState.RUNNING
        and (seat.agent.stacks is None or seat.agent.stacks.step != found.step)
    )


@dataclass(frozen=True, slots=True)
class Blame:
    """Which ranks keep the others waiting, and what speaks for it; empty ranks: nothing does."""

    ranks: tuple[int, ...]
    why: str


def hang(taken: tuple[Seat, ...], found: Standstill) -> Fault:
    """The fault that a standstill is, with the rank that is named for it."""
    where: dict[int, int] = {}
    places: list[Place] = []
    for seat in taken:
        if seat.agent is not None and seat.agent.stacks is not None and seat.agent.stacks.step == found.step:
            places += seat.agent.stacks.places
            where.update({rank: seat.node_rank for place in seat.agent.stacks.places for rank in place.ranks})
    groups = _alike(places)
    blamed = blame(groups)
    if not blamed.ranks:
        blamed, where = _behind(taken)
    rank = blamed.ranks[0]
    seat = taken[where.get(rank, 0)]
    on = f" on {seat.pod.node}" if seat.pod is not None else ""
    lines = tuple(f"{spans(place.ranks)}: {_in_words(place)}" for place in groups[:TOLD_PLACES])
    told = Exit(exit_code=None, rank=rank, lines=lines)
    message = f"{found}: {spans(blamed.ranks)}{on} {blamed.why}"
    return Fault(Sign.NO_STEP, seat.node_rank, found.since, message, seat.pod, told)


def blame(groups: tuple[Place, ...]) -> Blame:
    """Of ranks grouped by where they stand, the fewest first: those that the others wait for."""
    everyone = sum(len(place.ranks) for place in groups)
    for state, words in (
        ("T", "stopped by a signal or a debugger"),
        ("D", "waiting in the kernel, for a disk or a driver"),
    ):
        ranks = _ranks(place for place in groups if place.state == state)
        if ranks and (state == "T" or len(ranks) < everyone):
            return Blame(ranks, words)
    waiting = [place for place in groups if _in_collective(place)]
    absent = _ranks(place for place in groups if _in_collective(place) is False)
    if waiting and absent:
        others, what = len(_ranks(waiting)), waiting[-1].waits or waiting[-1].where
        return Blame(absent, f"never entered the collective that {others} others wait in ({what})")
    if len(groups) > 1 and 2 * len(groups[-1].ranks) > everyone:
        odd = _ranks(groups[:-1])
        return Blame(odd, f"elsewhere than the {everyone - len(odd)} others ({_in_words(groups[0])})")
    return Blame((), "")


def _behind(taken: tuple[Seat, ...]) -> tuple[Blame, dict[int, int]]:
    """Where stacks tell nothing: the node whose own progress is least, else rank 0, which is a guess."""
    steps = [
        (agent.progress.step, seat.node_rank, agent.release.nproc if agent.release is not None else 1)
        for seat in taken
        if (agent := seat.agent) is not None
        and agent.progress is not None
        and agent.progress.step is not None
    ]
    (least, slowest, nproc), furthest = min(steps, default=(0, 0, 1)), max(steps, default=(0, 0, 1))[0]
    if least < furthest:
        rank = slowest * nproc
        return Blame((rank,), f"at step {least} where others are at {furthest}"), {rank: slowest}
    return Blame((0,), "named for want of evidence: nothing tells the ranks apart"), {0: 0}


def _in_collective(place: Place) -> bool | None:
    """Whether these ranks wait for others; None where nothing says so."""
    if place.waits or "distributed/distributed_c10d.py" in place.where:
        return True
    return False if place.told else None


def _alike(places: Iterable[Place]) -> tuple[Place, ...]:
    """The places of all nodes, alike ones as one; the fewest ranks first."""
    ranks: dict[tuple[str, str, str, bool], list[int]] = defaultdict(list)
    for place in places:
        ranks[place.state, place.where, place.waits, place.told] += place.ranks
    found = [Place(tuple(sorted(members)), *key) for key, members in ranks.items()]
    return tuple(sorted(found, key=lambda place: (len(place.ranks), place.ranks)))


def _ranks(places: Iterable[Place]) -> tuple[int, ...]:
    return tuple(sorted(rank for place in places for rank in place.ranks))


def _in_words(place: Place) -> str:
    said = [{"T": "stopped", "D": "waits in the kernel"}.get(place.state, "")]
    said += [place.where, f"waits in {place.waits}" if place.waits else ""]
    return ", ".join(word for word in said if word) or "says nothing"


def spans(ranks: tuple[int, ...]) -> str:
    """Sorted ranks as people write them: "rank 3", "ranks 0-2, 7"."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    told = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:8]]
    more = ", ..." if len(runs) > len(told) else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(told)}{more}"

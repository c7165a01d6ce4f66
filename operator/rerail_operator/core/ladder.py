"""The ladder of repairs: in place, swap, recreate, fail. The cheapest that can help, and when it is left.

A rung is left for the next one when it was taken too often without progress (its limit), or when the gang is
still not at the barrier a while after the round was opened (its deadline). No rung is taken that cannot be.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rerail_api.contract import AgentState
from rerail_api.spec import Ladder
from rerail_api.status import Incident, Rung, TrainingJobStatus

from .gang import Seat
from .restarts import LONG_ROUND


@dataclass(frozen=True, slots=True)
class Case:
    """What speaks for one rung or another.

    `moves`: a pod cannot serve again, or must leave its node; `alike`: every rank ended in the same way, so
    no node is to blame; `room`: a spare or another node could take the pod of the node rank that failed.
    """

    node_rank: int
    moves: bool = False
    charged: bool = False
    alike: bool = False
    room: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """A rung and why; `rung` None: none is left. `leave`: the node of the failed node rank is left out."""

    rung: Rung | None
    why: str
    leave: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """How often each rung was taken since the last progress: for this node rank, and for the whole gang."""

    in_place: int = 0
    swaps: int = 0
    recreations: int = 0


def rung(ladder: Ladder, case: Case, taken: Taken) -> Choice:
    """The rung for a failure that does not end the job by itself."""
    who = f"node rank {case.node_rank}"
    if case.moves:
        choice = Choice(Rung.SWAP, f"swap: a pod of the gang cannot serve again, first {who}")
    elif case.alike or taken.in_place < ladder.in_place.limit:
        return Choice(Rung.IN_PLACE, "in place: every pod can serve again")
    elif not case.room:
        return Choice(
            Rung.IN_PLACE, f"in place again, though {who} has failed before: no other node has room"
        )
    else:
        choice = Choice(
            Rung.SWAP,
            f"swap: {who} failed again after {_times(taken.in_place)} in place without progress",
            True,
        )
    if taken.swaps < ladder.swap.limit:
        return choice
    if taken.recreations < ladder.recreate.limit:
        return Choice(Rung.RECREATE, f"recreate: {who} was swapped {_times(taken.swaps)} without progress")
    if not case.charged:
        return choice  # what the infrastructure does never exhausts a job
    return Choice(None, f"the gang was recreated {_times(taken.recreations)} without progress")


def rungs_taken(incidents: Sequence[Incident], step: int | None, node_rank: int, now: datetime) -> Taken:
    """What was tried since the job last made progress, for a failure at `step` now."""
    in_place = swaps = recreations = 0
    after = now
    for incident in reversed(incidents):
        if _progressed(incident, step, after):
            break
        mine = incident.node_rank == node_rank
        in_place += mine and incident.rung is Rung.IN_PLACE
        swaps += mine and incident.rung is Rung.SWAP
        recreations += incident.rung is Rung.RECREATE
        after = incident.start_time or after
    return Taken(in_place, swaps, recreations)


def _progressed(incident: Incident, step: int | None, after: datetime) -> bool:
    """Whether the job got further between this incident and what came `after` it."""
    before = incident.progress_step
    if step is not None:
        return before is None or step > before
    resolved = incident.resolved_time
    return resolved is not None and after - resolved >= LONG_ROUND


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


# -- deadlines


def open_rung(status: TrainingJobStatus) -> Rung | None:
    """The rung on which the gang stands until the barrier of its round is released."""
    last = status.incidents[-1] if status.incidents else None
    if last is None or last.resolved_time is not None or status.released_round == status.round:
        return None
    if status.admitted_time is None or (last.start_time or status.admitted_time) < status.admitted_time:
        return None  # it was given up with its nodes: this is a start
    return last.rung


def deadline(ladder: Ladder, standing: Rung) -> timedelta:
    """How long the gang may stand on a rung until its agents are at the barrier."""
    seconds = {
        Rung.IN_PLACE: ladder.in_place.deadline_seconds,
        Rung.SWAP: ladder.swap.deadline_seconds,
        Rung.RECREATE: ladder.recreate.deadline_seconds,
    }
    return timedelta(seconds=seconds[standing])


def late(seats: Iterable[Seat], round_: int) -> tuple[Seat, ...]:
    """Who is not at the barrier."""
    return tuple(seat for seat in seats if not seat.at(AgentState.READY, round_))

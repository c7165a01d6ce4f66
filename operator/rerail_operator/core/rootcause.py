"""The root among the faults that were found, and how long to wait for more of them.

Order of causes (first wins): an ordered stop or a disruption; a lost node or container; a signal that the
agent did not send; a code of our table; the earliest other exit, by age since exit and never by comparing
clocks of two machines.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from rerail_api.contract import RECONNECT_JITTER_SECONDS

from .evidence import Fault
from .gang import Seat
from .taxonomy import Cause

COLLECT = timedelta(seconds=1)
"""After the first report of a round: how long others may still report before the root is named."""
CONTAINER_STATUS = timedelta(seconds=5)
"""How long the kubelet may take to say how a container ended whose agent has gone silent."""
COME_BACK = timedelta(seconds=RECONNECT_JITTER_SECONDS + 2)
"""How long after a change of leaders agents may be on their way, and with them word of the root."""


def root_cause(faults: Iterable[Fault]) -> Fault:
    """The one fault that the others follow from."""
    return min(faults, key=lambda f: (f.cause, f.at, f.node_rank))


def still_collecting(
    taken: Iterable[Seat],
    faults: tuple[Fault, ...],
    grace: timedelta,
    leading_since: datetime | None,
    now: datetime,
) -> timedelta | None:
    """How much longer to wait for more evidence before naming the root; None when enough is known.

    `grace`: how long ranks that were told to stop may take to save; the whole gang saves with them.
    """
    seats_ = tuple(taken)
    first = min(f.at for f in faults)
    if root_cause(faults).cause is Cause.ORDERED and _is_saving(seats_, faults):
        left = first + grace - now
        if left > timedelta(0):
            return left
    if root_cause(faults).cause is not Cause.ORDERED and _container_status_owed(seats_, faults):
        left = first + CONTAINER_STATUS - now
        if left > timedelta(0):
            return left
    if root_cause(faults).cause is not Cause.ORDERED and leading_since is not None:
        left = leading_since + COME_BACK - now
        if left > timedelta(0) and any(seat.filled and seat.agent is None for seat in seats_):
            return left
    if len(faults) == len(seats_) and not any(_has_more_to_tell(seat) for seat in seats_):
        return None
    # Ranks that have just saved on order may be ahead of the one that commits for all.
    left = max([first, *_ordered_exits(faults)]) + COLLECT - now
    return left if left > timedelta(0) else None


def _ordered_exits(faults: tuple[Fault, ...]) -> list[datetime]:
    return [f.exit.at for f in faults if f.cause is Cause.ORDERED and f.exit is not None and f.exit.at]


def _is_saving(taken: tuple[Seat, ...], faults: tuple[Fault, ...]) -> bool:
    """Whether a pod was told to go while its ranks, and those of all other nodes, are alive and well."""
    if any(fault.cause is not Cause.ORDERED for fault in faults):
        return False
    going = {fault.node_rank for fault in faults}
    agents = [seat.agent for seat in taken if seat.node_rank in going]
    return all(a is not None and a.connected and a.exit is None and a.ranks_alive > 0 for a in agents)


def _has_more_to_tell(seat: Seat) -> bool:
    """Ranks of a failed node that still live: how they end says whether all ended alike."""
    agent = seat.agent
    return agent is not None and agent.connected and agent.exit is not None and agent.ranks_alive > 0


def _container_status_owed(taken: tuple[Seat, ...], faults: tuple[Fault, ...]) -> bool:
    """A running pod whose agent is gone without a report: its container may have been killed."""
    told = {f.node_rank for f in faults}
    return any(
        seat.node_rank not in told and seat.filled and seat.agent is not None and not seat.agent.connected
        for seat in taken
    )

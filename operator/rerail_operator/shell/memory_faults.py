"""Faults that the in-memory cluster can be told to have: what a real API server does on a bad day."""

from dataclasses import dataclass
from enum import StrEnum

from rerail_operator.shell.cluster import ClusterError, Conflict, Kind, Unavailable


class FaultKind(StrEnum):
    LOST_REPLY = "LostReply"  # it happens, the answer does not arrive
    DROPPED = "Dropped"  # it does not happen, and nobody says so
    THROTTLED = "Throttled"  # 429 with Retry-After
    CONFLICT = "Conflict"  # somebody else was faster


@dataclass(slots=True)
class Fault:
    """The next `times` calls of `verb` on `kind` fail this way, after letting `skip` calls pass.

    An empty verb or None for the kind means any. Verbs: create, get, replace, patch, delete,
    delete_collection, list, watch.
    """

    what: FaultKind
    verb: str = ""
    kind: Kind | None = None
    times: int = 1
    skip: int = 0
    retry_after: float = 0.05

    def error(self) -> ClusterError:
        if self.what is FaultKind.CONFLICT:
            return Conflict("the object has been modified; please apply your changes to the latest version")
        if self.what is FaultKind.THROTTLED:
            return Unavailable("429: too many requests, please try again later", self.retry_after)
        return Unavailable("the connection was lost before the reply came")


class Faults:
    """The faults still to come, in the order in which they were added."""

    def __init__(self) -> None:
        self._pending: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._pending.append(fault)

    @property
    def pending(self) -> int:
        """How many faults have not struck yet."""
        return sum(fault.times for fault in self._pending)

    def take(self, verb: str, kind: Kind) -> Fault | None:
        """The fault that strikes this call, if any."""
        for fault in self._pending:
            if fault.verb not in ("", verb) or fault.kind not in (None, kind):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            if not fault.times:
                self._pending.remove(fault)
            return fault
        return None

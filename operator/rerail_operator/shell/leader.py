"""Who leads: one operator at a time, told apart by term."""

from typing import Protocol


class Leading(Protocol):
    """What everybody may ask of leadership."""

    @property
    def is_leader(self) -> bool: ...

    @property
    def term(self) -> int:
        """Rises with every leader; agents refuse a lower one than they have seen."""
        ...

    @property
    def leader_address(self) -> str:
        """host:port of the leader's coordinator; "" when nobody is known to lead."""
        ...


class AlwaysLeader:
    """`rerail run` and tests: nobody else is there."""

    is_leader = True
    term = 1
    leader_address = ""

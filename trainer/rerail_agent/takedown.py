"""Ending everything that runs: TERM, grace, KILL, and a sweep until no descendant is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from enum import Enum

from rerail_agent import proctree
from rerail_agent.ranks import Ranks


class Outcome(Enum):
    """How far a takedown has come."""

    UNDER_WAY = "under way"
    CLEAN = "clean"
    STUCK = "stuck"


class Takedown:
    """One ordered end of the ranks; stepped until it is clean. TERM is sent at most once.

    TERM goes to the rank processes only, never to their groups: DataLoader workers and a helper that is
    writing a checkpoint must outlive it. KILL goes to whatever is left.
    """

    def __init__(
        self, ranks: Ranks, cannot_stop: float, survivors: Callable[[], list[int]] | None = None
    ) -> None:
        self._ranks = ranks
        self._cannot_stop = cannot_stop
        self._survivors = survivors or (lambda: proctree.descendants(os.getpid()))
        self._kill_at: float | None = None
        self._killing_since: float | None = None

    def save(self, now: float, grace_seconds: float) -> None:
        """TERM now, KILL after the grace. Does nothing when an end is under way already."""
        if self._kill_at is not None or self._killing_since is not None:
            return
        self._kill_at = now + grace_seconds
        for rank in self._ranks.alive:
            if rank.pid is not None:
                proctree.kill(rank.pid, signal.SIGTERM)

    def abort(self, now: float) -> None:
        """KILL at once."""
        if self._killing_since is None:
            self._killing_since = now
            self._kill()

    def step(self, now: float) -> Outcome:
        """Carry on; a rank that exits within its grace is not touched."""
        if self._killing_since is None:
            if self._ranks.alive and now < (self._kill_at if self._kill_at is not None else now):
                return Outcome.UNDER_WAY
            self._killing_since = now
        if not self._kill():
            return Outcome.CLEAN
        return Outcome.STUCK if now - self._killing_since > self._cannot_stop else Outcome.UNDER_WAY

    def _kill(self) -> int:
        """KILL to all that is left; the number that were."""
        direct = [rank.pid for rank in self._ranks.alive if rank.pid is not None]
        for pid in direct:
            proctree.kill(pid)
            proctree.kill_session(pid)
        left = set(self._survivors()) | set(direct)
        for pid in left:
            proctree.kill(pid)
        return len(left)

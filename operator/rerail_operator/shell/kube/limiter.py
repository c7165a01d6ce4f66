"""How many requests may be under way at once: additive increase, multiplicative decrease.

Each quick reply opens the window a little; a 429 halves it and holds everything back for as long as the
server asks; slow replies close it gently. One limiter for all jobs, so that none starves the others.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and thresholds of the window."""

    lowest: float = 8.0
    highest: float = 128.0
    start: float = 32.0
    slow_seconds: float = 2.0
    settle_seconds: float = 1.0  # the window shrinks at most once in this time: one burst is one signal


class Limiter:
    """First come, first served."""

    def __init__(self, limits: Limits | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or Limits()
        self._monotonic = monotonic
        self._window = self._limits.start
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._shrunk = -self._limits.settle_seconds
        self._held_until = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def window(self) -> int:
        """Requests that may be under way now."""
        return int(self._window)

    @property
    def running(self) -> int:
        return self._running

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the window's places; waits for it, and for the end of a pause."""
        await self._enter()
        try:
            yield
        finally:
            self._running -= 1
            self._admit()

    def replied(self, seconds: float) -> None:
        """A request was answered after `seconds`."""
        if seconds > self._limits.slow_seconds:
            self._shrink(0.8)
        else:
            self._window = min(self._limits.highest, self._window + 1.0 / self._window)

    def throttled(self, retry_after: float) -> None:
        """The server has said 429: nothing new starts for `retry_after` seconds."""
        self._shrink(0.5)
        self._held_until = max(self._held_until, self._monotonic() + retry_after)

    def _shrink(self, factor: float) -> None:
        now = self._monotonic()
        if now - self._shrunk >= self._limits.settle_seconds:
            self._shrunk = now
            self._window = max(self._limits.lowest, self._window * factor)

    async def _enter(self) -> None:
        if not self._waiting and self._may_start():
            self._running += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._admit()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._running -= 1  # admitted and cancelled in the same moment: pass the place on
            elif place in self._waiting:
                self._waiting.remove(place)
            self._admit()
            raise

    def _may_start(self) -> bool:
        return self._running < self.window and self._monotonic() >= self._held_until

    def _admit(self) -> None:
        while self._waiting and self._may_start():
            place = self._waiting.popleft()
            if not place.done():
                self._running += 1
                place.set_result(None)
        wait = self._held_until - self._monotonic()
        if self._waiting and wait > 0 and self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_later(wait, self._resume)

    def _resume(self) -> None:
        self._alarm = None
        self._admit()

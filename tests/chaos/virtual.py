"""Virtual time for asyncio: when nothing is left to do now, the clock jumps to the next timer.

A minute of timers takes as long as the work in it. Deterministic: no thread, no socket, no real clock decides
what happens next.
"""

import asyncio
import random
import selectors
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class NothingEverHappens(Exception):
    """Every task waits for something that no timer will bring."""


class _Jumping(selectors.DefaultSelector):
    """Never waits: what the loop would sleep through is added to its clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise NothingEverHappens
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that lives in its own time, which begins at 0."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


class VirtualClock:
    """The `Clock` of whoever runs on a virtual loop."""

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def live(life: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time to its end. What the product spreads by chance is spread alike every time."""
    random.seed(0)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(life)

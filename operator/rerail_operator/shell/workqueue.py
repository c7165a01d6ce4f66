"""Keys that want a pass: each at most once in the queue, at most one flight per key, back-off owned here.

Knows nothing of what a key means. All calls are made on one event loop.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .clock import Clock

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds before the n-th repeat of a failed pass: first * factor**(n-1), at most cap."""

    first: float = 0.05
    factor: float = 2.0
    cap: float = 15.0

    def delay(self, failures: int) -> float:
        # the exponent is bounded, so that a key failing for days cannot overflow a float
        return min(self.cap, self.first * self.factor ** min(failures - 1, 64))


class WorkQueue(Generic[Key]):
    """`get` a key, make one pass, then `done` it, or `retry` it when the pass failed.

    A key added while in flight is queued again by `done` or `retry`. `add` never cuts a back-off short:
    a busy job would otherwise repeat a failing pass at every heartbeat.
    """

    def __init__(self, clock: Clock, backoff: Backoff | None = None) -> None:
        self._clock = clock
        self._backoff = backoff or Backoff()
        self._ready: deque[Key] = deque()
        self._queued: set[Key] = set()
        self._in_flight: set[Key] = set()
        self._again: dict[Key, bool] = {}  # added while in flight: whether that was urgent
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._sequence = 0
        self._held_until: dict[Key, float] = {}
        self._urgent_from: dict[Key, float] = {}  # of keys that rest
        self._failures: dict[Key, int] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def depth(self) -> int:
        """Keys that wait for a worker now."""
        return len(self._ready)

    def failures(self, key: Key) -> int:
        """Failed passes of this key in a row."""
        return self._failures.get(key, 0)

    def add(self, key: Key, urgent: bool = False) -> None:
        """Want a pass now. `urgent`: it cuts the rest of a key short as far as `rest` lets it."""
        if key in self._in_flight:
            self._again[key] = urgent or self._again.get(key, False)
            return
        if urgent and key in self._urgent_from:
            self._held_until[key] = self._urgent_from[key]
        if self._held_until.get(key, 0.0) > self._clock.monotonic():
            self._schedule(key, self._held_until[key])
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.append(key)
            self._wake()

    def add_after(self, key: Key, seconds: float) -> None:
        """Want a pass in `seconds`; of several such wishes for a key the earliest counts."""
        if seconds <= 0:
            self.add(key)
        else:
            self._schedule(key, self._clock.monotonic() + seconds)

    async def get(self) -> Key:
        """The next key, oldest first. Its pending delayed wish is dropped: the pass will say a new one."""
        while (key := self.take()) is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            self._arm()
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return key

    def take(self) -> Key | None:
        """`get` without waiting; None when no key is due."""
        self._move_due()
        if not self._ready:
            return None
        key = self._ready.popleft()
        self._queued.discard(key)
        self._due.pop(key, None)
        self._in_flight.add(key)
        return key

    def done(self, key: Key) -> None:
        """The flight is over; queued again at once if it was added meanwhile."""
        self._in_flight.discard(key)
        if key in self._again:
            self.add(key, self._again.pop(key))

    def retry(self, key: Key, at_least: float = 0.0) -> float:
        """The pass failed: the flight is over, the key comes back after its back-off. Returns the seconds.

        `at_least`: what the server asked for (Retry-After).
        """
        failures = self._failures[key] = self.failures(key) + 1
        delay = max(at_least, self._backoff.delay(failures))
        self._held_until[key] = self._clock.monotonic() + delay
        self._urgent_from.pop(key, None)
        self._again.pop(key, None)
        self._in_flight.discard(key)
        self._schedule(key, self._held_until[key])
        return delay

    def forget(self, key: Key) -> None:
        """A pass went well: the next failure starts from the shortest back-off."""
        self._failures.pop(key, None)
        self._held_until.pop(key, None)
        self._urgent_from.pop(key, None)

    def rest(self, key: Key, seconds: float, urgent: float) -> None:
        """A pass went well; the next is to begin no earlier than in `seconds`, for an urgent wish in `urgent`
        if that is less. What happens meanwhile is seen by one pass together. Said during the flight, after
        `forget`."""
        if seconds > 0:
            now = self._clock.monotonic()
            self._held_until[key] = now + seconds
            self._urgent_from[key] = now + min(seconds, urgent)

    def _schedule(self, key: Key, at: float) -> None:
        if key in self._queued or self._due.get(key, at + 1.0) <= at:
            return
        self._due[key] = at
        self._sequence += 1
        heapq.heappush(self._heap, (at, self._sequence, key))
        if self._waiters:
            self._arm()

    def _move_due(self) -> None:
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == at:  # else superseded by an earlier wish or by a flight
                del self._due[key]
                self.add(key)

    def _arm(self) -> None:
        """One timer, at the earliest deadline."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            delay = max(0.0, self._heap[0][0] - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

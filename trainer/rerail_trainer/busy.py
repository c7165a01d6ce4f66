"""How much of its steps this rank computes by itself: what tells a slow rank from those that wait for it.

In a gang that steps together a step takes the same time on every rank. So each tells, per window of steps,
the seconds from the begin of a step to its own gradients, which it would need without the others too.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch

WINDOW_STEPS = 10
WINDOW_SECONDS = 2.0


class Clock(Protocol):
    """Measures spans; those that are over can be read a little later."""

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def read(self) -> list[float]: ...


class HostClock:
    """For a CPU, where what was called is done."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._began = 0.0
        self._spans: list[float] = []

    def begin(self) -> None:
        """A span begins now."""
        self._began = self._now()

    def end(self) -> None:
        """It ends."""
        self._spans.append(self._now() - self._began)

    def read(self) -> list[float]:
        """Seconds of the spans that were not read yet."""
        spans, self._spans = self._spans, []
        return spans


class DeviceClock:
    """For a GPU, which works behind its host: events in its stream, read once they have passed."""

    def __init__(self) -> None:
        self._begun: Any = None
        self._under_way: deque[tuple[Any, Any]] = deque()

    def begin(self) -> None:
        """A span begins where the stream is now."""
        self._begun = self._event()

    def end(self) -> None:
        """It ends there."""
        self._under_way.append((self._begun, self._event()))

    def read(self) -> list[float]:
        """Seconds of the spans that have passed and were not read yet."""
        spans = []
        while self._under_way and self._under_way[0][1].query():
            begun, ended = self._under_way.popleft()
            spans.append(begun.elapsed_time(ended) / 1000.0)
        return spans

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


class Busy:
    """`begin` and `end` stand around what a rank does by itself in a step; it tells of whole windows."""

    def __init__(
        self, tell: Callable[[float, int], None], clock: Clock, now: Callable[[], float] = time.monotonic
    ) -> None:
        """`tell`: seconds in so many steps."""
        self._tell = tell
        self._clock = clock
        self._now = now
        self._since = now()
        self._spans: list[float] = []

    def begin(self) -> None:
        """A step begins."""
        self._clock.begin()

    def end(self) -> None:
        """Its own gradients are there; from here on it waits for others."""
        self._clock.end()
        self._spans += self._clock.read()
        if len(self._spans) >= WINDOW_STEPS and self._now() - self._since >= WINDOW_SECONDS:
            self._tell(sum(self._spans), len(self._spans))
            self._spans, self._since = [], self._now()


def clock_for(device: torch.device) -> Clock:
    """The clock that measures what this device does."""
    return DeviceClock() if device.type == "cuda" else HostClock()

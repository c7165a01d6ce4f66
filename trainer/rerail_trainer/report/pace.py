"""How fast a run steps: seconds of single steps, tokens per second over the last ones. Torch-free."""

import time
from collections import deque
from collections.abc import Callable

_STEPS = 20
"""Tokens per second are taken over so many steps."""


class Pace:
    """A clock that is told of every finished step; pauses for saves and evaluations are left out."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ticks: deque[tuple[float, int]] = deque(maxlen=_STEPS + 1)

    def begin(self, tokens: int) -> None:
        """Steps begin now, after `tokens` tokens in all."""
        self._ticks.clear()
        self._ticks.append((self._now(), tokens))

    def tick(self, tokens: int) -> float:
        """A step has brought the tokens to `tokens`; the seconds that it took."""
        now = self._now()
        before = self._ticks[-1][0] if self._ticks else now
        self._ticks.append((now, tokens))
        return now - before

    def resume(self) -> None:
        """What passed since the last step was no stepping."""
        if self._ticks:
            self.begin(self._ticks[-1][1])

    @property
    def tokens_per_second(self) -> float:
        """0 before the first step."""
        if not self._ticks:
            return 0.0
        (begin, first), (end, last) = self._ticks[0], self._ticks[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

"""Where the time of a step goes, by its parts, with the device waited for at every border.

Waiting keeps the device from working ahead, so the parts of a GPU's step sum to more than an undisturbed
step takes; their shares are what is looked at.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from statistics import median
from typing import Any

import torch

from bench.report import Json

from .overhead import lasted
from .training import Training

_SETTLING = 4
"""First steps that do not count: the loop tidies up once."""

PARTS = ("data", "forward", "backward", "reduce", "clip", "optimizer", "zero", "loop")
"""data: waiting for the batch, and its way to the device; reduce: what is left of the exchange of gradients
after the backward pass; loop: all else, the host's own work.
"""


def profile(training: Training, steps: int) -> Json:
    """Milliseconds of each part, the median of `steps` steps."""
    watch = _Watch(training.run.meeting.device)
    with watch.attached(training):
        ticks = training.more(steps + _SETTLING)
    wholes = [step.wall for step in lasted(ticks)][_SETTLING - 1 :]
    records = watch.steps[-steps:]
    parts = {name: 1e3 * median(step[name] for step in records) for name in PARTS if name != "loop"}
    parts["loop"] = max(1e3 * median(wholes) - sum(parts.values()), 0.0)
    return {name: round(parts[name], 3) for name in PARTS}


def shown(parts: Json) -> str:
    """One line: each part's milliseconds and share, the largest first."""
    total = sum(parts.values())
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.2f} ms ({value / total:.0%})" for name, value in ordered)


class _Watch:
    """Stands around the parts of a run and adds up their seconds."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.steps: list[dict[str, float]] = []

    @property
    def seconds(self) -> dict[str, float]:
        """Of the parts of the step under way."""
        return self.steps[-1]

    def take(self, feed: Any) -> Callable[[int], Any]:
        """A step begins by taking its data."""
        taken = self.around("data", feed.take)

        def begin(step: int) -> Any:
            self.steps.append(defaultdict(float))
            return taken(step)

        return begin

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*inputs: Any, **named: Any) -> Any:
            began = self.now()
            result = function(*inputs, **named)
            self.seconds[name] += self.now() - began
            return result

        return timed

    def around_backward(
        self, backward: Callable[..., AbstractContextManager[None]]
    ) -> Callable[..., AbstractContextManager[None]]:
        """What happens inside is forward and backward; what leaving takes is the exchange of gradients."""

        @contextmanager
        def timed(last: bool) -> Iterator[None]:
            forward = self.seconds["forward"]
            with backward(last):
                began = self.now()
                yield
                inside = self.now() - began
                leaving = self.now()
            self.seconds["reduce"] += self.now() - leaving
            self.seconds["backward"] += inside - (self.seconds["forward"] - forward)

        return timed

    @contextmanager
    def attached(self, training: Training) -> Iterator[None]:
        """Within, the parts of `training` are watched."""
        run: Any = training.run
        places = [
            (run.feed, "take", self.take(run.feed)),
            (run.layout, "loss", self.around("forward", run.layout.loss)),
            (run.layout, "backward", self.around_backward(run.layout.backward)),
            (run.layout, "clip", self.around("clip", run.layout.clip)),
            (run.layout, "zero_gradients", self.around("zero", run.layout.zero_gradients)),
            (run.optimizer, "step", self.around("optimizer", run.optimizer.step)),
        ]
        for owner, name, watched in places:
            setattr(owner, name, watched)
        try:
            yield
        finally:
            for owner, name, _ in places:
                delattr(owner, name)

"""Where the time of a step goes, by its parts, with the device waited for at every border.

Waiting keeps the device from working ahead, so the parts of a GPU's step sum to more than an undisturbed
step takes; their shares are what is looked at.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from bench.report import Json

from .training import Training

PARTS = ("data", "forward", "backward", "reduce", "clip", "optimizer", "zero", "loop")
"""data: waiting for the batch, and its way to the device; reduce: what is left of the exchange of gradients
after the backward pass; loop: all else, the host's own work.
"""


def profile(training: Training, steps: int) -> Json:
    """Milliseconds per step of each part, medians' place taken by means over `steps` steps."""
    watch = _Watch(training.run.meeting.device)
    with watch.attached(training):
        training.more(2)
        watch.seconds.clear()
        began = watch.now()
        training.more(steps)
        whole = watch.now() - began
    parts = {name: watch.seconds[name] / steps * 1e3 for name in PARTS if name != "loop"}
    parts["loop"] = whole / steps * 1e3 - sum(parts.values())
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
        self.seconds: dict[str, float] = defaultdict(float)

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
            (run.feed, "take", self.around("data", run.feed.take)),
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

"""python -m bench.trainer overhead: what the trainer's loop costs beside a plain one around the same model.

Both train the preset `tiny` in this process, in turn, round after round, on one thread; the figure is the
ratio of medians over all steps. CPU seconds count what both do on all threads, so that another tenant of the
machine counts for little; wall seconds are what a user sees on a quiet machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from statistics import median

import torch

from bench.report import Json, Tell
from rerail_trainer.config import Config, MetricsConfig
from rerail_trainer.presets import PRESETS

from .plain import PlainTraining
from .training import Tick, Training

GOAL = 0.03
_SETTLING = 4
"""Steps of a round that do not count: caches are the other one's, and the loop tidies up once."""


def tiny_config() -> Config:
    """The preset `tiny` on the CPU, whose every step is told as in any run."""
    base = PRESETS["tiny"]
    return replace(
        base, parallel=replace(base.parallel, device="cpu"), metrics=MetricsConfig(every=1_000_000)
    )


def measure(rounds: int, steps: int, tell: Tell) -> Json:
    """Medians of both, and by how much ours is slower."""
    config = tiny_config()
    with one_thread():
        ours, plain = Training(config), PlainTraining(config)
        seconds: dict[str, list[Tick]] = {"ours": [], "plain": []}
        for _ in range(rounds):
            # In turn, so that a change of the machine's mood meets both.
            for name, training in (("plain", plain), ("ours", ours)):
                seconds[name] += lasted(training.more(steps + _SETTLING))[_SETTLING - 1 :]
    result: Json = {"rounds": rounds, "steps": steps, "tokens_per_step": config.batch.tokens_per_step}
    for clock in ("wall", "cpu"):
        middle = {name: median(getattr(step, clock) for step in each) for name, each in seconds.items()}
        overhead = middle["ours"] / middle["plain"] - 1.0
        result[clock] = {
            **{f"{name}_ms": round(value * 1e3, 3) for name, value in middle.items()},
            "overhead": round(overhead, 4),
        }
        speed = {name: config.batch.tokens_per_step / value for name, value in middle.items()}
        tell(
            f"{clock:>4}: plain {middle['plain'] * 1e3:.2f} ms/step ({speed['plain']:,.0f} tok/s), "
            f"ours {middle['ours'] * 1e3:.2f} ms/step ({speed['ours']:,.0f} tok/s), "
            f"overhead {overhead:+.2%} (goal: at most {GOAL:.0%})"
        )
    return result


def lasted(ticks: list[Tick]) -> list[Tick]:
    """What each step took, from the second on."""
    return [Tick(after.wall - before.wall, after.cpu - before.cpu) for before, after in pairwise(ticks)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Both on one core: what threads gain or lose is not the loop's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

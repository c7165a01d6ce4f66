"""How much of the wall clock trains when nodes fail: the model beside what the ledger measures.

A renewal process: interruptions of the job are exponential and may hit a recovery, which then starts anew.
Each costs a dead time and the steps since the last checkpoint. Young (1974) and Daly (2006) have the orders
of the interval; the closed forms here are exact for this process. It knows nothing of jobs and clocks.
It stands here because operator and trainer say it of one job, and must say the same.
"""

import math
from dataclasses import dataclass

SECONDS_PER_DAY = 86_400.0
ENOUGH = 1e-14
"""Relative change at which an iteration has come to rest."""


@dataclass(frozen=True, slots=True)
class Interruptions:
    """What interrupts a job and what each interruption costs, in seconds.

    mean_between: between two interruptions of the whole job; dead: from a failure to the first step after it,
    replay left out; stall: in which training stands still for one checkpoint.
    """

    mean_between: float
    dead: float
    stall: float


def mean_between(nodes: int, per_thousand_node_days: float) -> float:
    """Mean seconds between two interruptions of a job on `nodes` nodes."""
    return 1000 * SECONDS_PER_DAY / (nodes * per_thousand_node_days)


def ettr(what: Interruptions, interval: float, slowdown: float = 0.0) -> float:
    """Productive over wall seconds with a checkpoint after every `interval` productive seconds; 0 to 1.

    `slowdown`: the share by which every step is slower than it could be.
    """
    cycle = (interval + what.stall) / what.mean_between
    if cycle > 700:
        return 0.0  # e^cycle is no float: practically no interval is ever finished
    share = interval / what.mean_between / math.expm1(cycle)
    return (1 - slowdown) * share * math.exp(-what.dead / what.mean_between)


def best_interval(what: Interruptions) -> float:
    """The productive seconds between checkpoints at which `ettr` is largest; 0 where a checkpoint is free.

    M (1 + W0(-e^(-1 - C/M))) with M = mean_between and C = stall. In x = 1 + W0 that is
    -ln(1 - x) - x = C/M, which loses no digits near the branch point of W0, where all real jobs lie. It is
    convex: from above, Newton falls to the root without overshooting.
    """
    cost = what.stall / what.mean_between
    if cost <= 0:
        return 0.0
    if cost > 30:
        return what.mean_between  # 1 - x is below the last digit of 1
    x = min(math.sqrt(2 * cost), 1 - math.exp(-1 - cost))
    for _ in range(100):
        step = (-math.log1p(-x) - x - cost) * (1 - x) / x
        x -= step
        if abs(step) <= ENOUGH * x:
            break
    return x * what.mean_between


def best_ettr(what: Interruptions, at_least: float) -> float:
    """`ettr` at the best interval that is not below `at_least` seconds (> 0), such as one step."""
    return ettr(what, max(best_interval(what), at_least))


def necessary_dead(target: float, between: float, stall: float, at_least: float) -> float | None:
    """The mean dead time that still gives `target` at the best interval; None where even 0 s would not."""
    most = best_ettr(Interruptions(between, 0.0, stall), at_least)
    return between * math.log(most / target) if most >= target else None

"""How much of the wall clock trains when nodes fail, and the best interval between checkpoints. Torch-free.

ETTR (productive over wall seconds) by a renewal model: failures are exponential, and some hit a recovery.
With M the mean time between interruptions of the job, D the dead time of one, C the stall of one checkpoint,
tau the productive time between two:
ETTR = (tau / M) e^(-D / M) / (e^((tau + C) / M) - 1). First order: Young (1974), tau = sqrt(2 C M).
"""

import math
from dataclasses import dataclass

SECONDS_PER_HOUR = 3600.0
DEFAULT_NODE_HOURS = 1000 * 24 / 6.5
"""Mean time between interruptions of one node: 6.5 per 1,000 node-days, Meta's RSC-1 (arXiv 2410.21680)."""
DEFAULT_DEAD_SECONDS = 90.0
"""From a failure to the next step with a gang restarted in place and spares ready: detect, stop, replace,
meet, load."""


@dataclass(frozen=True)
class Failures:
    """What interrupts a job and what that costs.

    between_seconds: mean time between two; dead_seconds: from one to the next productive step;
    stall_seconds: in which training stands still per checkpoint; lag_seconds: from there to its commit.
    """

    between_seconds: float
    dead_seconds: float
    stall_seconds: float
    lag_seconds: float

    @property
    def lost_seconds(self) -> float:
        """Per interruption besides the steps since the last checkpoint; its age at commit is lost as well."""
        return self.dead_seconds + self.lag_seconds


def interruptions(nodes: int, node_hours: float) -> float:
    """Mean seconds between two interruptions of a job on `nodes` nodes, each failing every `node_hours`."""
    return node_hours * SECONDS_PER_HOUR / nodes


def ettr(failures: Failures, interval_seconds: float) -> float:
    """Productive over wall seconds when a checkpoint follows every `interval_seconds` of training; 0 to 1."""
    mean = failures.between_seconds
    cycle = (interval_seconds + failures.stall_seconds) / mean
    if cycle > 700:  # e^cycle is no float; nothing is ever finished
        return 0.0
    return interval_seconds / mean * math.exp(-failures.lost_seconds / mean) / math.expm1(cycle)


def best_interval(failures: Failures, at_least: float) -> float:
    """Seconds of training between checkpoints at which `ettr` is largest, and no fewer than `at_least`.

    The maximum solves (1 - x) e^x = e^(-C / M) for x = tau / M: tau = M (1 + W0(-e^(-1 - C / M))).
    """
    cost = failures.stall_seconds / failures.between_seconds
    share = min(math.sqrt(2 * cost), 0.5)
    for _ in range(60):
        slope = share / (1 - share)
        error = -math.log1p(-share) - share - cost
        if slope <= 0:
            break
        share = min(max(share - error / slope, share / 2), (1 + share) / 2)
    return max(share * failures.between_seconds, at_least)

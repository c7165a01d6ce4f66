"""Ranks that compute slower than the others and hold up the whole gang: found, named, and let go again.

In a job that steps together every rank's step takes the same time; what tells them apart is how much of it
each computes by itself, waiting for nobody. Programs tell that per window of steps.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from rerail_api.status import MAX_STRAGGLERS, Phase, Straggler
from rerail_api.v1alpha1 import TrainingJob

from .gang import Seat
from .plan import Level, Note
from .reasons import Reason
from .template_facts import num_proc
from .world import SlowRank, World

SLOWER = 1.1
"""Times the gang's median."""
WINDOWS = 5
"""In a row: one slow window is a hiccup."""
ENOUGH_FOR_A_MEDIAN = 5_000
MOST_SLOW = 4 * MAX_STRAGGLERS
NAMED_IN_NOTE = 4


def slow_ranks(
    told: Mapping[int, Sequence[float]], world_size: int, named: Collection[int] = ()
) -> tuple[SlowRank, ...] | None:
    """Who is slower in the newest window, and who of `named` is in any, those first; None while too little
    is known.

    `told`: own seconds per step by rank, oldest window first. Ranks close their windows within a step or two
    of each other, so the newest of one is the newest of all. There may be 150,000: each is looked at once.
    """
    known = [rank for rank, windows in told.items() if len(windows) >= WINDOWS]
    if len(known) < 2 or 2 * len(known) < world_size:
        return None
    sample = [told[rank] for rank in known[:: 1 + len(known) // ENOUGH_FOR_A_MEDIAN]]
    usual = [median(windows[at] for windows in sample) for at in range(-WINDOWS, 0)]
    if not all(usual):
        return ()
    newest = SLOWER * usual[-1]
    suspects = {rank for rank in known if told[rank][-1] > newest} | set(named).intersection(known)
    found = []
    for rank in suspects:
        shares = [own / middle for own, middle in zip(told[rank][-WINDOWS:], usual, strict=True)]
        slower = sum(share > SLOWER for share in shares)
        if slower:
            found.append(SlowRank(rank, round(median(shares), 2), lasting=slower == WINDOWS))
    found.sort(key=lambda slow: (slow.rank not in named, -slow.ratio, slow.rank))
    return tuple(found[:MOST_SLOW])


def ranks_per_node(job: TrainingJob, accelerators: Iterable[str]) -> int:
    """How many ranks each node of a job that runs has."""
    found = num_proc(job.spec, job.spec.template, accelerators)
    return found if isinstance(found, int) else 1


@dataclass(frozen=True, slots=True)
class Naming:
    """Who is named now, and what is to be told of it."""

    stragglers: tuple[Straggler, ...]
    notes: tuple[Note, ...] = ()


def name_stragglers(
    world: World, job: TrainingJob, taken: tuple[Seat, ...], phase: Phase, now: datetime
) -> Naming:
    """Named is who was slower in every window; forgotten who was in none of them, or runs no more."""
    before = {straggler.rank: straggler for straggler in job.status.stragglers}
    if phase is not Phase.RUNNING:
        return Naming(())
    if world.slow is None:
        return Naming(job.status.stragglers)
    per_node = ranks_per_node(job, world.accelerators)
    ranks = per_node * len(taken)
    kept = [s for s in world.slow if s.rank < ranks and (s.lasting or s.rank in before)]
    kept.sort(key=lambda slow: (slow.rank not in before, -slow.ratio, slow.rank))
    named = {}
    for slow in kept[:MAX_STRAGGLERS]:
        known = before.get(slow.rank)
        node_rank = slow.rank // per_node
        pod = taken[node_rank].pod
        named[slow.rank] = Straggler(
            rank=slow.rank,
            node_rank=node_rank,
            node=pod.node if pod is not None else None,
            ratio=slow.ratio,
            since=known.since if known is not None else now,
        )
    new = [straggler for rank, straggler in named.items() if rank not in before]
    gone = [straggler for rank, straggler in before.items() if rank not in named]
    return Naming(tuple(named[rank] for rank in sorted(named)), (*_seen(new), *_over(gone)))


def _seen(new: list[Straggler]) -> Iterable[Note]:
    if new:
        slowest = max(new, key=lambda straggler: straggler.ratio)
        yield Note(
            Reason.STRAGGLER_SEEN,
            f"{_who(new)}: for {WINDOWS} windows slower than the gang's median by more than"
            f" {round(100 * (SLOWER - 1))} %, at worst {slowest.ratio:.2f} times; all others wait",
            Level.WARNING,
        )


def _over(gone: list[Straggler]) -> Iterable[Note]:
    if gone:
        yield Note(Reason.STRAGGLER_GONE, f"{_who(gone)}: no slower than the others any more")


def _who(stragglers: list[Straggler]) -> str:
    names = [f"rank {s.rank} on {s.node or 'no node'}" for s in stragglers[:NAMED_IN_NOTE]]
    more = len(stragglers) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")

"""Which nodes are near each other: the order of node ranks, and the choice of the tightest domain."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from .world import Node

LEVELS: Final = ("topology.kubernetes.io/zone", "topology.rerail.dev/block", "topology.rerail.dev/rack")
"""Labels that say where a node stands, widest domain first. A node without a label is in no such domain."""

Domain = tuple[str, ...]
Sortable = tuple[str | int, ...]

_DIGITS: Final = re.compile(r"([0-9]+)")


def domain(node: Node) -> Domain:
    """The node's place at every level, "" where it does not say."""
    label = node.labels.get
    # A list inside: a generator takes three times as long, and this runs for every node of every survey.
    return tuple([label(level, "") for level in LEVELS])


@lru_cache(maxsize=65536)
def natural(text: str) -> Sortable:
    """A sort key under which node-2 comes before node-10."""
    # Splitting at digits alternates text and number, so two keys compare like with like.
    pieces = _DIGITS.split(text)
    return (*(int(piece) if index % 2 else piece for index, piece in enumerate(pieces)), text)


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """Nodes so that neighbours in the list are neighbours on the floor; ties by name."""
    return sorted(nodes, key=lambda node: (tuple(map(natural, domain(node))), natural(node.name)))


def tightest(domains: Sequence[Domain], want: int) -> list[int]:
    """Which `want` of the places to take, as rising indexes; needs at least that many.

    The narrowest level that has one domain with room for all of them; there the fullest such domain, so that
    larger holes stay whole. Where no domain holds them all: as few of the widest domains as possible.
    """
    for level in range(len(LEVELS), 0, -1):
        counts = Counter(place[:level] for place in domains if place[level - 1])
        roomy = [place for place, count in counts.items() if count >= want]
        if roomy:
            best = min(roomy, key=lambda place: counts[place])
            return [i for i, place in enumerate(domains) if place[:level] == best][:want]
    return _fewest(domains, want)


def _fewest(domains: Sequence[Domain], want: int) -> list[int]:
    room = Counter(place[:1] for place in domains)
    quota: dict[Domain, int] = {}
    while want > 0:
        enough = [place for place, count in room.items() if count >= want]
        # The rest goes where it leaves the smallest hole.
        place = min(enough, key=lambda p: room[p]) if enough else max(room, key=lambda p: room[p])
        quota[place] = min(want, room.pop(place))
        want -= quota[place]
    taken: list[int] = []
    for index, place in enumerate(domains):
        if quota.get(place[:1], 0) > 0:
            quota[place[:1]] -= 1
            taken.append(index)
    return taken

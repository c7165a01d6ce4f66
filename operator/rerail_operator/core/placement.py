"""A place for a whole gang or for its missing node ranks, or one typed reason why there is none.

All or none, one pod per node, the same answer for the same snapshot. Knows nothing of queues.
"""

from bisect import bisect
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from .manifests import PATIENCE
from .node_rules import node_rules
from .pod_resources import pod_request
from .survey import GangRequest, Survey, survey
from .topology import Domain, domain, tightest
from .world import Node, Nodes, Placement, Refusal, Resources

__all__ = [
    "GangRequest",
    "claimed",
    "gang_request",
    "place_gang",
    "place_in",
    "place_missing",
    "spare_places",
    "taken_all_the_same",
]

HELD = "holds another pod of this job"


def gang_request(
    template: Mapping[str, Any], num_nodes: int, excluded: Mapping[str, str] | None = None
) -> GangRequest:
    """What a gang of this template asks of the cluster. Raises `BadQuantity`."""
    return GangRequest(num_nodes, pod_request(template), node_rules(template, PATIENCE), excluded or {})


def place_gang(request: GangRequest, nodes: Nodes) -> Placement | Refusal:
    """A node for each node rank 0..num_nodes-1, neighbouring ranks near each other."""
    return place_in(survey(request, nodes), request.num_nodes)


def place_in(found: Survey, num_nodes: int) -> Placement | Refusal:
    """`place_gang` on a survey that is already there."""
    fitting = found.fitting_for(num_nodes)
    if len(fitting) < num_nodes:
        return found.refusal(num_nodes, len(found.fitting()))
    taken = tightest([domain(node) for node in fitting], num_nodes)
    return Placement({rank: fitting[index].name for rank, index in enumerate(taken)})


def place_missing(
    request: GangRequest,
    nodes: Nodes,
    missing_ranks: Iterable[int],
    keep: Mapping[int, str],
    wished: Mapping[int, str] | None = None,
) -> Placement | Refusal:
    """Nodes for the missing node ranks only, all or none; every rank in `keep` stays where it is.

    A rank goes to the node that `wished` names for it if that fits, else as near as possible to its
    neighbours.
    """
    ranks = sorted(set(missing_ranks) - set(keep))
    held = dict.fromkeys(keep.values(), HELD)
    request = replace(request, excluded={**request.excluded, **held})
    if (met := _all_wishes(request, nodes, ranks, wished or {})) is not None:
        return Placement(met)
    found = survey(request, nodes)
    fitting = found.fitting_for(len(ranks))
    if len(fitting) < len(ranks):
        return found.refusal(len(ranks), len(found.fitting()))
    placed = _as_wished(ranks, fitting, wished or {})
    others = [rank for rank in ranks if rank not in placed]
    used = set(placed.values())
    left = [node for node in fitting if node.name not in used]
    neighbours = _Neighbours({**keep, **placed}, nodes)
    if neighbours.unknown:
        taken = tightest([domain(node) for node in left], len(others))
        placed |= {rank: left[index].name for rank, index in zip(others, taken, strict=True)}
    else:
        placed |= _nearest(others, left, neighbours)
    return Placement(dict(sorted(placed.items())))


def spare_places(request: GangRequest, nodes: Nodes, count: int) -> tuple[str, ...]:
    """Nodes for at most `count` spares, wherever there is room; fewer where there is less."""
    return tuple(node.name for node in survey(request, nodes).fitting()[:count])


def _all_wishes(
    request: GangRequest, nodes: Nodes, ranks: list[int], wished: Mapping[int, str]
) -> dict[int, str] | None:
    """The wishes, if every one of them can be met; only the wished nodes are looked at.

    A gang whose pods are being created asks for its claimed nodes in every pass: no survey of all nodes then.
    """
    places = {rank: node for rank in ranks if (node := nodes.get(wished.get(rank, ""))) is not None}
    if len({node.name for node in places.values()}) < len(ranks):
        return None
    if len(Survey(request, places.values()).fitting()) < len(ranks):
        return None
    return {rank: node.name for rank, node in places.items()}


def _as_wished(ranks: list[int], fitting: list[Node], wished: Mapping[int, str]) -> dict[int, str]:
    """Wishes that can be met; of two for the same node the lower rank's."""
    free = {node.name for node in fitting}
    placed: dict[int, str] = {}
    for rank in ranks:
        if (name := wished.get(rank)) in free and name is not None:
            placed[rank] = name
            free.discard(name)
    return placed


class _Neighbours:
    """Where the ranks that have their node are standing."""

    def __init__(self, placed: Mapping[int, str], nodes: Nodes) -> None:
        here = [
            (rank, node) for rank, name in sorted(placed.items()) if (node := nodes.get(name)) is not None
        ]
        self._ranks = [rank for rank, _ in here]
        self._domains = [domain(node) for _, node in here]

    @property
    def unknown(self) -> bool:
        return not self._ranks

    def domain_near(self, rank: int) -> Domain:
        """The domain of the nearest rank that has its node; of two as near the lower one's."""
        above = bisect(self._ranks, rank)
        near = range(max(0, above - 1), min(len(self._ranks), above + 1))
        return self._domains[min(near, key=lambda index: abs(self._ranks[index] - rank))]


def _nearest(ranks: list[int], fitting: list[Node], neighbours: _Neighbours) -> dict[int, str]:
    free = {node.name for node in fitting}
    shelves: defaultdict[Domain, deque[str]] = defaultdict(deque)
    for node in fitting:
        place = domain(node)
        for level in range(len(place) + 1):
            shelves[place[:level]].append(node.name)
    return {rank: _take(shelves, neighbours.domain_near(rank), free) for rank in ranks}


def _take(shelves: Mapping[Domain, deque[str]], near: Domain, free: set[str]) -> str:
    """The first free node of the narrowest domain around `near`; a node stands on one shelf per level."""
    for level in range(len(near), -1, -1):
        shelf = shelves.get(near[:level], deque())
        while shelf:
            name = shelf.popleft()
            if name in free:
                free.discard(name)
                return name
    raise AssertionError("more missing ranks than fitting nodes")


def taken_all_the_same(nodes: Nodes, names: Iterable[str]) -> str:
    """The end of a sentence about avoided nodes among these; empty where there is none."""
    found = [node for name in names if (node := nodes.get(name)) is not None and node.struck]
    if not found:
        return ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"; for want of others with {found[0].name} ({found[0].struck}){more}"


def claimed(nodes: Nodes, placement: Placement, resources: Resources) -> tuple[Node, ...]:
    """The nodes of a placement with one pod's resources taken from what they have free."""
    return tuple(
        replace(
            node,
            free={name: amount - resources.get(name, 0) for name, amount in node.free.items()},
        )
        for name in placement.nodes.values()
        if (node := nodes.get(name)) is not None
    )

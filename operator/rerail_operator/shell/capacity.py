"""What is left on every node: allocatable less all that holds something there, kept up to date per event.

A snapshot costs what has changed since the last one, so that every pass of every job can have its own.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from rerail_operator.core.world import Node, Nodes, Resources


class Capacity:
    """Nodes, and the sums of what pods take from them. Sums of unknown nodes wait for the node."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._taken: dict[str, dict[str, int]] = {}
        self._stale: set[str] = set()
        self._ready: dict[str, Node] = {}
        self._snapshot: Nodes | None = None
        self._struck: Mapping[str, str] = {}

    @property
    def struck(self) -> Mapping[str, str]:
        """Nodes that are avoided, with the reason."""
        return self._struck

    def mark(self, struck: Mapping[str, str]) -> bool:
        """These nodes are avoided from now on, no others. Whether that let any node in again."""
        before, self._struck = self._struck, dict(struck)
        for name in before.keys() | struck.keys():
            if before.get(name) != struck.get(name):
                self._touch(name)
        return not before.keys() <= struck.keys()

    def put_node(self, node: Node) -> None:
        self._nodes[node.name] = node
        self._touch(node.name)

    def drop_node(self, name: str) -> None:
        self._nodes.pop(name, None)
        self._touch(name)

    def take(self, node: str, requests: Resources) -> None:
        self._change(node, requests, 1)

    def give_back(self, node: str, requests: Resources) -> None:
        self._change(node, requests, -1)

    def snapshot(self, reserved: Mapping[str, Resources]) -> Nodes:
        """All nodes with what is free on them, less `reserved` (node name -> resources)."""
        base = self._base()
        held = {name: amounts for name, amounts in reserved.items() if amounts and name in base.by_name}
        if not held:
            return base
        nodes = dict(base.by_name)
        for name, amounts in held.items():
            nodes[name] = replace(nodes[name], free=_less(nodes[name].free, amounts))
        return Nodes(MappingProxyType(nodes))

    def _base(self) -> Nodes:
        if self._snapshot is None or self._stale:
            for name in self._stale:
                self._refresh(name)
            self._stale.clear()
            self._snapshot = Nodes(MappingProxyType(dict(self._ready)))
        return self._snapshot

    def _refresh(self, name: str) -> None:
        node = self._nodes.get(name)
        if node is None:
            self._ready.pop(name, None)
        else:
            free = _less(node.allocatable, self._taken.get(name, {}))
            self._ready[name] = replace(node, free=free, struck=self._struck.get(name, ""))

    def _change(self, node: str, requests: Resources, sign: int) -> None:
        if not node:
            return
        taken = self._taken.setdefault(node, {})
        for resource, amount in requests.items():
            taken[resource] = taken.get(resource, 0) + sign * amount
            if not taken[resource]:
                del taken[resource]
        if not taken:
            del self._taken[node]
        self._touch(node)

    def _touch(self, name: str) -> None:
        self._stale.add(name)


def _less(amounts: Resources, taken: Mapping[str, int]) -> Resources:
    # What a node does not offer stays out: asking for it must find nothing, not a negative amount.
    return MappingProxyType({name: amount - taken.get(name, 0) for name, amount in amounts.items()})

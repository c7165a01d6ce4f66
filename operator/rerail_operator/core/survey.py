"""One look at all nodes for one kind of pod: which can take it now, and why the others cannot."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from .node_rules import NodeRules
from .pod_resources import PODS
from .quantities import is_bytes, quantity_for_people
from .topology import in_order
from .world import Node, Nodes, Refusal, Resources

NAMES_SHOWN: Final = 5

NEVER_FITS: Final = "NeverFits"
INSUFFICIENT_NODES: Final = "InsufficientNodes"


@dataclass(frozen=True, slots=True)
class GangRequest:
    """What a gang asks for: this many nodes, each with room for one pod."""

    num_nodes: int
    resources: Resources
    rules: NodeRules = field(default_factory=NodeRules)
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Nodes left out for this job: name -> why."""

    @property
    def shape(self) -> object:
        """Equal for requests that the same nodes can serve, whatever their number."""
        return (
            tuple(sorted(self.resources.items())),
            self.rules,
            tuple(sorted(self.excluded.items())),
        )


class Obstacle(IntEnum):
    """Why a node cannot take the pod, in the order in which people are told."""

    CORDONED = 0
    NOT_READY = 1
    UNREACHABLE = 2
    DELETING = 3
    EXCLUDED = 4
    TAINTED = 5
    FULL = 6
    TOO_SMALL = 7
    NOT_CHOSEN = 8
    STRUCK = 9


_SENTENCES: Final = {
    Obstacle.CORDONED: ("is cordoned", "are cordoned"),
    Obstacle.NOT_READY: ("is not ready", "are not ready"),
    Obstacle.UNREACHABLE: ("is unreachable", "are unreachable"),
    Obstacle.DELETING: ("is being deleted", "are being deleted"),
    Obstacle.EXCLUDED: ("is left out ({})", "are left out ({})"),
    Obstacle.TAINTED: ("has the taint {}", "have the taint {}"),
    Obstacle.FULL: ("has less than {} free", "have less than {} free"),
    Obstacle.TOO_SMALL: ("is too small for {}", "are too small for {}"),
    Obstacle.NOT_CHOSEN: ("does not match nodeSelector or affinity", "do not match nodeSelector or affinity"),
    Obstacle.STRUCK: ("is avoided for {}", "are avoided for {}"),
}


class Cause(NamedTuple):
    obstacle: Obstacle
    detail: str = ""


class Survey:
    """Verdicts over all nodes in topology order; nodes that changed are looked at again by `review`."""

    def __init__(self, request: GangRequest, nodes: Iterable[Node]) -> None:
        """`nodes` in topology order (`in_order`)."""
        self._request = request
        self._needs = [(name, amount) for name, amount in request.resources.items() if amount > 0]
        self.nodes = list(nodes)
        self._verdicts = [self._verdict(node) for node in self.nodes]
        self._places = {node.name: index for index, node in enumerate(self.nodes)}

    def fitting(self) -> list[Node]:
        """Nodes that can take one pod now, in topology order."""
        return [node for node, verdict in zip(self.nodes, self._verdicts, strict=True) if verdict is None]

    def fitting_for(self, want: int) -> list[Node]:
        """As `fitting`; where that is less than `want`, with as many of the avoided nodes as are missing.

        A gang that waits for days loses more than one that is interrupted once more.
        """
        taken = self.fitting()
        missing = want - len(taken)
        if missing <= 0:
            return taken
        taken = []
        for node, verdict in zip(self.nodes, self._verdicts, strict=True):
            if verdict is not None and verdict.obstacle is Obstacle.STRUCK and missing > 0:
                missing -= 1
                verdict = None
            if verdict is None:
                taken.append(node)
        return taken

    def review(self, changed: Iterable[Node]) -> None:
        """Look again at nodes whose free resources have changed."""
        for node in changed:
            index = self._places[node.name]
            self.nodes[index] = node
            self._verdicts[index] = self._verdict(node)

    def refusal(self, want: int, fitting: int) -> Refusal:
        """Why `want` nodes cannot be had, with numbers and the first names of each cause."""
        causes: dict[Cause, list[str]] = {}
        for node, verdict in zip(self.nodes, self._verdicts, strict=True):
            if verdict is not None:
                causes.setdefault(verdict, []).append(node.name)
        hopeless = sum(
            len(names)
            for cause, names in causes.items()
            if cause.obstacle in (Obstacle.TOO_SMALL, Obstacle.NOT_CHOSEN)
        )
        able = len(self.nodes) - hopeless
        parts = [f"needs {_nodes(want)}{self._wish()}"]
        if able < want:
            parts.append(f"{_could(able)} ever hold such a pod")
        else:
            parts.append(f"{fitting or 'none'} {'fits' if fitting == 1 else 'fit'}")
        parts += [_sentence(cause, names) for cause, names in sorted(causes.items())]
        if not self.nodes:
            parts.append("the cluster has no nodes")
        return Refusal(NEVER_FITS if able < want else INSUFFICIENT_NODES, "; ".join(parts))

    def _wish(self) -> str:
        # Accelerators first: they are what the reader waits for.
        needs = sorted(
            (pair for pair in self._needs if pair[0] != PODS),
            key=lambda pair: (pair[0] == "cpu" or is_bytes(pair[0]), pair[0]),
        )
        if not needs:
            return ""
        (first, amount), *rest = needs
        texts = [f"{quantity_for_people(first, amount)} free {first}", *(_amount(*pair) for pair in rest)]
        return f" with {', '.join(texts)}"

    def _verdict(self, node: Node) -> Cause | None:
        rules = self._request.rules
        if not rules.chosen(node):
            return Cause(Obstacle.NOT_CHOSEN)
        if (short := self._short(node.allocatable)) is not None:
            return Cause(Obstacle.TOO_SMALL, short)
        if node.deleting:
            return Cause(Obstacle.DELETING)
        if not node.ready:
            return Cause(Obstacle.UNREACHABLE if node.ready is None else Obstacle.NOT_READY)
        if not node.schedulable:
            return Cause(Obstacle.CORDONED)
        if (why := self._request.excluded.get(node.name)) is not None:
            return Cause(Obstacle.EXCLUDED, why)
        if (taint := rules.obstacle(node)) is not None:
            value = f"={taint.value}" if taint.value else ""
            return Cause(Obstacle.TAINTED, f"{taint.key}{value}:{taint.effect}")
        if (short := self._short(node.free)) is not None:
            return Cause(Obstacle.FULL, short)
        return Cause(Obstacle.STRUCK, node.struck) if node.struck else None

    def _short(self, have: Resources) -> str | None:
        for name, amount in self._needs:
            if have.get(name, 0) < amount:
                return _amount(name, amount)
        return None


def survey(request: GangRequest, nodes: Nodes) -> Survey:
    """Look at a whole snapshot."""
    return Survey(request, in_order(tuple(nodes.by_name.values())))


def _sentence(cause: Cause, names: list[str]) -> str:
    one, many = _SENTENCES[cause.obstacle]
    told = (one if len(names) == 1 else many).format(cause.detail)
    shown = ", ".join(names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} {told}: {shown}{more}"


def _amount(name: str, amount: int) -> str:
    return f"{quantity_for_people(name, amount)} {name}"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _could(count: int) -> str:
    return "no node could" if count == 0 else f"only {count} could"

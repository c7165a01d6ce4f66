"""One look at all nodes for one kind of pod: which can take it now, and why the others cannot."""

from collections.abc import Iterable, Mapping, Sequence
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

KEPT: Final = 4
"""How many surveys `survey` keeps: passes over a few gangs that wait in turn; each holds its nodes."""


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
    IN_TROUBLE = 4
    EXCLUDED = 5
    TAINTED = 6
    FULL = 7
    TOO_SMALL = 8
    NOT_CHOSEN = 9
    STRUCK = 10


_SENTENCES: Final = {
    Obstacle.CORDONED: ("is cordoned", "are cordoned"),
    Obstacle.NOT_READY: ("is not ready", "are not ready"),
    Obstacle.UNREACHABLE: ("is unreachable", "are unreachable"),
    Obstacle.DELETING: ("is being deleted", "are being deleted"),
    Obstacle.IN_TROUBLE: ("has the condition {}", "have the condition {}"),
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
    """Verdicts over all nodes in topology order. Never changed: later looks are surveys of their own."""

    def __init__(self, request: GangRequest, nodes: Iterable[Node]) -> None:
        """`nodes` in topology order (`in_order`)."""
        self._request = request
        self._needs = [(name, amount) for name, amount in request.resources.items() if amount > 0]
        self.nodes: Sequence[Node] = list(nodes)
        self._verdicts = [self._verdict(node) for node in self.nodes]
        self._places = {node.name: index for index, node in enumerate(self.nodes)}
        self._refusals: dict[tuple[int, int], Refusal] = {}

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

    def reviewed(self, changed: Iterable[Node]) -> "Survey":
        """The survey with another look at nodes that have changed, not in name or labels."""
        again = tuple(changed)
        return self._again(self._request, again) if again else self

    def renewed(self, request: GangRequest, nodes: Nodes) -> "Survey | None":
        """The survey of this request over these nodes, made from this one; None where that is no shortcut.

        Looks only at nodes that are not the same object any more, and at those left out before or now.
        """
        mine = self._request
        if mine.resources != request.resources or mine.rules != request.rules:
            return None
        if len(nodes.by_name) != len(self.nodes):
            return None
        changed: dict[str, Node] = {}
        for node in self.nodes:
            now = nodes.get(node.name)
            if now is node:
                continue
            if now is None or now.labels != node.labels:
                return None
            changed[node.name] = now
        if mine.excluded != request.excluded:
            for name, _ in mine.excluded.items() ^ request.excluded.items():
                if (node_ := nodes.get(name)) is not None:
                    changed[name] = node_
        return self._again(request, changed.values()) if changed else self

    def _again(self, request: GangRequest, changed: Iterable[Node]) -> "Survey":
        """A copy for `request`, which may differ in `excluded`; the changed nodes are looked at again."""
        fresh = Survey.__new__(Survey)
        fresh._request, fresh._needs, fresh._places = request, self._needs, self._places
        fresh._refusals = {}
        nodes, verdicts = list(self.nodes), list(self._verdicts)
        for node in changed:
            index = self._places[node.name]
            nodes[index], verdicts[index] = node, fresh._verdict(node)
        fresh.nodes, fresh._verdicts = nodes, verdicts
        return fresh

    def refusal(self, want: int, fitting: int) -> Refusal:
        """Why `want` nodes cannot be had, with numbers and the first names of each cause."""
        known = self._refusals.get((want, fitting))
        if known is None:
            known = self._refusals[want, fitting] = self._refuse(want, fitting)
        return known

    def _refuse(self, want: int, fitting: int) -> Refusal:
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
        if node.trouble:
            return Cause(Obstacle.IN_TROUBLE, node.trouble)
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


class _Kept:
    """The last surveys, most recent first: a memory of what is true anyway, so whoever asks sees no trace."""

    def __init__(self) -> None:
        self._surveys: tuple[Survey, ...] = ()

    def look(self, request: GangRequest, nodes: Nodes) -> Survey:
        for known in self._surveys:
            found = known.renewed(request, nodes)
            if found is not None:
                self._keep(found, known)
                return found
        found = Survey(request, in_order(tuple(nodes.by_name.values())))
        self._keep(found, None)
        return found

    def _keep(self, found: Survey, instead: Survey | None) -> None:
        others = tuple(each for each in self._surveys if each is not instead)
        self._surveys = (found, *others)[:KEPT]


_kept: Final = _Kept()


def survey(request: GangRequest, nodes: Nodes) -> Survey:
    """Look at a whole snapshot.

    A gang that waits for a node asks in every pass, and hardly anything has changed since: what is the same
    as in one of the last surveys is not looked at again.
    """
    return _kept.look(request, nodes)


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

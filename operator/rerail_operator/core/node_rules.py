"""Which nodes a pod may go to: tolerations, selector and required affinity, read as kube-scheduler does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .world import Effect, Node, Taint

FIELD_NAME: Final = "metadata.name"


class Operator(StrEnum):
    """How a requirement compares a label (or the node's name) with its values."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One test on a label or, where `field` is True, on the node's name."""

    key: str
    operator: Operator | None  # None: an operator that we do not know, which no node passes
    values: tuple[str, ...] = ()
    field: bool = False

    def holds(self, node: Node) -> bool:
        found = self._found(node)
        match self.operator:
            case Operator.IN:
                return found in self.values
            case Operator.NOT_IN:
                return found not in self.values
            case Operator.EXISTS:
                return found is not None
            case Operator.DOES_NOT_EXIST:
                return found is None
            case Operator.GT:
                return self._compare(found, 1)
            case Operator.LT:
                return self._compare(found, -1)
        return False

    def _found(self, node: Node) -> str | None:
        if self.field:
            return node.name if self.key == FIELD_NAME else None
        return node.labels.get(self.key)

    def _compare(self, found: str | None, sign: int) -> bool:
        if found is None or len(self.values) != 1:
            return False
        try:
            return sign * int(found) > sign * int(self.values[0])
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Term:
    """Requirements that must all hold; an empty term holds nowhere."""

    requirements: tuple[Requirement, ...]

    def holds(self, node: Node) -> bool:
        return bool(self.requirements) and all(r.holds(node) for r in self.requirements)


@dataclass(frozen=True, slots=True)
class Toleration:
    """One toleration; an empty key with Exists tolerates every taint, an empty effect every effect."""

    key: str = ""
    exists: bool = False
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        if self.effect and self.effect != taint.effect:
            return False
        if self.key and self.key != taint.key:
            return False
        if self.exists:
            return True
        return bool(self.key) and self.value == taint.value


@dataclass(frozen=True, slots=True)
class NodeRules:
    """What a template says about nodes. `terms` None: no required affinity; empty: none can hold."""

    selector: tuple[tuple[str, str], ...] = ()
    terms: tuple[Term, ...] | None = None
    tolerations: tuple[Toleration, ...] = ()

    def chosen(self, node: Node) -> bool:
        """Selector and required affinity let the pod onto this node."""
        if any(node.labels.get(key) != value for key, value in self.selector):
            return False
        return self.terms is None or any(term.holds(node) for term in self.terms)

    def obstacle(self, node: Node) -> Taint | None:
        """The first taint that keeps the pod away."""
        for taint in node.taints:
            if taint.effect is not Effect.PREFER_NO_SCHEDULE and not any(
                toleration.tolerates(taint) for toleration in self.tolerations
            ):
                return taint
        return None


def node_rules(template: Mapping[str, Any], extra_tolerations: Iterable[Mapping[str, Any]] = ()) -> NodeRules:
    """Read the rules of a template; what cannot be read becomes a rule that no node passes."""
    spec = template["spec"]
    tolerations = (*extra_tolerations, *(spec.get("tolerations") or ()))
    return NodeRules(
        selector=tuple(sorted((spec.get("nodeSelector") or {}).items())),
        terms=_terms(spec.get("affinity") or {}),
        tolerations=tuple(_toleration(raw) for raw in tolerations),
    )


def _terms(affinity: Mapping[str, Any]) -> tuple[Term, ...] | None:
    required = (affinity.get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return None
    return tuple(
        Term(
            tuple(_requirement(raw, False) for raw in term.get("matchExpressions") or ())
            + tuple(_requirement(raw, True) for raw in term.get("matchFields") or ())
        )
        for term in required.get("nodeSelectorTerms") or ()
    )


def _requirement(raw: Mapping[str, Any], field: bool) -> Requirement:
    known = raw.get("operator") in set(Operator)
    return Requirement(
        key=str(raw.get("key", "")),
        operator=Operator(raw["operator"]) if known else None,
        values=tuple(str(value) for value in raw.get("values") or ()),
        field=field,
    )


def _toleration(raw: Mapping[str, Any]) -> Toleration:
    return Toleration(
        key=raw.get("key") or "",
        exists=raw.get("operator") == "Exists",
        value=raw.get("value") or "",
        effect=raw.get("effect") or "",
    )

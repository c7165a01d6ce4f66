"""The in-memory cluster's scheduler: it binds a pinned pod to its node, or says why not."""

from collections.abc import Mapping
from typing import Any

from rerail_operator.core.quantities import quantity_for_people
from rerail_operator.core.world import Effect, Node, Resources, Taint
from rerail_operator.shell.cluster import Object
from rerail_operator.shell.observe import observe_node, pod_requests, worker_record
from rerail_operator.shell.raw import as_raw_pod


def pinned_node(pod: Object) -> str:
    """The node that a pod's required affinity names; "" when it names none."""
    return worker_record(as_raw_pod(pod)).node


def refusal(pod: Object, node: Object | None, others: list[Object], ignore_resources: bool) -> str:
    """Why the pod cannot be bound to its node now, in kube-scheduler's manner; "" when it can."""
    seen = observe_node(node) if node else None
    if seen is None:
        return "0/1 nodes are available: 1 node(s) didn't satisfy plugin(s) [NodeAffinity]."
    if not seen.schedulable:
        return "0/1 nodes are available: 1 node(s) were unschedulable."
    tolerations = (pod.get("spec") or {}).get("tolerations") or []
    if taint := next((taint for taint in seen.taints if _repels(taint, tolerations)), None):
        return f"0/1 nodes are available: 1 node(s) had untolerated taint {{{taint.key}: {taint.value}}}."
    if ignore_resources:
        return ""
    lacking = _lacking(pod_requests(pod), seen, others)
    if not lacking:
        return ""
    return f"0/1 nodes are available: {', '.join(f'1 Insufficient {name}' for name in lacking)}."


def _lacking(asked: Resources, node: Node, others: list[Object]) -> list[str]:
    free = dict(node.allocatable)
    for other in others:
        for name, amount in pod_requests(other).items():
            free[name] = free.get(name, 0) - amount
    return [
        f"{name} (asks {quantity_for_people(name, amount)})"
        for name, amount in asked.items()
        if amount and amount > free.get(name, 0)
    ]


def _repels(taint: Taint, tolerations: list[Mapping[str, Any]]) -> bool:
    if taint.effect is Effect.PREFER_NO_SCHEDULE:
        return False
    return not any(_tolerates(toleration, taint) for toleration in tolerations)


def _tolerates(toleration: Mapping[str, Any], taint: Taint) -> bool:
    if toleration.get("effect") not in (None, "", taint.effect.value):
        return False
    if toleration.get("key") not in (None, "", taint.key):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == taint.value

"""Nodes that are only names: as they register, and as the node controller sees them fall silent. Pure."""

from collections.abc import Mapping

from rerail_operator.shell.cluster import Object


def fresh_node(name: str, room: Mapping[str, str]) -> Object:
    """A Ready node with this much of everything."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "spec": {},
        "status": {
            "capacity": dict(room),
            "allocatable": dict(room),
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }


def silent_node(now: str) -> Object:
    """The status of a node whose kubelet is not heard any more."""
    ready = {
        "type": "Ready",
        "status": "Unknown",
        "reason": "NodeStatusUnknown",
        "message": "Kubelet stopped posting node status.",
        "lastTransitionTime": now,
    }
    return {"conditions": [ready]}


def unreachable(now: str) -> list[Object]:
    """The taints that the node controller adds to such a node."""
    key = "node.kubernetes.io/unreachable"
    return [{"key": key, "effect": effect, "timeAdded": now} for effect in ("NoSchedule", "NoExecute")]

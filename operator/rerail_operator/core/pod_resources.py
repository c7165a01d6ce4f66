"""What a pod takes from its node, by kube-scheduler's own arithmetic."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from .quantities import THOUSAND, parse_quantity
from .world import Resources

PODS: Final = "pods"
"""The resource that counts pods: every pod takes one of its node's."""


def pod_request(template: Mapping[str, Any]) -> Resources:
    """Resources that a pod of this template takes (a template or a whole pod: only `spec` is read).

    Containers and sidecars run together, so they add up; ordinary init containers run one after the other
    beside the sidecars started before them, so only the largest counts; a pod-level request replaces the
    sum; the runtime's overhead comes on top. Source: Kubernetes, "Resource sharing within containers".
    Raises `BadQuantity`.
    """
    spec = template["spec"]
    together: dict[str, int] = {}
    for container in spec["containers"]:
        _add(together, _container_request(container))
    peak = _init_peak(spec.get("initContainers") or (), together)
    total = {name: max(together.get(name, 0), peak.get(name, 0)) for name in (*together, *peak)}
    total |= _pod_level(spec, together)
    _add(total, _amounts(spec.get("overhead")))
    return {name: amount for name, amount in total.items() if amount > 0} | {PODS: THOUSAND}


def _init_peak(containers: Iterable[Mapping[str, Any]], together: dict[str, int]) -> dict[str, int]:
    """The most that starting up takes at once; adds the sidecars to `together`."""
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in containers:
        request = _container_request(container)
        if container.get("restartPolicy") == "Always":
            _add(sidecars, request)
            _add(together, request)
            request = {}
        for name in (*request, *sidecars):
            peak[name] = max(peak.get(name, 0), request.get(name, 0) + sidecars.get(name, 0))
    return peak


def _pod_level(spec: Mapping[str, Any], together: Mapping[str, int]) -> dict[str, int]:
    resources = spec.get("resources") or {}
    limits = _amounts(resources.get("limits"))
    # A pod-level limit stands in for a request only where no container asks for that resource.
    return {n: v for n, v in limits.items() if n not in together} | _amounts(resources.get("requests"))


def _container_request(container: Mapping[str, Any]) -> dict[str, int]:
    resources = container.get("resources") or {}
    return _amounts(resources.get("limits")) | _amounts(resources.get("requests"))


def _amounts(written: Mapping[str, Any] | None) -> dict[str, int]:
    return {name: parse_quantity(amount) for name, amount in (written or {}).items()}


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount

"""Whether the parts of a template that Rerail reads can be read at all.

The schema leaves a template open, so the API server takes `tolerations: yes`; a pass must not crash on it.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from .pod_resources import pod_request
from .quantities import BadQuantity

# A dict says what its keys hold (_ANY: all of them), a list what its items are; a type stands for itself.
# Under a key null counts as absent.
_ANY: Final = "*"
_REQUIREMENTS: Final = [{"key": str, "operator": str, "values": [str]}]
_TERMS: Final = [{"matchExpressions": _REQUIREMENTS, "matchFields": _REQUIREMENTS}]
_RESOURCES: Final = {"requests": dict, "limits": dict}
_CONTAINERS: Final = [
    {
        "resources": _RESOURCES,
        "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
        "env": [dict],
        "terminationMessagePath": str,
        "restartPolicy": str,
    }
]
_SPEC: Final = {
    "containers": _CONTAINERS,
    "initContainers": _CONTAINERS,
    "volumes": [dict],
    "resources": _RESOURCES,
    "overhead": dict,
    "nodeSelector": {_ANY: str},
    "tolerations": [{"key": str, "operator": str, "value": str, "effect": str}],
    "affinity": {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": _TERMS}}
    },
}
_WORDS: Final = {str: "a text", bool: "true or false", dict: "an object", list: "a list"}


def unreadable(template: Mapping[str, Any]) -> str:
    """What in the template cannot be read, with its path and what to write; "" where all can."""
    misfit = _misfit(template["spec"], _SPEC, "spec.template.spec")
    if misfit:
        return misfit
    try:
        pod_request(template)
    except BadQuantity as bad:
        return f"resources in spec.template.spec: {bad}"
    return ""


def _misfit(value: Any, shape: Any, path: str) -> str:
    kind = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, kind):
        return f"{path} is {value!r:.60}: write {_WORDS[kind]}"
    return next((found for part in _parts(value, shape, path) if (found := _misfit(*part))), "")


def _parts(value: Any, shape: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """What is inside, with the shape it should have."""
    if isinstance(shape, list):
        for index, item in enumerate(value):
            yield item, shape[0], f"{path}[{index}]"
    elif isinstance(shape, dict):
        for key, inner in value.items():
            wanted = shape.get(key, shape.get(_ANY))
            if wanted is not None and inner is not None:
                yield inner, wanted, f"{path}.{key}"

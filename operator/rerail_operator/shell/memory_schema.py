"""What the in-memory cluster refuses, drops and fills in: as much of an API server as Rerail leans on.

TrainingJobs are held to the schema and the rules of the CRD. Of pods only the field names of the pod,
its containers and their resources are known: enough to catch a typo in a template.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

from rerail_api.crd import open_api_schema
from rerail_api.v1alpha1 import InvalidJob, check_change, parse_job
from rerail_operator.shell.cluster import Kind, Object, Rejected
from rerail_operator.shell.memory_store import copy_of

Schema = dict[str, Any]

_POD_WORDS: Final = """
activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy enableServiceLinks
ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname hostnameOverride
imagePullSecrets initContainers nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName
readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName schedulingGates
schedulingGroup securityContext serviceAccount serviceAccountName setHostnameAsFQDN shareProcessNamespace
subdomain terminationGracePeriodSeconds tolerations topologySpreadConstraints volumes workloadRef
"""
_CONTAINER_WORDS: Final = """
args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports readinessProbe resizePolicy
resources restartPolicy restartPolicyRules securityContext startupProbe stdin stdinOnce terminationMessagePath
terminationMessagePolicy tty volumeDevices volumeMounts workingDir
"""
_POD_FIELDS: Final = frozenset(_POD_WORDS.split())
_CONTAINER_FIELDS: Final = frozenset(_CONTAINER_WORDS.split())
_RESOURCE_FIELDS: Final = frozenset({"limits", "requests", "claims"})


def refuse_unknown(kind: Kind, obj: Object) -> None:
    """Strict field validation, as on create. Raises Rejected naming every unknown field."""
    unknown = [*_unknown_fields(kind, obj)]
    if unknown:
        words = ", ".join(f'unknown field "{path}"' for path in unknown)
        raise Rejected(f"{kind} cannot be handled: strict decoding error: {words}")


def admit_job(obj: Object) -> Object:
    """The job as it is stored: unknown fields dropped, defaults filled in. Changes `obj`."""
    schema = open_api_schema()
    for part in ("spec", "status"):
        if part in obj:
            obj[part] = _prune(schema["properties"][part], obj[part])
            _fill(schema["properties"][part], obj[part])
    return obj


def check_job(old: Object | None, new: Object) -> None:
    """Raises Rejected with the rules that `new` (or the step from `old`) breaks."""
    try:
        job = parse_job(new)
        broken = check_change(parse_job(old), job) if old is not None else ()
    except InvalidJob as error:
        broken = error.problems
    if broken:
        name = new["metadata"].get("name", "")
        raise Rejected(f'TrainingJob.rerail.dev "{name}" is invalid: {"; ".join(map(str, broken))}')


def without_nulls(value: Any) -> Any:
    """Typed objects of the API server hold no nulls."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _unknown_fields(kind: Kind, obj: Object) -> Iterator[str]:
    if kind is Kind.POD:
        yield from _unknown_in_pod(obj.get("spec") or {})
    elif kind is Kind.JOB:
        found: list[str] = []
        for part in ("spec", "status"):
            _prune(open_api_schema()["properties"][part], obj.get(part) or {}, part, found.append)
        yield from found


def _unknown_in_pod(spec: Object) -> Iterator[str]:
    yield from (f"spec.{name}" for name in spec if name not in _POD_FIELDS)
    for group in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(group) or ()):
            at = f"spec.{group}[{index}]"
            yield from (f"{at}.{name}" for name in container if name not in _CONTAINER_FIELDS)
            resources = container.get("resources") or {}
            yield from (f"{at}.resources.{name}" for name in resources if name not in _RESOURCE_FIELDS)


def _ignore(_path: str) -> None:
    """Nobody wants to know."""


def _prune(schema: Schema, value: Any, at: str = "", dropped: Callable[[str], None] = _ignore) -> Any:
    if isinstance(value, list):
        items = schema.get("items") or {}
        return [_prune(items, item, f"{at}[{index}]", dropped) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    known, rest = schema.get("properties") or {}, schema.get("additionalProperties")
    free = schema.get("x-kubernetes-preserve-unknown-fields", False)
    kept: Object = {}
    for name, item in value.items():
        path = f"{at}.{name}"
        if name in known:
            kept[name] = _prune(known[name], item, path, dropped)
        elif isinstance(rest, dict):
            kept[name] = _prune(rest, item, path, dropped)
        elif free or rest:
            kept[name] = item
        else:
            dropped(path)
    return kept


def _fill(schema: Schema, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _fill(schema.get("items") or {}, item)
    if not isinstance(value, dict):
        return
    for name, field in (schema.get("properties") or {}).items():
        if name not in value and "default" in field:
            value[name] = copy_of(field["default"])
        if name in value:
            _fill(field, value[name])

"""Parsing once, at the edge: Pods, Nodes and TrainingJobs of the API server -> slim, frozen records.

Past this file nobody reads raw JSON of a pod or node. What cannot be read becomes a value (None, an
empty text), never a crash: one odd pod must not stop the stream of all others.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from sys import intern
from types import MappingProxyType
from typing import Any

import msgspec

from rerail_api.contract import (
    ANNOTATION_TEMPLATE_HASH,
    LABEL_BIRTH_ROUND,
    LABEL_JOB,
    LABEL_JOB_UID,
    LABEL_NODE_RANK,
    LABEL_SINCE_ROUND,
    LABEL_SLOT,
    TRAINER_CONTAINER,
)
from rerail_operator.core.quantities import BadQuantity, parse_quantity
from rerail_operator.core.world import SPARE, Effect, Node, Pod, PodPhase, Resources, Taint, Termination
from rerail_operator.shell.keys import JobKey
from rerail_operator.shell.raw import (
    Amounts,
    RawCondition,
    RawContainer,
    RawContainerStatus,
    RawNode,
    RawPod,
    RawPodSpec,
    RawPodStatus,
    RawResources,
    as_raw_node,
    as_raw_pod,
)

PODS = "pods"
"""The resource in which a node counts its pods; every pod asks for one."""

UNKNOWN_EXIT = 137
"""What the kubelet itself writes for a container whose end it has not seen (ContainerStatusUnknown)."""

UNHEALTHY = "Unhealthy"
"""What the kubelet says of a device; the other words, Healthy and Unknown, say nothing against it."""

_STARTING = frozenset({"", "ContainerCreating", "PodInitializing"})
_TERMINAL = frozenset({PodPhase.SUCCEEDED.value, PodPhase.FAILED.value})
_POD_LEVEL = ("cpu", "memory", "hugepages-")


@dataclass(frozen=True, slots=True)
class PodRecord:
    """One pod as the fleet keeps it. `pod` is None when its labels are not those of a worker pod."""

    uid: str
    namespace: str
    name: str
    node: str  # where it holds resources: bound to, or pinned to; "" for neither
    requests: Resources
    holds: bool  # not yet terminal: its requests count on its node
    job: JobKey | None = None
    job_uid: str = ""
    pod: Pod | None = None


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node; `node.free` is all of its allocatable, pods are subtracted by the fleet."""

    uid: str
    node: Node


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One TrainingJob as raw JSON; whoever decides parses it with `rerail_api`."""

    uid: str
    key: JobKey
    raw: dict[str, Any]


def observe_pod(obj: dict[str, Any]) -> Pod | None:
    """A worker pod from its JSON; None when it is none of ours or cannot be read."""
    try:
        return _worker(as_raw_pod(obj))
    except msgspec.ValidationError:
        return None


def observe_node(obj: dict[str, Any], bad_conditions: Collection[str] = ()) -> Node | None:
    """A node from its JSON, with all of its allocatable free; None when it cannot be read."""
    try:
        return node_record(as_raw_node(obj), bad_conditions).node
    except msgspec.ValidationError:
        return None


def pod_requests(obj: dict[str, Any]) -> Resources:
    """What a pod takes from its node, in thousandths, and one of `pods`. Raises msgspec.ValidationError."""
    return _requests(as_raw_pod(obj).spec)


def worker_record(raw: RawPod) -> PodRecord:
    """The record of a pod that carries our label."""
    meta, labels = raw.metadata, raw.metadata.labels or {}
    job = labels.get(LABEL_JOB, "")
    return PodRecord(
        uid=meta.uid,
        namespace=intern(meta.namespace),
        name=meta.name,
        node=_node_of(raw.spec),
        requests=_requests(raw.spec),
        holds=raw.status.phase not in _TERMINAL,
        job=JobKey(intern(meta.namespace), intern(job)) if job else None,
        job_uid=intern(labels.get(LABEL_JOB_UID, "")),
        pod=_worker(raw),
    )


def foreign_record(raw: RawPod) -> PodRecord:
    """The record of anybody else's pod: where it is and what it takes."""
    meta = raw.metadata
    return PodRecord(
        uid=meta.uid,
        namespace=intern(meta.namespace),
        name=meta.name,
        node=intern(raw.spec.node_name),
        requests=_requests(raw.spec),
        holds=raw.status.phase not in _TERMINAL,
    )


def node_record(raw: RawNode, bad_conditions: Collection[str] = ()) -> NodeRecord:
    """The record of a node; it is in trouble while a condition of one of these types is True."""
    meta, spec, status = raw.metadata, raw.spec, raw.status
    ready = _condition(status.conditions, "Ready")
    allocatable = MappingProxyType(_amounts(status.allocatable))
    is_ready = {"True": True, "False": False}.get(ready.status) if ready else None
    node = Node(
        name=intern(meta.name),
        ready=is_ready,
        schedulable=not spec.unschedulable,
        taints=tuple(Taint(taint.key, _effect(taint.effect), taint.value) for taint in spec.taints or ()),
        labels=MappingProxyType({intern(key): intern(value) for key, value in (meta.labels or {}).items()}),
        allocatable=allocatable,
        free=allocatable,
        deleting=meta.deletion_timestamp is not None,
        trouble=_trouble(status.conditions, bad_conditions) if bad_conditions else "",
        not_ready_since=ready.last_transition_time if ready and not is_ready else None,
    )
    return NodeRecord(uid=meta.uid, node=node)


def job_record(obj: dict[str, Any]) -> JobRecord:
    """The record of a TrainingJob."""
    meta = obj["metadata"]
    return JobRecord(uid=meta["uid"], key=JobKey(meta["namespace"], meta["name"]), raw=obj)


def _worker(raw: RawPod) -> Pod | None:
    meta, labels = raw.metadata, raw.metadata.labels or {}
    try:
        node_rank, since = int(labels.get(LABEL_NODE_RANK, SPARE)), int(labels[LABEL_SINCE_ROUND])
        birth, slot = int(labels[LABEL_BIRTH_ROUND]), int(labels[LABEL_SLOT])
    except (KeyError, ValueError):
        return None
    scheduled = _condition(raw.status.conditions, "PodScheduled")
    disrupted = _condition(raw.status.conditions, "DisruptionTarget")
    bound = bool(raw.spec.node_name)
    return Pod(
        name=meta.name,
        uid=meta.uid,
        node_rank=node_rank,
        since_round=since,
        birth_round=birth,
        slot=slot,
        phase=_phase(raw.status.phase),
        node=_node_of(raw.spec),
        bound=bound,
        deleting=meta.deletion_timestamp is not None,
        created=meta.creation_timestamp,
        termination=_termination(raw.status),
        unschedulable=scheduled.message or scheduled.reason
        if scheduled and scheduled.status == "False" and not bound
        else "",
        waiting=_waiting(raw.status),
        disruption=disrupted.reason if disrupted and disrupted.status == "True" else "",
        bad_device=_bad_device(raw.status),
        template_hash=intern((meta.annotations or {}).get(ANNOTATION_TEMPLATE_HASH, "")),
        resource_version=meta.resource_version,
    )


def _phase(written: str) -> PodPhase:
    try:
        return PodPhase(written or PodPhase.PENDING)
    except ValueError:
        return PodPhase.UNKNOWN


def _effect(written: str) -> Effect:
    try:
        return Effect(written)
    except ValueError:
        return Effect.NO_SCHEDULE  # an effect of the future: staying away is the safe reading


def _condition(conditions: list[RawCondition] | None, kind: str) -> RawCondition | None:
    return next((condition for condition in conditions or () if condition.type == kind), None)


def _trouble(conditions: list[RawCondition] | None, bad: Collection[str]) -> str:
    # Type and reason alone: messages hold counts and times, and would never be the same twice.
    told = [c for c in conditions or () if c.type in bad and c.status == "True"]
    return ", ".join(sorted(f"{c.type} ({c.reason})" if c.reason else c.type for c in told))


def _bad_device(status: RawPodStatus) -> str:
    for container in status.container_statuses or ():
        for resource in container.allocated_resources_status or ():
            for device in resource.resources or ():
                if device.health == UNHEALTHY:
                    return intern(f"{resource.name} {device.resource_id}".strip())
    return ""


def _node_of(spec: RawPodSpec) -> str:
    if spec.node_name:
        return intern(spec.node_name)
    affinity = spec.affinity.node_affinity if spec.affinity else None
    required = affinity.required if affinity else None
    # Rerail writes its pin into every term, after what people wrote there.
    for term in (required.node_selector_terms if required else None) or ():
        for field in reversed(term.match_fields or ()):
            if field.key == "metadata.name" and field.operator == "In" and len(field.values or ()) == 1:
                return intern((field.values or [""])[0])
    return ""


def _termination(status: RawPodStatus) -> Termination | None:
    for container in status.container_statuses or ():
        ended = container.state.terminated if container.state else None
        if container.name == TRAINER_CONTAINER and ended:
            reason = status.reason or ended.reason
            message = ended.message or status.message
            return Termination(ended.exit_code, ended.signal, reason, message)
    if status.phase == PodPhase.FAILED:
        # Refused by the kubelet, evicted before the start or lost with its node: no container to ask.
        return Termination(UNKNOWN_EXIT, None, status.reason or "ContainerStatusUnknown", status.message)
    return None


def _waiting(status: RawPodStatus) -> str:
    return next(
        (
            text
            for statuses in (status.init_container_statuses, status.container_statuses)
            for container in statuses or ()
            if (text := _why_waiting(container))
        ),
        "",
    )


def _why_waiting(container: RawContainerStatus) -> str:
    waiting = container.state.waiting if container.state else None
    if waiting is None or waiting.reason in _STARTING:
        return ""
    return f"{waiting.reason}: {waiting.message}" if waiting.message else waiting.reason


def _requests(spec: RawPodSpec) -> Resources:
    """Kubernetes' rule: the greater of all containers together and the steepest moment of initialisation,
    sidecars counted from where they start, plus the overhead; pod-level requests replace the sums."""
    sidecars: dict[str, int] = {}
    steepest: dict[str, int] = {}
    for container in spec.init_containers or ():
        asked = _asked(container)
        if container.restart_policy == "Always":
            _add(sidecars, asked)
            _raise_to(steepest, sidecars)
        else:
            moment = dict(sidecars)
            _add(moment, asked)
            _raise_to(steepest, moment)
    total = sidecars
    for container in spec.containers or ():
        _add(total, _asked(container))
    _raise_to(total, steepest)
    if spec.resources:
        total.update(_pod_level(spec.resources))
    _add(total, _amounts(spec.overhead))
    total[PODS] = 1000
    return _shared(tuple(sorted(total.items())))


def _asked(container: RawContainer) -> dict[str, int]:
    return _claims(container.resources) if container.resources else {}


def _claims(resources: RawResources) -> dict[str, int]:
    # A limit without a request is the request; the API server writes it down, the memory cluster does not.
    return _amounts(resources.limits) | _amounts(resources.requests)


def _pod_level(resources: RawResources) -> dict[str, int]:
    return {name: amount for name, amount in _claims(resources).items() if name.startswith(_POD_LEVEL)}


def _amounts(written: Amounts | None) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for name, quantity in (written or {}).items():
        try:
            amounts[intern(name)] = parse_quantity(quantity)
        except BadQuantity:  # the API server stores none; a foreign one must not stop the stream
            continue
    return amounts


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, 0) + amount


def _raise_to(total: dict[str, int], least: dict[str, int]) -> None:
    for name, amount in least.items():
        total[name] = max(total.get(name, 0), amount)


@lru_cache(maxsize=4096)
def _shared(items: tuple[tuple[str, int], ...]) -> Resources:
    # The pods of a gang ask for the same: one mapping for all of them.
    return MappingProxyType(dict(items))

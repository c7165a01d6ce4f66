"""The objects of a job as plain dicts: worker pods, the agent's ConfigMap, the frozen template.

Built around the user's template, never through it: what Rerail does not set is passed on untouched. The
results share structure with the template and with each other: read them, never change them.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rerail_api.contract import (
    AGENT_FILE,
    AGENT_MOUNT,
    ANNOTATION_TEMPLATE_HASH,
    API_VERSION,
    CA_FILE,
    IDENTITY_MOUNT,
    KIND,
    TOKEN_AUDIENCE,
    TOKEN_FILE,
    TRAINER_CONTAINER,
    VOLUME_PREFIX,
    Env,
)
from rerail_api.v1alpha1 import TrainingJob

from .names import config_map_name, content_hash, job_labels, pod_labels, revision_name
from .plan import CreatePod
from .pod_resources import pod_request
from .template_facts import checkpoint_is_durable, num_proc

__all__ = [
    "Endpoint",
    "PodSpecInput",
    "agent_config_map",
    "checkpoint_is_durable",
    "controller_revision",
    "frozen_template",
    "num_proc",
    "owner_reference",
    "pinned_affinity",
    "pod_manifest",
    "pod_request",
]

Json = dict[str, Any]

STOP_MARGIN_SECONDS: Final = 20
"""What the kubelet waits beyond the job's own grace: the agent's KILL, sweep and last report."""
TOKEN_SECONDS: Final = 3600
SHM_PATH: Final = "/dev/shm"  # noqa: S108 - the path that PyTorch's loaders use, made private by the kubelet
SHM_VOLUME: Final = f"{VOLUME_PREFIX}shm"
AGENT_VOLUME: Final = f"{VOLUME_PREFIX}agent"
IDENTITY_VOLUME: Final = f"{VOLUME_PREFIX}identity"
DEFAULT_TERMINATION_LOG: Final = "/dev/termination-log"

PATIENCE: Final = tuple(
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute"}
    for key in ("not-ready", "unreachable")
)
"""Tolerations without a limit: Rerail decides what a lost node means, not the eviction timer."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the coordinator answers, as the agents are told."""

    address: str  # host:port
    tls: bool = True
    server_name: str = ""  # the name in the coordinator's certificate


@dataclass(frozen=True, slots=True)
class PodSpecInput:
    """What a pod needs beside the job and its template."""

    pod: CreatePod
    nproc: int  # ranks per node
    template_hash: str
    config_map: str  # the name that `agent_config_map` gave
    endpoint: Endpoint


def pod_manifest(job: TrainingJob, template: Mapping[str, Any], given: PodSpecInput) -> Json:
    """The pod of one node rank, pinned to its node, with the agent in front of the user's command."""
    meta, spec = template.get("metadata") or {}, template["spec"]
    pod, name, uid = given.pod, job.metadata.name, job.metadata.uid
    ours = pod_labels(name, uid, node_rank=pod.node_rank, birth_round=pod.round, slot=pod.slot)
    shm = not _mounts_shm(spec)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": job.metadata.namespace,
            "labels": {**(meta.get("labels") or {}), **ours},
            "annotations": {
                **(meta.get("annotations") or {}),
                ANNOTATION_TEMPLATE_HASH: given.template_hash,
            },
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            **spec,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": job.spec.checkpoint.grace_seconds + STOP_MARGIN_SECONDS,
            "affinity": pinned_affinity(spec.get("affinity"), pod.node),
            "tolerations": _tolerations(spec),
            "containers": [
                _with_agent(container, job, given, shm)
                if container.get("name") == TRAINER_CONTAINER
                else container
                for container in spec["containers"]
            ],
            "volumes": [*(spec.get("volumes") or ()), *_volumes(given, shm)],
        },
    }


def owner_reference(job: TrainingJob) -> Json:
    """Everything goes with its job; deleting the job waits for none of it."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def pinned_affinity(affinity: Mapping[str, Any] | None, node: str) -> Json:
    """The user's affinity with every alternative narrowed to one node.

    Terms are alternatives, so the pin goes into each. An empty term matches no node: pinning would turn it
    into one that does, so it is dropped.
    """
    pin = {"key": "metadata.name", "operator": "In", "values": [node]}
    node_affinity = (affinity or {}).get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = [
        {**term, "matchFields": [*(term.get("matchFields") or ()), pin]}
        for term in required.get("nodeSelectorTerms") or ()
        if term.get("matchExpressions") or term.get("matchFields")
    ]
    return {
        **(affinity or {}),
        "nodeAffinity": {
            **node_affinity,
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": terms or [{"matchFields": [pin]}]
            },
        },
    }


def _tolerations(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # Ours first: for each taint the taint controller takes the time limit of the first toleration that fits.
    return [*PATIENCE, *(t for t in spec.get("tolerations") or () if t not in PATIENCE)]


def _with_agent(container: Mapping[str, Any], job: TrainingJob, given: PodSpecInput, shm: bool) -> Json:
    mounts: list[Json] = [
        {"name": AGENT_VOLUME, "mountPath": AGENT_MOUNT, "readOnly": True},
        {"name": IDENTITY_VOLUME, "mountPath": IDENTITY_MOUNT, "readOnly": True},
    ]
    if shm:
        mounts.append({"name": SHM_VOLUME, "mountPath": SHM_PATH})
    log = container.get("terminationMessagePath") or DEFAULT_TERMINATION_LOG
    return {
        **container,
        "command": ["python3", f"{AGENT_MOUNT}/{AGENT_FILE}", "--", *(container.get("command") or ())],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # Ours first, so that the user's own variables may refer to them as $(NAME).
        "env": [*_environment(job, given, log), *(container.get("env") or ())],
        "volumeMounts": [*(container.get("volumeMounts") or ()), *mounts],
    }


def _environment(job: TrainingJob, given: PodSpecInput, termination_log: str) -> list[Json]:
    checkpoint, endpoint = job.spec.checkpoint, given.endpoint
    fields = {
        Env.POD: "metadata.name",
        Env.POD_UID: "metadata.uid",
        # Under hostNetwork the pod's IP is its node's.
        Env.POD_IP: "status.podIP",
        Env.NODE: "spec.nodeName",
    }
    values = {
        Env.COORDINATOR: endpoint.address,
        Env.COORDINATOR_TLS: "1" if endpoint.tls else "0",
        Env.COORDINATOR_NAME: endpoint.server_name,
        Env.CA_FILE: f"{AGENT_MOUNT}/{CA_FILE}",
        Env.TOKEN_FILE: f"{IDENTITY_MOUNT}/{TOKEN_FILE}",
        Env.NPROC: str(given.nproc),
        Env.LAUNCHER: job.spec.launcher.value,
        Env.WARM_START: job.spec.warm_start.value,
        Env.GRACE_SECONDS: str(checkpoint.grace_seconds),
        Env.TERMINATION_LOG: termination_log,
        Env.JOB: f"{job.metadata.namespace}/{job.metadata.name}",
        Env.JOB_UID: job.metadata.uid,
        Env.CHECKPOINT_DIR: checkpoint.path,
        Env.RESUME: checkpoint.resume.value,
    }
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        *({"name": name, "value": value} for name, value in values.items()),
    ]


def _volumes(given: PodSpecInput, shm: bool) -> list[Json]:
    token = {"audience": TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": TOKEN_FILE}
    volumes: list[Json] = [
        {"name": AGENT_VOLUME, "configMap": {"name": given.config_map}},
        {"name": IDENTITY_VOLUME, "projected": {"sources": [{"serviceAccountToken": token}]}},
    ]
    if shm:
        volumes.append({"name": SHM_VOLUME, "emptyDir": {"medium": "Memory"}})
    return volumes


def _mounts_shm(spec: Mapping[str, Any]) -> bool:
    return any(
        str(mount.get("mountPath", "")).rstrip("/") == SHM_PATH
        for container in spec["containers"]
        if container.get("name") == TRAINER_CONTAINER
        for mount in container.get("volumeMounts") or ()
    )


def agent_config_map(job: TrainingJob, agent: bytes, ca_pem: str = "") -> Json:
    """The agent and the coordinator's CA, immutable; its name says what is inside.

    `ca_pem` empty: the coordinator speaks without TLS (`rerail run`).
    """
    ca = {CA_FILE: ca_pem} if ca_pem else {}
    name = config_map_name(job.metadata.name, job.metadata.uid, content_hash(agent, ca_pem.encode()))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _owned_metadata(job, name),
        "immutable": True,
        "data": ca,
        "binaryData": {AGENT_FILE: base64.b64encode(agent).decode("ascii")},
    }


def controller_revision(job: TrainingJob, template: Mapping[str, Any], template_hash: str) -> Json:
    """The template as it was at admission; all pods until the next resume come from it."""
    name = revision_name(job.metadata.name, job.metadata.uid, template_hash)
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": _owned_metadata(job, name),
        "data": {"template": template},
        "revision": max(1, job.metadata.generation),
    }


def frozen_template(revision: Mapping[str, Any]) -> Json:
    """The template inside a ControllerRevision made by `controller_revision`."""
    template: Json = revision["data"]["template"]
    return template


def _owned_metadata(job: TrainingJob, name: str) -> Json:
    return {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": job_labels(job.metadata.name, job.metadata.uid),
        "ownerReferences": [owner_reference(job)],
    }

"""What is read from raw pods and nodes, as tables of sentences."""

from datetime import UTC, datetime
from typing import Any

import pytest

from rerail_operator.core.names import pod_labels
from rerail_operator.core.world import Effect, Pod, PodPhase, Taint, Termination
from rerail_operator.shell.observe import observe_node, observe_pod, pod_requests

NODE_PIN = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}],
                    "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-7"]}],
                }
            ]
        }
    }
}


def raw_pod(
    spec: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **meta: Any
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "gpt-abcde-2-3",
            "namespace": "ml",
            "uid": "pod-uid",
            "resourceVersion": "41",
            "creationTimestamp": "2026-11-23T10:00:00Z",
            "labels": pod_labels("gpt", "abcdef", node_rank=3, birth_round=2, slot=3),
            "annotations": {"rerail.dev/template-hash": "h1"},
            "managedFields": [{"manager": "kubelet"}],
            **meta,
        },
        "spec": {"affinity": NODE_PIN, "containers": [{"name": "trainer"}], **(spec or {})},
        "status": {"phase": "Pending", **(status or {})},
    }


def container(state: dict[str, Any], name: str = "trainer") -> dict[str, Any]:
    return {"name": name, "state": state, "ready": False}


def holding(*devices: tuple[str, str], state: dict[str, Any] | None = None) -> dict[str, Any]:
    """The status of a running pod as the kubelet writes it, with the health of the devices that it holds."""
    health = [{"resourceID": device, "health": told} for device, told in devices]
    allocated = [{"name": "cpu"}, {"name": "nvidia.com/gpu", **({"resources": health} if health else {})}]
    status = {
        **container(state or {"running": {"startedAt": "2026-11-23T10:00:00Z"}}),
        "allocatedResources": {"cpu": "8", "nvidia.com/gpu": "8"},
        "allocatedResourcesStatus": allocated,
        "resources": {"limits": {"nvidia.com/gpu": "8"}},
    }
    return {"phase": "Running", "containerStatuses": [container({"running": {}}, "sidecar"), status]}


def seen(raw: dict[str, Any]) -> Pod:
    pod = observe_pod(raw)
    assert pod is not None
    return pod


def test_a_fresh_worker_is_pending_on_the_node_it_is_pinned_to() -> None:
    assert seen(raw_pod()) == Pod(
        name="gpt-abcde-2-3",
        uid="pod-uid",
        node_rank=3,
        since_round=2,
        birth_round=2,
        slot=3,
        phase=PodPhase.PENDING,
        node="node-7",
        created=datetime(2026, 11, 23, 10, tzinfo=UTC),
        template_hash="h1",
    )


EXITED = {"exitCode": 1, "reason": "Error", "message": "Traceback"}
POD_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bound: the node is where it is": (
        raw_pod({"nodeName": "node-9"}),
        {"node": "node-9", "bound": True},
    ),
    "being deleted": (raw_pod(deletionTimestamp="2026-11-23T10:05:00Z"), {"deleting": True}),
    "a phase of the future is Unknown": (raw_pod(status={"phase": "Resting"}), {"phase": PodPhase.UNKNOWN}),
    "unschedulable in kube-scheduler's words": (
        raw_pod(
            status={
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/4 nodes are available",
                        "lastProbeTime": None,
                    }
                ]
            }
        ),
        {"unschedulable": "0/4 nodes are available"},
    ),
    "scheduled": (
        raw_pod({"nodeName": "n"}, {"conditions": [{"type": "PodScheduled", "status": "True"}]}),
        {"unschedulable": ""},
    ),
    "the image cannot be pulled": (
        raw_pod(
            status={
                "containerStatuses": [
                    container({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
                ]
            }
        ),
        {"waiting": "ImagePullBackOff: no such image"},
    ),
    "an init container cannot start": (
        raw_pod(
            status={
                "initContainerStatuses": [container({"waiting": {"reason": "ErrImagePull"}}, "fetch")],
                "containerStatuses": [container({"waiting": {"reason": "PodInitializing"}})],
            }
        ),
        {"waiting": "ErrImagePull"},
    ),
    "creating the container is no trouble": (
        raw_pod(status={"containerStatuses": [container({"waiting": {"reason": "ContainerCreating"}})]}),
        {"waiting": ""},
    ),
    "the trainer has ended": (
        raw_pod(status={"phase": "Failed", "containerStatuses": [container({"terminated": EXITED})]}),
        {"phase": PodPhase.FAILED, "termination": Termination(1, None, "Error", "Traceback")},
    ),
    "killed out of memory": (
        raw_pod(
            status={
                "phase": "Failed",
                "containerStatuses": [
                    container({"terminated": {"exitCode": 137, "reason": "OOMKilled", "signal": 9}})
                ],
            }
        ),
        {"termination": Termination(137, 9, "OOMKilled", "")},
    ),
    "another container's end does not count": (
        raw_pod(
            status={
                "phase": "Running",
                "containerStatuses": [
                    container({"terminated": EXITED}, "sidecar"),
                    container({"running": {"startedAt": "2026-11-23T10:00:01Z"}}),
                ],
            }
        ),
        {"termination": None, "phase": PodPhase.RUNNING},
    ),
    "the trainer's end counts while a sidecar runs": (
        raw_pod(status={"phase": "Running", "containerStatuses": [container({"terminated": EXITED})]}),
        {"termination": Termination(1, None, "Error", "Traceback")},
    ),
    "evicted before it began: the pod's own words": (
        raw_pod(status={"phase": "Failed", "reason": "Evicted", "message": "low on disk"}),
        {"termination": Termination(137, None, "Evicted", "low on disk")},
    ),
    "evicted while it ran: the reason is the pod's, the code the container's": (
        raw_pod(
            status={
                "phase": "Failed",
                "reason": "Evicted",
                "message": "low on memory",
                "containerStatuses": [container({"terminated": {"exitCode": 143, "reason": "Error"}})],
            }
        ),
        {"termination": Termination(143, None, "Evicted", "low on memory")},
    ),
    "disrupted": (
        raw_pod(
            status={
                "conditions": [
                    {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
                ]
            }
        ),
        {"disruption": "DeletionByTaintManager"},
    ),
    "a device that the kubelet calls unhealthy": (
        raw_pod(status=holding(("GPU-0", "Healthy"), ("GPU-7", "Unhealthy"))),
        {"bad_device": "nvidia.com/gpu GPU-7"},
    ),
    "devices that are well or unknown": (
        raw_pod(status=holding(("GPU-0", "Healthy"), ("GPU-7", "Unknown"))),
        {"bad_device": ""},
    ),
    "a kubelet that says nothing of devices": (
        raw_pod(status={"phase": "Running", "containerStatuses": [container({"running": {}})]}),
        {"bad_device": ""},
    ),
    "a resource of which nothing is known yet": (raw_pod(status=holding()), {"bad_device": ""}),
    "a device is still known to be bad when the container has ended": (
        raw_pod(status=holding(("GPU-7", "Unhealthy"), state={"terminated": EXITED})),
        {"bad_device": "nvidia.com/gpu GPU-7", "termination": Termination(1, None, "Error", "Traceback")},
    ),
}


@pytest.mark.parametrize("sentence", POD_CASES)
def test_pods(sentence: str) -> None:
    raw, wanted = POD_CASES[sentence]
    pod = seen(raw)
    assert {name: getattr(pod, name) for name in wanted} == wanted


NOT_WORKERS: dict[str, dict[str, Any]] = {
    "no labels": raw_pod(labels=None),
    "somebody else's labels": raw_pod(labels={"app": "web"}),
    "a rank that is no number": raw_pod(
        labels={**raw_pod()["metadata"]["labels"], "rerail.dev/node-rank": "x"}
    ),
    "containers that are none": raw_pod({"containers": "none"}),
    "no metadata": {"spec": {}},
}


@pytest.mark.parametrize("sentence", NOT_WORKERS)
def test_what_is_no_worker_pod_is_none(sentence: str) -> None:
    assert observe_pod(NOT_WORKERS[sentence]) is None


def asks(**amounts: str) -> dict[str, Any]:
    return {"requests": {name.replace("_", "."): amount for name, amount in amounts.items()}}


REQUESTS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "containers add up, and the pod itself counts": (
        {"containers": [{"resources": asks(cpu="500m")}, {"resources": asks(cpu="2", memory="1Ki")}]},
        {"cpu": 2500, "memory": 1024_000, "pods": 1000},
    ),
    "a limit without a request is the request": (
        {"containers": [{"resources": {"limits": {"nvidia.com/gpu": 8, "cpu": "4"}, **asks(cpu="1")}}]},
        {"nvidia.com/gpu": 8000, "cpu": 1000, "pods": 1000},
    ),
    "init containers count when they ask for more than all others together": (
        {
            "initContainers": [{"resources": asks(cpu="3")}, {"resources": asks(cpu="1", memory="5")}],
            "containers": [{"resources": asks(cpu="2")}],
        },
        {"cpu": 3000, "memory": 5000, "pods": 1000},
    ),
    "sidecars run beside the containers and beside later init containers": (
        {
            "initContainers": [
                {"resources": asks(cpu="4")},
                {"restartPolicy": "Always", "resources": asks(cpu="1")},
                {"resources": asks(cpu="5")},
            ],
            "containers": [{"resources": asks(cpu="2")}],
        },
        {"cpu": 6000, "pods": 1000},
    ),
    "a sidecar adds to the containers": (
        {
            "initContainers": [{"restartPolicy": "Always", "resources": asks(cpu="1")}],
            "containers": [{"resources": asks(cpu="2")}],
        },
        {"cpu": 3000, "pods": 1000},
    ),
    "the overhead comes on top": (
        {"overhead": {"cpu": "250m"}, "containers": [{"resources": asks(cpu="1")}]},
        {"cpu": 1250, "pods": 1000},
    ),
    "pod-level requests replace the sum of what they name": (
        {
            "resources": {**asks(cpu="8"), "limits": {"memory": "7"}},
            "containers": [{"resources": asks(cpu="1", memory="3", x="1")}],
        },
        {"cpu": 8000, "memory": 7000, "x": 1000, "pods": 1000},
    ),
    "a quantity that is none is left out": (
        {"containers": [{"resources": asks(cpu="much", memory="1")}]},
        {"memory": 1000, "pods": 1000},
    ),
}


@pytest.mark.parametrize("sentence", REQUESTS)
def test_requests(sentence: str) -> None:
    spec, wanted = REQUESTS[sentence]
    assert dict(pod_requests({"metadata": {"name": "p"}, "spec": spec})) == wanted


def raw_node(spec: dict[str, Any] | None = None, ready: str = "True", **meta: Any) -> dict[str, Any]:
    condition = {"type": "Ready", "status": ready, "lastTransitionTime": "2026-11-23T10:00:00Z"}
    return {
        "metadata": {"name": "node-1", "uid": "n", "labels": {"zone": "a"}, **meta},
        "spec": spec or {},
        "status": {
            "allocatable": {"cpu": "127500m", "nvidia.com/gpu": "8"},
            "conditions": [{"type": "MemoryPressure", "status": "False"}, condition],
        },
    }


SINCE = datetime(2026, 11, 23, 10, tzinfo=UTC)
NODE_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ready": (raw_node(), {"ready": True, "schedulable": True, "not_ready_since": None}),
    "all of it is free before pods are counted": (
        raw_node(),
        {"free": {"cpu": 127_500, "nvidia.com/gpu": 8000}},
    ),
    "not ready": (raw_node(ready="False"), {"ready": False, "not_ready_since": SINCE}),
    "lost": (raw_node(ready="Unknown"), {"ready": None, "not_ready_since": SINCE}),
    "never heard of": ({"metadata": {"name": "x"}}, {"ready": None, "not_ready_since": None}),
    "cordoned": (raw_node({"unschedulable": True}), {"schedulable": False}),
    "tainted": (
        raw_node({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}),
        {"taints": (Taint("gpu", Effect.NO_SCHEDULE, "yes"),)},
    ),
    "an effect of the future keeps us away": (
        raw_node({"taints": [{"key": "k", "effect": "NoBreath"}]}),
        {"taints": (Taint("k", Effect.NO_SCHEDULE),)},
    ),
    "leaving": (raw_node(deletionTimestamp="2026-11-23T10:05:00Z"), {"deleting": True}),
}


@pytest.mark.parametrize("sentence", NODE_CASES)
def test_nodes(sentence: str) -> None:
    raw, wanted = NODE_CASES[sentence]
    node = observe_node(raw)
    assert node is not None
    assert {name: getattr(node, name) for name in wanted} == wanted


def test_a_node_that_cannot_be_read_is_none() -> None:
    assert observe_node({"metadata": {"name": "n"}, "status": {"conditions": "fine"}}) is None


TROUBLE = {
    "a condition that is True": (("GpuUnhealthy", "True", "XidError"), "GpuUnhealthy (XidError)"),
    "one that gives no reason": (("GpuUnhealthy", "True", ""), "GpuUnhealthy"),
    "one that is False": (("GpuUnhealthy", "False", "NoXid"), ""),
    "one that nobody can tell": (("GpuUnhealthy", "Unknown", "NoData"), ""),
    "one that was not asked for": (("NetworkUnavailable", "True", "NoRoute"), ""),
}


@pytest.mark.parametrize(("condition", "trouble"), TROUBLE.values(), ids=TROUBLE)
def test_a_node_is_in_trouble_where_a_condition_says_so_that_counts(
    condition: tuple[str, str, str], trouble: str
) -> None:
    raw = raw_node()
    known = dict(zip(("type", "status", "reason"), condition, strict=True))
    raw["status"]["conditions"].append({**known, "message": "at 10:04:17, 3 times"})
    for bad, wanted in ((("GpuUnhealthy", "KernelDeadlock"), trouble), ((), "")):
        node = observe_node(raw, bad)
        assert node is not None and (node.trouble, node.ready) == (wanted, True)

"""Ranks per node, what a pod takes from its node, and whether checkpoints outlive it."""

from typing import Any

import pytest

from rerail_operator.core.pod_resources import pod_request
from rerail_operator.core.template_facts import checkpoint_is_durable, num_proc

from .ground import GIB, GPU, a_job, a_template

ACCELERATORS = (GPU, "amd.com/gpu")


def with_limits(**limits: Any) -> dict[str, Any]:
    template = a_template()
    template["spec"]["containers"][0]["resources"] = {"limits": limits}
    return template


PROCS: dict[str, tuple[Any, dict[str, Any], int | str]] = {
    "a number is a number": (4, a_template(8), 4),
    "auto counts the one accelerator": ("auto", a_template(8), 8),
    "auto without any is one": ("auto", a_template(0), 1),
    "two accelerators are refused": (
        "auto",
        with_limits(**{GPU: 8, "amd.com/gpu": 4}),
        "the limits of container trainer name several accelerators (amd.com/gpu, nvidia.com/gpu): set spec.numProcPerNode to a number",
    ),
    "more than 64 are refused": (
        "auto",
        with_limits(**{GPU: 100}),
        "the limits of the trainer container name 100 accelerators, more than the 64 ranks a node may have: set spec.numProcPerNode to a number",
    ),
    "half a GPU is refused": (
        "auto",
        with_limits(**{GPU: "500m"}),
        "limit nvidia.com/gpu of container trainer is '500m': write a whole number",
    ),
}


@pytest.mark.parametrize(("asked", "template", "answer"), PROCS.values(), ids=PROCS)
def test_ranks_per_node(asked: Any, template: dict[str, Any], answer: int | str) -> None:
    assert num_proc(a_job(numProcPerNode=asked).spec, template, ACCELERATORS) == answer


def container(name: str = "trainer", **requests: Any) -> dict[str, Any]:
    always = {"restartPolicy": "Always"} if requests.pop("sidecar", False) else {}
    return {"name": name, "resources": {"requests": requests}, **always}


def limited(requests: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    return {"name": "trainer", "resources": {"requests": requests, "limits": limits}}


SPECS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "nothing asked is one pod": ({"containers": [{"name": "trainer"}]}, {}),
    "containers add up": (
        {"containers": [container(cpu="500m"), container(cpu=1, memory="1Gi")]},
        {"cpu": 1500, "memory": GIB},
    ),
    "a limit stands in for a request": (
        {"containers": [limited({}, {GPU: 8, "cpu": 2})]},
        {GPU: 8000, "cpu": 2000},
    ),
    "a request wins over its limit": ({"containers": [limited({"cpu": 1}, {"cpu": 2})]}, {"cpu": 1000}),
    "zero counts as nothing": ({"containers": [limited({}, {GPU: 0})]}, {}),
    "an init container counts where it is larger": (
        {"containers": [container(cpu=1)], "initContainers": [container(cpu=3), container(cpu=2)]},
        {"cpu": 3000},
    ),
    "an init container that is smaller does not": (
        {"containers": [container(cpu=4)], "initContainers": [container(cpu=3)]},
        {"cpu": 4000},
    ),
    "a sidecar runs beside the containers": (
        {"containers": [container(cpu=1)], "initContainers": [container(cpu=2, sidecar=True)]},
        {"cpu": 3000},
    ),
    "an init container runs beside the sidecars before it only": (
        {
            "containers": [container(cpu=1)],
            "initContainers": [
                container(cpu=1, sidecar=True),
                container(cpu=5),
                container(cpu=2, sidecar=True),
            ],
        },
        {"cpu": 6000},
    ),
    "overhead comes on top": (
        {"containers": [container(cpu=1)], "overhead": {"cpu": "250m", "memory": "1Gi"}},
        {"cpu": 1250, "memory": GIB},
    ),
    "a pod-level request replaces the sum": (
        {"containers": [container(cpu=1, memory="2Gi")], "resources": {"requests": {"cpu": 8}}},
        {"cpu": 8000, "memory": 2 * GIB},
    ),
    "a pod-level limit counts where no container asks": (
        {"containers": [container(cpu=1)], "resources": {"limits": {"cpu": 8, "memory": "4Gi"}}},
        {"cpu": 1000, "memory": 4 * GIB},
    ),
}


@pytest.mark.parametrize(("spec", "takes"), SPECS.values(), ids=SPECS)
def test_what_a_pod_takes(spec: dict[str, Any], takes: dict[str, int]) -> None:
    assert pod_request({"spec": spec}) == {**takes, "pods": 1000}


def mounted(path: str, volume: dict[str, Any], **mount: Any) -> dict[str, Any]:
    template = a_template(volumes=[{"name": "v", **volume}])
    template["spec"]["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": path, **mount}]
    return template


DURABLE: dict[str, tuple[dict[str, Any], bool, str]] = {
    "no volume": (a_template(), False, "no volume is mounted at /checkpoints/run"),
    "a volume elsewhere": (mounted("/check", {"nfs": {}}), False, "no volume is mounted"),
    "a claim": (
        mounted("/checkpoints", {"persistentVolumeClaim": {"claimName": "c"}}),
        True,
        "volume v (persistentVolumeClaim)",
    ),
    "a trailing slash is the same folder": (mounted("/checkpoints/", {"nfs": {}}), True, "volume v (nfs)"),
    "an emptyDir": (
        mounted("/checkpoints", {"emptyDir": {}}),
        False,
        "is emptyDir: checkpoints die with their pod",
    ),
    "a volume of no kind is an emptyDir": (mounted("/checkpoints", {}), False, "is emptyDir"),
    "a generic ephemeral volume": (mounted("/checkpoints", {"ephemeral": {}}), False, "is ephemeral"),
    "mounted read-only": (mounted("/checkpoints", {"nfs": {}}, readOnly=True), False, "is read-only"),
    "a config map": (mounted("/checkpoints", {"configMap": {}}), False, "is read-only"),
    "a directory of the node": (
        mounted("/checkpoints", {"hostPath": {"path": "/s"}}),
        True,
        "only where all nodes mount the same directory",
    ),
}


@pytest.mark.parametrize(("template", "durable", "why"), DURABLE.values(), ids=DURABLE)
def test_whether_checkpoints_outlive_their_pod(template: dict[str, Any], durable: bool, why: str) -> None:
    answer, sentence = checkpoint_is_durable(template, "/checkpoints/run")
    assert (answer, why in sentence) == (durable, True), sentence


def test_the_deepest_mount_counts() -> None:
    template = mounted("/checkpoints", {"nfs": {}})
    template["spec"]["volumes"].append({"name": "scratch", "emptyDir": {}})
    template["spec"]["containers"][0]["volumeMounts"].insert(
        0, {"name": "scratch", "mountPath": "/checkpoints/run"}
    )
    assert checkpoint_is_durable(template, "/checkpoints/run")[0] is False
    assert checkpoint_is_durable(template, "/checkpoints/other")[0] is True

"""Pretended nodes: kwok plays the kubelet of any number of nodes, with our own stages.

Pods bound to them become Running at once and vanish at once when deleted. Annotations on a pod (they
may be added while it runs) change that:

    rerail.dev/kwok-hold                 stays Pending while it is there
    rerail.dev/kwok-fail: "137"          phase Failed, every container with this exit code
    rerail.dev/kwok-complete             phase Succeeded
    rerail.dev/kwok-hang-terminating     stays in Terminating when deleted (while running, with a grace period above 0)
    rerail.dev/kwok-not-ready            (on a node) condition Ready becomes False
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .api import ApiClient
from .binaries import ensure
from .ground import Ground
from .paths import RIG
from .process import Process, until

Labels = Mapping[str, str] | Callable[[int], Mapping[str, str]] | None

_CONNECTIONS = 8
_PARALLEL = 64
_SELECTOR = ("kwok.x-k8s.io/node", "fake")


class FakeNodes:
    """The kwok process of one cluster and the nodes that it plays."""

    def __init__(self, api: ApiClient, folder: Path, ground: Ground, kubeconfig: Path) -> None:
        self._api, self._folder, self._ground, self._kubeconfig = api, folder, ground, kubeconfig
        self._count = 0
        self.process: Process | None = None

    def start(self) -> None:
        """Start kwok with our stages and its parallelism raised (the defaults play 20 pods a second)."""
        options = {
            "manageNodesWithAnnotationSelector": "=".join(_SELECTOR),
            "nodeLeaseDurationSeconds": 40,
            "nodeLeaseParallelism": _PARALLEL,
            "nodePlayStageParallelism": _PARALLEL,
            "podPlayStageParallelism": _PARALLEL,
            "podsOnNodeSyncParallelism": _PARALLEL,
            "cidr": "10.128.0.1/9",
            "nodeIP": "10.127.0.1",
        }
        config = self._folder / "kwok.yaml"
        header = {"apiVersion": "config.kwok.x-k8s.io/v1alpha1", "kind": "KwokConfiguration"}
        documents = [json.dumps({**header, "metadata": {"name": "kwok"}, "options": options})]
        documents += [stage.read_text() for stage in sorted((RIG / "stages").glob("*.yaml"))]
        config.write_text("\n---\n".join(documents))
        argv = [str(ensure(["kwok"])["kwok"]), f"--kubeconfig={self._kubeconfig}", f"--config={config}"]
        argv.append(f"--server-address=127.0.0.1:{self._ground.port(10247)}")
        self.process = self._ground.start("kwok", argv)

    def add(self, count: int, gpus: int, labels: Labels, prefix: str) -> list[str]:
        """Create nodes PREFIX0000... and wait until all of them are Ready; their names in order.

        `labels` is a mapping for all of them or a function of the node's number, which counts on from call to call."""
        numbers = range(self._count, self._count + count)
        self._count += count
        bodies = [_node(f"{prefix}{number:04d}", gpus, _labels(labels, number)) for number in numbers]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(lambda body: self._api.post("/api/v1/nodes", body), bodies))
        names = [str(body["metadata"]["name"]) for body in bodies]
        process = self.process
        assert process is not None
        waiting = list(names)

        def ready() -> bool:
            # One by one, the last first: listing thousands of nodes again and again would slow down what we wait for.
            while waiting and _is_ready(self._api.get(f"/api/v1/nodes/{waiting[-1]}")):
                waiting.pop()
            return not waiting

        until(ready, 60 + count / 10, f"{count} kwok nodes Ready", lambda: not process.alive)
        return names


def _is_ready(node: dict[str, Any]) -> bool:
    said = [(one["type"], one["status"]) for one in node["status"].get("conditions", ())]
    return ("Ready", "True") in said and not node["spec"].get("taints")


def _labels(labels: Labels, number: int) -> Mapping[str, str]:
    return labels(number) if callable(labels) else labels or {}


def _node(name: str, gpus: int, labels: Mapping[str, str]) -> dict[str, Any]:
    capacity = {"cpu": "128", "memory": "1024Gi", "ephemeral-storage": "1024Gi", "pods": "110"}
    if gpus:
        capacity["nvidia.com/gpu"] = str(gpus)
    usual = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "type": "kwok",
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {**usual, **labels}, "annotations": dict([_SELECTOR])},
        "status": {"capacity": capacity, "allocatable": capacity},
    }

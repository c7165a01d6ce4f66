"""Pods for the rig's own tests."""

from typing import Any

from tests.cluster.rig import ControlPlane

PROBE = "rerail.dev/probe:1"


def pod(name: str, node: str = "", **spec: Any) -> dict[str, Any]:
    container = {
        "name": "probe",
        "image": PROBE,
        "imagePullPolicy": "Never",
        "args": ["serve", ":8080"],
        "resources": {"limits": {"nvidia.com/gpu": "8"}},
        **spec.pop("container", {}),
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    body = {"containers": [container], "terminationGracePeriodSeconds": 0, "restartPolicy": "Never", **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body}


def phase(cluster: ControlPlane, name: str) -> str:
    return str(cluster.get("pod", name)["status"].get("phase"))


def await_phase(cluster: ControlPlane, name: str, wanted: str, seconds: float = 60) -> None:
    cluster.wait(f"pod {name} is {wanted}", lambda: phase(cluster, name) == wanted, seconds)

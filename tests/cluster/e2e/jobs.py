"""Manifests of TrainingJobs for the end-to-end tests, and what is read from them."""

from typing import Any

Json = dict[str, Any]
GPU = "nvidia.com/gpu"
NAMESPACE = "default"
LABEL_JOB = "rerail.dev/job-name"
NODE_RANK = "rerail.dev/node-rank"


def job(
    name: str, nodes: int = 2, *, limits: Json | None = None, namespace: str = NAMESPACE, **spec: Any
) -> Json:
    """A job for pretended nodes: its image is never pulled, its ranks are played by stand-ins."""
    container = {
        "name": "trainer",
        "image": "none.example/trainer:1",
        "command": ["python", "train.py"],
        "resources": {"limits": limits if limits is not None else {GPU: 8}},
    }
    return {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"numNodes": nodes, "template": {"spec": {"containers": [container]}}, **spec},
    }


def trainer(manifest: Json) -> Json:
    """The container of the ranks, to be changed by a test."""
    container: Json = manifest["spec"]["template"]["spec"]["containers"][0]
    return container


def jobs_path(namespace: str = NAMESPACE) -> str:
    return f"/apis/rerail.dev/v1alpha1/namespaces/{namespace}/trainingjobs"


def pods_path(namespace: str = NAMESPACE) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def condition(status: Json, kind: str) -> Json:
    """The condition of this type; empty where there is none."""
    return next((dict(one) for one in status.get("conditions", ()) if one["type"] == kind), {})


def matches(seen: Json, wanted: Json) -> bool:
    return all(seen.get(key) == value for key, value in wanted.items())

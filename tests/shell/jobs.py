"""A small TrainingJob, with whatever status a test needs."""

from typing import Any

from rerail_api.job import TrainingJob
from rerail_api.v1alpha1 import parse_job


def raw_job(
    name: str = "job", namespace: str = "team", uid: str = "uid-job", **status: Any
) -> dict[str, Any]:
    container = {"name": "trainer", "image": "example.com/trainer:1", "command": ["python", "train.py"]}
    return {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"numNodes": 2, "template": {"spec": {"containers": [container]}}},
        "status": status,
    }


def a_job(name: str = "job", namespace: str = "team", uid: str = "uid-job", **status: Any) -> TrainingJob:
    return parse_job(raw_job(name, namespace, uid, **status))

"""The floor: the pods that Rerail would make, made by a client that does nothing else."""

import asyncio
import copy
import time
from typing import Any

import msgspec

from rerail_api.contract import BUCKETS
from rerail_api.v1alpha1 import TrainingJob, parse_job
from rerail_operator.core.manifests import Endpoint, PodSpecInput, pod_manifest
from rerail_operator.core.names import bucket_labels, pod_name
from rerail_operator.core.plan import CreatePod

from .client import Client
from .ground import GPUS, NAMESPACE
from .operator_process import SERVICE
from .podwatch import PODS, PodWatch

JOBS = f"/apis/rerail.dev/v1alpha1/namespaces/{NAMESPACE}/trainingjobs"
NAME = "floor"


def manifest(name: str, nodes: int, **spec: Any) -> dict[str, Any]:
    """A TrainingJob of this many whole nodes."""
    container = {
        "name": "trainer",
        "image": "none.example/trainer:1",
        "command": ["python", "-m", "rerail_trainer", "--preset", "tiny"],
        "resources": {"limits": {"nvidia.com/gpu": GPUS}},
    }
    return {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "numNodes": nodes,
            "startupDeadlineSeconds": 3600,
            "template": {"spec": {"containers": [container]}},
            **spec,
        },
    }


class Floor:
    """All pods created until all run; deleted by label buckets until all are gone. No operator may run."""

    def __init__(self, client: Client, watch: PodWatch, nodes: list[str], seconds: float) -> None:
        self._client, self._watch, self._nodes, self._seconds = client, watch, nodes, seconds
        self._owner: TrainingJob | None = None

    async def prepare(self) -> None:
        """A suspended job, which owns the pods as Rerail's are owned; the pods ready to be sent."""
        owner = parse_job(await self._client.post(JOBS, manifest(NAME, len(self._nodes), suspend=True)))
        self._owner, self._bodies = owner, [msgspec.json.encode(body) for body in pods_of(owner, self._nodes)]

    async def start(self, began: float) -> dict[str, float]:
        """Seconds until the last POST was answered and until all pods run."""
        seen, size = self._watch.job(NAME), len(self._nodes)
        running = asyncio.create_task(
            self._watch.until("all pods of the floor run", lambda: len(seen.running) == size, self._seconds)
        )
        await self._client.create_all(PODS, self._bodies)
        created = time.monotonic()
        return {"created": created - began, "pods Running": await running - began}

    async def delete(self, began: float) -> dict[str, float]:
        """Seconds until all pods are gone."""
        assert self._owner is not None
        uid, seen = self._owner.metadata.uid, self._watch.job(NAME)
        await delete_all(self._client, uid)
        gone = await self._watch.until("the floor's pods are gone", lambda: not seen.there, self._seconds)
        return {"pods gone": gone - began}

    async def clear(self) -> None:
        """Remove the owner."""
        await self._client.delete(f"{JOBS}/{NAME}")


def pods_of(job: TrainingJob, nodes: list[str]) -> list[dict[str, Any]]:
    """What Rerail sends for node ranks 0..N-1 of this job, each pinned to its node."""
    name, uid = job.metadata.name, job.metadata.uid
    endpoint = Endpoint(f"{SERVICE}:7400", tls=True, server_name=SERVICE)
    return [
        copy.copy(
            pod_manifest(
                job,
                job.spec.template,
                PodSpecInput(
                    pod=CreatePod(pod_name(name, uid, 1, rank), node, rank, rank, 1),
                    nproc=GPUS,
                    template_hash="0" * 16,
                    config_map=f"{name}-agent",
                    endpoint=endpoint,
                ),
            )
        )
        for rank, node in enumerate(nodes)
    ]


async def delete_all(client: Client, job_uid: str) -> None:
    """Collection deletes of all label buckets of a job's pods at once."""
    selectors = (
        ",".join(f"{key}={value}" for key, value in bucket_labels(job_uid, bucket).items())
        for bucket in range(BUCKETS)
    )
    await asyncio.gather(*(client.delete(f"{PODS}?labelSelector={selector}") for selector in selectors))

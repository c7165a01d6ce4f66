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


async def floor(client: Client, watch: PodWatch, nodes: list[str], seconds: float) -> dict[str, float]:
    """Create all, wait until all run, delete by label buckets, wait until all are gone. No operator may run.

    Seconds: `create` until the last POST was answered, `start` until all run, `delete` until all are gone.
    """
    owner = parse_job(await client.post(JOBS, manifest(NAME, len(nodes), suspend=True)))
    bodies = [msgspec.json.encode(body) for body in pods_of(owner, nodes)]
    seen = watch.job(NAME)
    began = time.monotonic()
    running = asyncio.create_task(
        watch.until("all pods of the floor run", lambda: len(seen.running) == len(nodes), seconds)
    )
    await client.create_all(PODS, bodies)
    created = time.monotonic()
    started = await running
    deleting = time.monotonic()
    await asyncio.gather(*(_delete_bucket(client, owner.metadata.uid, bucket) for bucket in range(BUCKETS)))
    gone = await watch.until("all pods of the floor are gone", lambda: not seen.there, seconds)
    await client.delete(f"{JOBS}/{NAME}")
    return {"create": created - began, "start": started - began, "delete": gone - deleting}


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


async def _delete_bucket(client: Client, job_uid: str, bucket: int) -> None:
    selector = ",".join(f"{key}={value}" for key, value in bucket_labels(job_uid, bucket).items())
    await client.delete(f"{PODS}?labelSelector={selector}")

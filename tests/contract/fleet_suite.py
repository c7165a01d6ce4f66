"""What the fleet promises on any cluster: it sees what is there, and that it is gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rerail_operator.core.names import pod_labels
from rerail_operator.core.world import Pod
from rerail_operator.shell.cluster import Kind
from rerail_operator.shell.fleet import Fleet
from rerail_operator.shell.keys import JobKey
from tests.contract.stage import SECONDS, Stage, job, pod, unique, until


@asynccontextmanager
async def following(stage: Stage, told: list[JobKey] | None = None) -> AsyncIterator[Fleet]:
    fleet = Fleet(stage.cluster, (told if told is not None else []).append, lambda: None)
    await fleet.start()
    try:
        async with asyncio.timeout(SECONDS):
            await fleet.wait_synced()
        yield fleet
    finally:
        await fleet.stop()


class FleetContract:
    async def test_a_fleet_follows_a_job_and_its_pod_to_the_end(self, stage: Stage) -> None:
        told: list[JobKey] = []
        async with following(stage, told) as fleet:
            free = fleet.nodes({}).by_name[stage.nodes[1]].free["nvidia.com/gpu"]
            made = await stage.cluster.create(Kind.JOB, stage.namespace, job(unique("j")))
            key, uid = JobKey(stage.namespace, made["metadata"]["name"]), made["metadata"]["uid"]
            labels = pod_labels(key.name, uid, node_rank=0, birth_round=1, slot=0)
            gpus = {"limits": {"nvidia.com/gpu": "2"}}
            name = unique("p")
            body = pod(name, stage.nodes[1], labels, resources=gpus)
            created = await stage.cluster.create(Kind.POD, stage.namespace, body)

            async def bound() -> Pod | None:
                return next((seen for seen in fleet.pods(uid) if seen.bound), None)

            seen = await until("the fleet sees the pod bound", bound)
            assert (seen.name, seen.node, seen.node_rank) == (name, stage.nodes[1], 0)
            assert fleet.job(key) and key in told and fleet.job_uids(key) == (uid,)
            assert fleet.nodes({}).by_name[stage.nodes[1]].free["nvidia.com/gpu"] == free - 2000

            await stage.cluster.delete(Kind.JOB, stage.namespace, key.name, uid=uid)
            await stage.cluster.delete(Kind.POD, stage.namespace, name)

            async def dying() -> bool:
                return fleet.job(key) is None and all(seen.deleting for seen in fleet.pods(uid))

            await until("the fleet sees the job gone and its pod dying", dying)
            assert fleet.job_uids(key) == (uid,)
            await stage.let_go(created)

            async def empty() -> bool:
                return not fleet.pods(uid)

            await until("the fleet sees the pod gone", empty)
            assert fleet.job_uids(key) == ()
            assert fleet.nodes({}).by_name[stage.nodes[1]].free["nvidia.com/gpu"] == free

    async def test_a_strangers_pod_counts_on_its_node_until_it_ends(self, stage: Stage) -> None:
        name = unique("p")
        async with following(stage) as fleet:
            free = fleet.nodes({}).by_name[stage.nodes[0]].free["cpu"]
            body = pod(name, stage.nodes[0], resources={"requests": {"cpu": "3"}})
            await stage.cluster.create(Kind.POD, stage.namespace, body)

            async def counted() -> bool:
                return fleet.nodes({}).by_name[stage.nodes[0]].free["cpu"] == free - 3000

            await until("the stranger's pod is counted", counted)
            await stage.cluster.delete(Kind.POD, stage.namespace, name, grace_seconds=0)

            async def back() -> bool:
                return fleet.nodes({}).by_name[stage.nodes[0]].free["cpu"] == free

            await until("what it held is free again", back)

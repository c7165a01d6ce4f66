"""The fleet on the in-memory cluster: routing, accounting, and the memory of gone jobs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rerail_operator.core.names import pod_labels
from rerail_operator.core.world import Node
from rerail_operator.shell.capacity import Capacity
from rerail_operator.shell.cluster import Kind, Object, Unavailable
from rerail_operator.shell.fleet import Fleet
from rerail_operator.shell.keys import JobKey
from rerail_operator.shell.memory import MemoryCluster
from tests.contract.stage import job, pod
from tests.shell.hand_clock import HandClock
from tests.shell.waiting import until


@dataclass
class Yard:
    """A fleet, the cluster it looks at, and what it has told."""

    cluster: MemoryCluster
    fleet: Fleet
    told: list[JobKey] = field(default_factory=list)
    room: list[None] = field(default_factory=list)

    async def node(self, name: str, gpus: int = 8) -> None:
        status = {
            "allocatable": {"cpu": "64", "pods": "110", "nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        await self.cluster.create(Kind.NODE, "", {"metadata": {"name": name}, "status": status})

    async def worker(self, name: str, node: str, of: Object, rank: int = 0, gpus: str = "2") -> Object:
        meta = of["metadata"]
        labels = pod_labels(meta["name"], meta["uid"], node_rank=rank, birth_round=1, slot=rank)
        body = pod(name, node, labels, resources={"limits": {"nvidia.com/gpu": gpus}})
        return await self.cluster.create(Kind.POD, "ml", body)

    def free(self, node: str, resource: str = "nvidia.com/gpu", **reserved: Any) -> int:
        return self.fleet.nodes(reserved).by_name[node].free[resource]


@asynccontextmanager
async def yard() -> AsyncIterator[Yard]:
    cluster = MemoryCluster(HandClock())
    told: list[JobKey] = []
    room: list[None] = []
    it = Yard(cluster, Fleet(cluster, told.append, lambda: room.append(None)), told, room)
    await it.fleet.start()
    async with asyncio.timeout(10):
        await it.fleet.wait_synced()
    try:
        yield it
    finally:
        await it.fleet.stop()


KEY = JobKey("ml", "gpt")


async def test_every_change_of_a_pod_names_its_job() -> None:
    async with yard() as it:
        await it.node("n1")
        owner = await it.cluster.create(Kind.JOB, "ml", job("gpt"))
        made = await it.worker("p", "n1", owner)
        uid = owner["metadata"]["uid"]
        await until(lambda: any(seen.bound for seen in it.fleet.pods(uid)))
        it.told.clear()
        it.cluster.set_pod_status(made["metadata"]["uid"], {"phase": "Running"})
        await until(lambda: it.told == [KEY])


async def test_a_node_in_trouble_names_the_jobs_that_have_pods_there() -> None:
    async with yard() as it:
        await it.node("n1")
        await it.node("n2")
        owner = await it.cluster.create(Kind.JOB, "ml", job("gpt"))
        await it.worker("p", "n1", owner)
        await until(lambda: any(seen.bound for seen in it.fleet.pods(owner["metadata"]["uid"])))
        await until(lambda: len(it.fleet.nodes({}).by_name) == 2)
        it.told.clear()
        for name in ("n2", "n1"):
            it.cluster.set_node_status(name, {"conditions": [{"type": "Ready", "status": "Unknown"}]})
        await until(lambda: it.fleet.nodes({}).by_name["n1"].ready is None)
        assert it.told == [KEY]


async def test_a_condition_that_counts_puts_a_node_in_trouble_and_its_end_lets_it_in() -> None:
    cluster, room = MemoryCluster(HandClock()), list[None]()
    fleet = Fleet(cluster, lambda _: None, lambda: room.append(None), ("GpuUnhealthy",))
    it = Yard(cluster, fleet, [], room)
    await it.node("n1")
    await fleet.start()
    async with asyncio.timeout(10):
        await fleet.wait_synced()
    for status, trouble in (("True", "GpuUnhealthy (Xid)"), ("False", "")):
        room.clear()
        condition = {"type": "GpuUnhealthy", "status": status, "reason": "Xid"}
        cluster.set_node_status("n1", {"conditions": [condition]})
        await until(lambda told=trouble: fleet.nodes({}).by_name["n1"].trouble == told)  # type: ignore[misc]
        assert room
    await fleet.stop()


async def test_free_is_allocatable_less_pods_bound_or_pinned_and_what_is_reserved() -> None:
    async with yard() as it:
        await it.node("n1")
        owner = await it.cluster.create(Kind.JOB, "ml", job("gpt"))
        await it.worker("bound", "n1", owner)
        await it.worker("pinned to a node that is not there yet", "n2", owner, rank=1)
        await it.cluster.create(Kind.POD, "web", pod("s", "n1", resources={"requests": {"cpu": "4"}}))
        await until(lambda: "n1" in it.fleet.nodes({}).by_name and it.free("n1") == 6000)
        await until(lambda: it.free("n1", "cpu") == 60_000)
        assert it.free("n1", "pods") == 108_000
        assert it.free("n1", n1={"nvidia.com/gpu": 5000}) == 1000 and it.free("n1") == 6000
        await it.node("n2", gpus=4)
        await until(lambda: "n2" in it.fleet.nodes({}).by_name)
        assert it.free("n2") == 2000


async def test_an_ended_pod_gives_its_node_back_and_says_so() -> None:
    async with yard() as it:
        await it.node("n1")
        owner = await it.cluster.create(Kind.JOB, "ml", job("gpt"))
        made = await it.worker("p", "n1", owner, gpus="8")
        await until(lambda: "n1" in it.fleet.nodes({}).by_name and it.free("n1") == 0)
        it.room.clear()
        it.cluster.set_pod_status(made["metadata"]["uid"], {"phase": "Failed"})
        await until(lambda: it.free("n1") == 8000)
        assert it.room
        assert [seen.ended for seen in it.fleet.pods(owner["metadata"]["uid"])] == [True]


async def test_snapshots_are_not_changed_afterwards() -> None:
    async with yard() as it:
        await it.node("n1")
        await until(lambda: "n1" in it.fleet.nodes({}).by_name)
        early = it.fleet.nodes({})
        await it.cluster.create(Kind.POD, "web", pod("s", "n1", resources={"requests": {"cpu": "4"}}))
        await until(lambda: it.free("n1", "cpu") == 60_000)
        assert early.by_name["n1"].free["cpu"] == 64_000


async def test_a_job_of_the_same_name_does_not_inherit_the_pods() -> None:
    async with yard() as it:
        await it.node("n1")
        old = await it.cluster.create(Kind.JOB, "ml", job("gpt"))
        made = await it.worker("p", "n1", old)
        await it.cluster.delete(Kind.JOB, "ml", "gpt")
        new = await it.cluster.create(Kind.JOB, "ml", job("gpt"))
        old_uid, new_uid = old["metadata"]["uid"], new["metadata"]["uid"]
        await until(lambda: set(it.fleet.job_uids(KEY)) == {old_uid, new_uid})
        await until(lambda: (it.fleet.job(KEY) or {"metadata": {"uid": ""}})["metadata"]["uid"] == new_uid)
        await until(lambda: len(it.fleet.pods(old_uid)) == 1)
        assert it.fleet.pods(new_uid) == ()
        await it.cluster.delete(Kind.POD, "ml", "p", grace_seconds=0)
        await until(lambda: it.fleet.job_uids(KEY) == (new_uid,))
        assert made["metadata"]["uid"]


async def test_our_own_writes_are_seen_before_the_stream_tells_them() -> None:
    async with yard() as it:
        made = await it.cluster.create(Kind.JOB, "ml", job("gpt"))
        it.fleet.note_job(made)
        assert it.fleet.job(KEY) == made and it.told == [KEY]
        wanted = {**made, "status": {"round": 1}}
        written = await it.cluster.replace(Kind.JOB, "ml", wanted, status=True)
        it.fleet.note_job(written)
        seen = it.fleet.job(KEY)
        assert seen and seen["status"]["round"] == 1
        worker = await it.worker("p", "n1", made)
        it.fleet.note_pod(worker)
        assert [pod.name for pod in it.fleet.pods(made["metadata"]["uid"])] == ["p"]


async def test_a_reply_that_comes_after_the_deletion_raises_no_ghost() -> None:
    async with yard() as it:
        made = await it.cluster.create(Kind.JOB, "ml", job("gpt"))
        worker = await it.worker("p", "n1", made)
        await it.cluster.delete(Kind.POD, "ml", "p")
        await it.cluster.create(Kind.POD, "ml", pod("q", "n1", {"app.kubernetes.io/managed-by": "rerail"}))
        await until(lambda: len(it.fleet.pod_records("")) == 1)
        it.fleet.note_pod(worker)
        assert it.fleet.pods(made["metadata"]["uid"]) == ()


async def test_nothing_is_missed_while_streams_drop_and_history_is_forgotten() -> None:
    async with yard() as it:
        await it.node("n1")
        owner = await it.cluster.create(Kind.JOB, "ml", job("gpt"))
        uid = owner["metadata"]["uid"]
        for rank in range(3):
            await it.worker(f"p{rank}", "n1", owner, rank)
        await until(lambda: len(it.fleet.pods(uid)) == 3)
        it.cluster.end_watches(Unavailable("dropped"))
        await it.cluster.delete(Kind.POD, "ml", "p1", grace_seconds=0)
        it.cluster.compact()
        it.cluster.end_watches()
        await until(lambda: {seen.name for seen in it.fleet.pods(uid)} == {"p0", "p2"})
        await until(lambda: it.free("n1") == 4000)
        assert it.fleet.stream_age() < 10.0


Change = tuple[str, int, int]


@given(
    st.lists(st.tuples(st.sampled_from(["n1", "n2"]), st.integers(0, 4), st.integers(0, 3)), max_size=12),
    st.data(),
)
@settings(max_examples=60)
def test_capacity_is_the_same_whatever_the_order_of_events(
    takes: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    allocatable = {"cpu": 10_000, "gpu": 8000}
    steps: list[tuple[str, str, dict[str, int]]] = [("node", name, allocatable) for name in ("n1", "n2")]
    steps += [("take", node, {"cpu": cpu, "gpu": gpu}) for node, cpu, gpu in takes]
    capacity = Capacity()
    for what, name, amounts in data.draw(st.permutations(steps)):
        if what == "node":
            capacity.put_node(Node(name, True, allocatable=amounts, free=amounts))
        else:
            capacity.take(name, amounts)
        capacity.snapshot({})
    for name, node in capacity.snapshot({}).by_name.items():
        for resource, index in (("cpu", 1), ("gpu", 2)):
            taken = sum(take[index] for take in takes if take[0] == name)
            assert node.free[resource] == allocatable[resource] - taken
    for name, cpu, gpu in takes:
        capacity.give_back(name, {"cpu": cpu, "gpu": gpu})
    assert all(dict(node.free) == allocatable for node in capacity.snapshot({}).by_name.values())

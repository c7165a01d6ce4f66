"""Performing actions on the in-memory cluster."""

from collections.abc import Mapping

import pytest

from rerail_api.contract import BUCKETS
from rerail_operator.core.manifests import Endpoint
from rerail_operator.core.plan import CreatePod, DeleteGang
from rerail_operator.shell.apply import (
    MAX_ACTIONS,
    PICTURE_LAG_SECONDS,
    Applier,
    Making,
    Target,
)
from rerail_operator.shell.cluster import Kind, Object
from rerail_operator.shell.jobmemory import JobMemory
from rerail_operator.shell.memory import MemoryCluster
from rerail_operator.shell.memory_faults import Fault, FaultKind

from .hamlet import GPU, job
from .hand_clock import HandClock
from .jobs import parse_job

MANY = 10_000


class SlowCluster(MemoryCluster):
    """Every creation takes a second of the hand clock."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__(clock)
        self._hand = clock

    async def create(self, kind: Kind, namespace: str, obj: Object, *, dry_run: bool = False) -> Object:
        self._hand.advance(1.0)
        return await super().create(kind, namespace, obj, dry_run=dry_run)


class Nobody:
    """No agent is connected and nobody looks at pods."""

    def send(self, pod_uid: str, order: Mapping[str, object]) -> bool:
        return False

    def advise(self, pod_uid: str, round_: int, checkpoint_seconds: int) -> None:
        return

    def note_pod(self, raw: Object) -> None:
        return


class Stage:
    """A job in a cluster, and who acts on it."""

    def __init__(self, raw: Object, cluster: MemoryCluster, clock: HandClock) -> None:
        self.cluster, self.clock = cluster, clock
        found = parse_job(raw)
        self.target = Target("default", "gpt", found.metadata.uid, found, JobMemory())
        making = Making(Endpoint("127.0.0.1:1", tls=False), (GPU,), b"agent")
        self.applier = Applier(cluster, Nobody(), Nobody(), making, clock)
        self._count = Fault(FaultKind.DROPPED, "delete_collection", Kind.POD, skip=MANY)
        cluster.faults.add(self._count)

    @property
    def collections_deleted(self) -> int:
        return MANY - self._count.skip


@pytest.fixture
async def stage() -> Stage:
    clock = HandClock()
    cluster = MemoryCluster(clock)
    return Stage(await cluster.create(Kind.JOB, "default", job()), cluster, clock)


async def test_a_gang_is_not_deleted_again_while_the_picture_lags(stage: Stage) -> None:
    await stage.applier.apply(stage.target, [DeleteGang()])
    await stage.applier.apply(stage.target, [DeleteGang()])
    assert stage.collections_deleted == BUCKETS
    stage.clock.advance(PICTURE_LAG_SECONDS)
    await stage.applier.apply(stage.target, [DeleteGang()])
    assert stage.collections_deleted == 2 * BUCKETS


async def test_a_gang_is_deleted_again_at_once_with_another_grace(stage: Stage) -> None:
    await stage.applier.apply(stage.target, [DeleteGang()])
    await stage.applier.apply(stage.target, [DeleteGang(0)])
    assert stage.collections_deleted == 2 * BUCKETS


async def test_a_gang_is_deleted_again_at_once_when_a_pod_has_come(stage: Stage) -> None:
    await stage.applier.apply(stage.target, [DeleteGang()])
    await stage.applier.apply(stage.target, [CreatePod("gpt-1", "node-0", 0, 0, 1)])
    assert len((await stage.cluster.list(Kind.POD)).items) == 1
    await stage.applier.apply(stage.target, [DeleteGang()])
    assert stage.collections_deleted == 2 * BUCKETS
    assert all("deletionTimestamp" in p["metadata"] for p in (await stage.cluster.list(Kind.POD)).items)


def creations(count: int) -> list[CreatePod]:
    return [CreatePod(f"gpt-{number}", "node-0", number, number, 1) for number in range(count)]


async def test_a_pass_stops_beginning_calls_when_its_time_is_over() -> None:
    clock = HandClock()
    cluster = SlowCluster(clock)
    there = Stage(await cluster.create(Kind.JOB, "default", job()), cluster, clock)
    assert not await there.applier.apply(there.target, creations(MAX_ACTIONS))
    begun = len((await cluster.list(Kind.POD)).items)
    assert begun == 3  # at the seconds 0, 1 and 2 of the pass
    # What was left undone is done by the passes that follow.
    assert await there.applier.apply(there.target, creations(MAX_ACTIONS)[begun : begun + 2])


async def test_a_pass_performs_no_more_than_its_share(stage: Stage) -> None:
    assert not await stage.applier.apply(stage.target, creations(MAX_ACTIONS + 1))
    assert len((await stage.cluster.list(Kind.POD)).items) == MAX_ACTIONS
    assert await stage.applier.apply(stage.target, creations(MAX_ACTIONS))

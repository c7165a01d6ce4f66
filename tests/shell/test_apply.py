"""Performing actions on the in-memory cluster."""

from collections.abc import Mapping

import pytest

from rerail_api.contract import BUCKETS
from rerail_operator.core.manifests import Endpoint
from rerail_operator.core.plan import CreatePod, DeleteGang, PromoteSpare
from rerail_operator.core.queueing import CREATE_SPARE
from rerail_operator.core.world import SPARE
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

    def mention(self, pod_uid: str, frame: Mapping[str, object]) -> None:
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


# -- spares

LABELS = {"rank": "rerail.dev/node-rank", "since": "rerail.dev/since-round"}


async def a_spare(stage: Stage) -> Object:
    await stage.applier.apply(stage.target, [CreatePod("gpt-2", "node-0", SPARE, 2, 1)])
    return await stage.cluster.get(Kind.POD, "default", "gpt-2")


def promotion(pod: Object, rank: int = 1, round_: int = 2) -> PromoteSpare:
    meta = pod["metadata"]
    return PromoteSpare(meta["name"], meta["uid"], meta["resourceVersion"], rank, round_)


async def node_rank(stage: Stage) -> tuple[str | None, str]:
    labels = (await stage.cluster.get(Kind.POD, "default", "gpt-2"))["metadata"]["labels"]
    return labels.get(LABELS["rank"]), labels[LABELS["since"]]


async def test_a_spare_is_made_without_a_node_rank_and_gets_it_by_one_patch(stage: Stage) -> None:
    made = await a_spare(stage)
    assert await node_rank(stage) == (None, "1")
    await stage.applier.apply(stage.target, [promotion(made)])
    assert await node_rank(stage) == ("1", "2")
    kept = (await stage.cluster.get(Kind.POD, "default", "gpt-2"))["metadata"]["labels"]
    assert kept["rerail.dev/slot"] == "2" and kept["rerail.dev/birth-round"] == "1"


async def test_a_status_written_in_between_does_not_stop_a_promotion(stage: Stage) -> None:
    made = await a_spare(stage)
    stage.cluster.set_pod_status(made["metadata"]["uid"], {"phase": "Running"})
    await stage.applier.apply(stage.target, [promotion(made)])
    assert await node_rank(stage) == ("1", "2")


async def test_a_spare_that_was_promoted_before_keeps_what_it_was_given(stage: Stage) -> None:
    made = await a_spare(stage)
    await stage.applier.apply(stage.target, [promotion(made, rank=0, round_=3)])
    await stage.applier.apply(stage.target, [promotion(made, rank=1, round_=2)])
    assert await node_rank(stage) == ("0", "3")


async def test_a_spare_that_is_going_is_not_promoted(stage: Stage) -> None:
    made = await a_spare(stage)
    await stage.cluster.patch(Kind.POD, "default", "gpt-2", {"metadata": {"finalizers": ["test/stay"]}})
    await stage.cluster.delete(Kind.POD, "default", "gpt-2")
    await stage.applier.apply(stage.target, [promotion(made)])
    assert await node_rank(stage) == (None, "1")


async def test_a_spare_that_is_gone_stops_nothing(stage: Stage) -> None:
    made = await a_spare(stage)
    await stage.cluster.delete(Kind.POD, "default", "gpt-2", grace_seconds=0)
    assert await stage.applier.apply(stage.target, [promotion(made)])


async def test_another_pod_of_that_name_is_left_alone(stage: Stage) -> None:
    made = await a_spare(stage)
    await stage.cluster.delete(Kind.POD, "default", "gpt-2", grace_seconds=0)
    await a_spare(stage)
    await stage.applier.apply(stage.target, [promotion(made)])
    assert await node_rank(stage) == (None, "1")


async def test_a_spare_that_is_refused_speaks_of_itself_and_not_of_the_gang(stage: Stage) -> None:
    await stage.cluster.create(
        Kind.POD, "default", {"metadata": {"name": "gpt-2"}, "spec": {"containers": []}}
    )
    await stage.applier.apply(stage.target, [CreatePod("gpt-2", "node-0", SPARE, 2, 1)])
    assert [r.action for r in stage.target.memory.rejections] == [CREATE_SPARE]

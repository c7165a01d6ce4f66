"""Notes become Events: aggregated, bounded, and never in the way of a pass."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rerail_operator.core.plan import Level, Note
from rerail_operator.shell.cluster import Kind
from rerail_operator.shell.events import Bucket, EventLimits, EventRecorder
from rerail_operator.shell.memory import MemoryCluster
from rerail_operator.shell.memory_faults import Fault, FaultKind

from .hand_clock import HandClock
from .jobs import a_job
from .waiting import until

LIMITS = EventLimits(retry=0.01, distinct=3, queue=20)


class Ground:
    def __init__(self) -> None:
        self.clock = HandClock()
        self.cluster = MemoryCluster(self.clock)
        self.recorder = EventRecorder(self.cluster, self.clock, "rerail-0", LIMITS)

    async def events(self) -> list[dict[str, Any]]:
        await self.recorder.flush(10)
        return (await self.cluster.list(Kind.EVENT)).items


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    ground = Ground()
    task = asyncio.create_task(ground.recorder.run())
    yield ground
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_note_is_an_event_about_its_job(ground: Ground) -> None:
    ground.recorder.record(a_job(), [Note("RankFailed", "rank 3 was killed by SIGKILL", Level.WARNING)])
    (event,) = await ground.events()
    assert event["metadata"]["namespace"] == "team" and event["metadata"]["name"].startswith("job.")
    assert event["involvedObject"] == {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "namespace": "team",
        "name": "job",
        "uid": "uid-job",
    }
    told = (event["type"], event["reason"], event["message"], event["count"], event["lastTimestamp"])
    assert told == ("Warning", "RankFailed", "rank 3 was killed by SIGKILL", 1, "2026-01-01T00:00:00Z")
    assert (event["source"]["component"], event["reportingInstance"]) == ("rerail", "rerail-0")


async def test_the_same_note_counts_up_within_ten_minutes_and_is_new_after(ground: Ground) -> None:
    note = Note("Queued", "needs 4 nodes; 3 fit")
    for _ in range(3):
        ground.recorder.record(a_job(), [note])
        await ground.recorder.flush()
        ground.clock.advance(60)
    (event,) = await ground.events()
    assert (event["count"], event["firstTimestamp"], event["lastTimestamp"]) == (
        3,
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:02:00Z",
    )
    ground.clock.advance(601)
    ground.recorder.record(a_job(), [note])
    assert [event["count"] for event in await ground.events()] == [3, 1]


async def test_jobs_and_reasons_are_kept_apart(ground: Ground) -> None:
    for uid in ("uid-1", "uid-2"):
        for reason in ("Started", "Restarted"):
            ground.recorder.record(a_job(uid=uid), [Note(reason, "all ranks run")])
    assert len(await ground.events()) == 4


async def test_many_different_messages_of_one_reason_share_the_last_event(ground: Ground) -> None:
    for number in range(8):
        ground.recorder.record(a_job(), [Note("Queued", f"{number} nodes fit")])
    events = await ground.events()
    assert sorted((event["message"], event["count"]) for event in events) == [
        ("0 nodes fit", 1),
        ("1 nodes fit", 1),
        ("7 nodes fit", 6),
    ]


async def test_an_event_that_expired_meanwhile_is_made_anew(ground: Ground) -> None:
    ground.recorder.record(a_job(), [Note("Queued", "waits")])
    (event,) = await ground.events()
    await ground.cluster.delete(Kind.EVENT, "team", event["metadata"]["name"])
    ground.recorder.record(a_job(), [Note("Queued", "waits")])
    (again,) = await ground.events()
    assert (again["count"], again["metadata"]["name"] != event["metadata"]["name"]) == (1, True)


@pytest.mark.parametrize("what", [FaultKind.LOST_REPLY, FaultKind.DROPPED, FaultKind.THROTTLED])
async def test_a_bad_answer_makes_no_second_event(ground: Ground, what: FaultKind) -> None:
    ground.cluster.faults.add(Fault(what, verb="create", kind=Kind.EVENT, retry_after=0.01))
    ground.recorder.record(a_job(), [Note("Started", "all ranks run")])
    assert [event["count"] for event in await ground.events()] == [1]
    assert ground.recorder.dropped == 0


async def test_what_cannot_be_posted_is_dropped_and_said_once(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    ground.cluster.faults.add(Fault(FaultKind.DROPPED, kind=Kind.EVENT, times=6))
    with caplog.at_level(logging.WARNING):
        ground.recorder.record(
            a_job(), [Note("Started", "one"), Note("Started", "two"), Note("Started", "three")]
        )
        await ground.recorder.flush(10)
    assert ground.recorder.dropped == 2
    assert [event["message"] for event in await ground.events()] == ["three"]
    assert sum("events are dropped" in record.message for record in caplog.records) == 1


async def test_a_full_queue_drops_its_oldest_and_never_makes_a_pass_wait() -> None:
    ground = Ground()  # nobody posts
    for number in range(30):
        ground.recorder.record(a_job(), [Note("Queued", str(number))])
    assert ground.recorder.dropped == 10
    task = asyncio.create_task(ground.recorder.run())
    await until(lambda: not ground.recorder._waiting)
    task.cancel()


def test_the_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    bucket = Bucket(rate=10.0, size=3, filled_at=0.0)
    assert [round(bucket.take(0.0), 3) for _ in range(5)] == [0.0, 0.0, 0.0, 0.1, 0.2]
    assert bucket.take(10.0) == 0.0

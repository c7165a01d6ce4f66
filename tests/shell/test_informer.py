"""The informer on scripted streams: nothing missed, nothing stale, never silent for long."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from rerail_operator.shell import informer as module
from rerail_operator.shell.cluster import Change, ClusterError, Expired, Kind, Unavailable
from rerail_operator.shell.informer import Informer, Reading
from rerail_operator.shell.streams import Seen, Selection, Snapshot
from tests.shell.waiting import until


@dataclass(frozen=True)
class Thing:
    uid: str
    text: str = ""


Step = Seen[Thing] | ClusterError | asyncio.Event


@dataclass
class Script:
    """Lists and watches in the order in which they are asked for; the last watch stays open."""

    lists: list[Snapshot[Thing] | ClusterError]
    watches: list[list[Step]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def list_as(
        self, selection: Selection, model: type[Any], record: Callable[[Any], Any]
    ) -> Snapshot[Any]:
        self.asked.append("list")
        answer = self.lists.pop(0)
        if isinstance(answer, ClusterError):
            raise answer
        return answer

    async def watch_as(
        self, selection: Selection, version: str, model: type[Any], record: Callable[[Any], Any]
    ) -> AsyncIterator[Seen[Any]]:
        self.asked.append(version)
        if not self.watches:
            await asyncio.Event().wait()
        for step in self.watches.pop(0):
            if isinstance(step, ClusterError):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield step


@dataclass
class Following:
    informer: Informer[Thing]
    script: Script
    told: list[tuple[Thing | None, Thing | None]]

    def texts(self) -> dict[str, str]:
        return {uid: thing.text for uid, thing in self.informer.records.items()}


@asynccontextmanager
async def following(script: Script) -> AsyncIterator[Following]:
    told: list[tuple[Thing | None, Thing | None]] = []
    reading = Reading(Selection(Kind.POD), Thing, lambda thing: thing)
    follower: Informer[Thing] = Informer(script, reading, lambda before, after: told.append((before, after)))
    task = asyncio.create_task(follower.run())
    try:
        yield Following(follower, script, told)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACK_OFF_SECONDS", 0.01)


def added(version: int, uid: str, text: str = "") -> Seen[Thing]:
    return Seen(Change.ADDED, str(version), Thing(uid, text))


def changed(version: int, uid: str, text: str) -> Seen[Thing]:
    return Seen(Change.MODIFIED, str(version), Thing(uid, text))


def deleted(version: int, uid: str) -> Seen[Thing]:
    return Seen(Change.DELETED, str(version), Thing(uid))


def bookmark(version: int) -> Seen[Thing]:
    return Seen(Change.BOOKMARK, str(version))


async def test_it_lists_then_follows_and_tells_every_difference() -> None:
    script = Script(
        [Snapshot([Thing("a", "1")], "5")], [[changed(6, "a", "2"), added(7, "b"), deleted(8, "a")]]
    )
    async with following(script) as it:
        await until(lambda: len(it.told) == 4)
        assert it.told == [
            (None, Thing("a", "1")),
            (Thing("a", "1"), Thing("a", "2")),
            (None, Thing("b")),
            (Thing("a", "2"), None),
        ]
        assert it.informer.synced and it.texts() == {"b": ""}


async def test_a_clean_end_goes_on_from_the_last_version_without_a_list() -> None:
    script = Script([Snapshot([], "5")], [[added(6, "a")], [bookmark(9)], [added(10, "b")]])
    async with following(script) as it:
        await until(lambda: len(script.asked) == 5)
        assert script.asked == ["list", "5", "6", "9", "10"]
        assert set(it.texts()) == {"a", "b"}


async def test_a_dropped_stream_goes_on_from_the_last_version_too() -> None:
    script = Script([Snapshot([], "5")], [[added(6, "a"), Unavailable("dropped")], [added(7, "b")]])
    async with following(script) as it:
        await until(lambda: len(script.asked) == 4)
        assert script.asked == ["list", "5", "6", "7"] and set(it.texts()) == {"a", "b"}


async def test_after_expiry_a_new_list_tells_deletions_first() -> None:
    before = Snapshot([Thing("a"), Thing("b", "1"), Thing("c")], "5")
    after = Snapshot([Thing("b", "2"), Thing("c"), Thing("d")], "50")
    script = Script([before, after], [[Expired("too old")]])
    async with following(script) as it:
        await until(lambda: script.asked == ["list", "5", "list", "50"])
        assert it.told[3:] == [
            (Thing("a"), None),
            (Thing("b", "1"), Thing("b", "2")),
            (None, Thing("d")),
        ]


async def test_lists_that_fail_are_tried_again() -> None:
    script = Script([Unavailable("503"), Expired("continue"), Snapshot([Thing("a")], "5")])
    async with following(script) as it:
        await until(lambda: it.informer.synced)
        assert script.asked[:3] == ["list"] * 3 and set(it.texts()) == {"a"}


async def test_one_who_is_refused_for_long_is_old_but_not_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([Unavailable("503") for _ in range(100_000)])
    monkeypatch.setattr(module, "BACK_OFF_CAP_SECONDS", 0.02)
    async with following(script) as it:
        await until(lambda: it.informer.age() > 0.6 and it.informer.stalled() < 0.3)
        assert not it.informer.synced


async def test_retry_after_is_obeyed() -> None:
    script = Script([Unavailable("429", retry_after=0.4), Snapshot([], "5")])
    loop = asyncio.get_running_loop()
    async with following(script) as it:
        began = loop.time()
        await until(lambda: it.informer.synced)
        assert loop.time() - began >= 0.4


async def test_a_silent_stream_is_left_and_followed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.1)
    script = Script([Snapshot([], "5")], [[added(6, "a"), asyncio.Event()], [added(7, "b")]])
    async with following(script) as it:
        await until(lambda: set(it.texts()) == {"a", "b"})
        assert script.asked[:3] == ["list", "5", "6"]


async def test_bookmarks_keep_a_quiet_stream_alive_and_young(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([Snapshot([], "5")], [[bookmark(6), asyncio.Event()]])
    async with following(script) as it:
        await until(lambda: it.informer.synced)
        assert it.informer.age() < 5.0


async def test_a_noted_reply_counts_until_the_stream_is_past_it() -> None:
    go = asyncio.Event()
    script = Script(
        [Snapshot([Thing("a", "1")], "5")], [[go, changed(6, "a", "older"), changed(9, "a", "later")]]
    )
    async with following(script) as it:
        await until(lambda: it.informer.synced)
        it.informer.note(Thing("a", "ours"), "8")
        assert it.texts() == {"a": "ours"}
        go.set()
        await until(lambda: it.texts() == {"a": "later"})
        assert [after.text for _, after in it.told if after] == ["1", "ours", "later"]


async def test_a_reply_older_than_the_stream_is_not_taken() -> None:
    script = Script([Snapshot([Thing("a", "1")], "5")], [[deleted(9, "a")]])
    async with following(script) as it:
        await until(lambda: it.texts() == {} and it.informer.synced)
        it.informer.note(Thing("a", "a ghost"), "7")
        assert it.texts() == {}


async def test_a_noted_object_survives_a_list_that_is_older_than_it() -> None:
    go = asyncio.Event()
    script = Script(
        [Snapshot([], "5"), Snapshot([], "7"), Snapshot([], "20")],
        [[go, Expired("too old")], [Expired("too old")]],
    )
    async with following(script) as it:
        await until(lambda: it.informer.synced)
        it.informer.note(Thing("a", "ours"), "8")
        go.set()
        await until(lambda: script.asked == ["list", "5", "list", "7", "list", "20"])
        assert it.texts() == {}
        assert it.told == [(None, Thing("a", "ours")), (Thing("a", "ours"), None)]


async def test_a_burst_lets_other_tasks_run_in_between() -> None:
    burst: list[Step] = [added(version, f"u{version}") for version in range(10, 3010)]
    script = Script([Snapshot([], "5")], [burst])
    turns = 0
    async with following(script) as it:
        while len(it.told) < 3000:
            turns += 1
            await asyncio.sleep(0)
        assert turns >= 3000 // module.BREATH

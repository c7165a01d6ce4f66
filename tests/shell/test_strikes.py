"""Strikes in the cluster: kept over leaders, written once, cleared by hand."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from rerail_api.status import IncidentClass
from rerail_operator.core.plan import Plan
from rerail_operator.core.strikes import Record, Strike
from rerail_operator.core.world import Node, Nodes, World
from rerail_operator.shell.cluster import Kind, Object
from rerail_operator.shell.fleet import Fleet
from rerail_operator.shell.keys import JobKey
from rerail_operator.shell.leader import AlwaysLeader
from rerail_operator.shell.memory import MemoryCluster
from rerail_operator.shell.memory_faults import Fault, FaultKind
from rerail_operator.shell.strikes.keeper import StrikeKeeper
from rerail_operator.shell.strikes.record import MAX_BYTES, NAME, book_of, data_of
from tests.shell.hand_clock import START, HandClock
from tests.shell.jobs import a_job
from tests.shell.waiting import until

HOME = "rerail-system"
KEY = JobKey("team", "job")
LOST = (1, 2)


class Standby(AlwaysLeader):
    is_leader = False


@dataclass
class Ground:
    """Twenty nodes, and whoever keeps the strikes of the jobs on them."""

    cluster: MemoryCluster
    fleet: Fleet
    clock: HandClock

    def keeper(self, leading: AlwaysLeader | None = None) -> StrikeKeeper:
        return StrikeKeeper(self.cluster, HOME, self.fleet, leading or AlwaysLeader(), self.clock)

    async def stored(self) -> Object:
        return await self.cluster.get(Kind.CONFIG_MAP, HOME, NAME)

    async def lines(self, node: str) -> list[str]:
        return str((await self.stored())["data"].get(node, "")).splitlines()

    def struck(self) -> dict[str, str]:
        """What placement sees."""
        return {name: node.struck for name, node in self.fleet.nodes({}).by_name.items() if node.struck}


@asynccontextmanager
async def ground(nodes: int = 20) -> AsyncIterator[Ground]:
    clock = HandClock()
    cluster = MemoryCluster(clock)
    for number in range(nodes):
        ready = "False" if number in LOST else "True"
        state = {"conditions": [{"type": "Ready", "status": ready}], "allocatable": {"nvidia.com/gpu": "8"}}
        await cluster.create(Kind.NODE, "", {"metadata": {"name": f"n{number}"}, "status": state})
    fleet = Fleet(cluster, lambda _: None, lambda: None)
    await fleet.start()
    async with asyncio.timeout(10):
        await fleet.wait_synced()
    clock.advance(3600)
    try:
        yield Ground(cluster, fleet, clock)
    finally:
        await fleet.stop()


def lost(count: int, node: str = "n1", uid: str = "uid-job", minute: int = 0) -> World:
    """A job of which this node was lost so many times, a minute apart."""
    found = [
        {
            "number": n,
            "round": n,
            "class": "NodeLoss",
            "node": node,
            "startTime": f"2026-01-01T00:{minute + n:02}:00Z",
        }
        for n in range(1, count + 1)
    ]
    nodes = Nodes({f"n{i}": Node(f"n{i}", ready=i not in LOST) for i in range(20)})
    return World(uid, a_job(uid=uid, incidents=found), nodes=nodes)


async def passes(keeper: StrikeKeeper, *worlds: World) -> None:
    for world in worlds:
        keeper.passed(KEY, world, Plan(None))
    await keeper.step()


async def test_incidents_become_lines_that_people_can_read_and_the_node_is_avoided() -> None:
    async with ground() as it:
        await passes(it.keeper(), lost(3))
        assert await it.lines("n1") == [
            f"2026-01-01T00:0{n}:00Z NodeLoss seen team/job uid-job#{n} -" for n in (1, 2, 3)
        ]
        assert it.struck() == {"n1": "3 strikes in 7 days"}


async def test_a_new_leader_avoids_the_node_before_it_has_looked_at_any_job_and_counts_nothing_twice() -> (
    None
):
    async with ground() as it:
        await passes(it.keeper(), lost(3))
        before = await it.stored()
        it.fleet.mark_struck({})
        heir = it.keeper()
        await heir.step()
        assert it.struck() == {"n1": "3 strikes in 7 days"}
        await passes(heir, lost(3))
        assert await it.stored() == before


async def test_describe_node_shows_it_once_over_all_leaders() -> None:
    async with ground() as it:
        for _ in range(2):
            it.fleet.mark_struck({})
            await passes(it.keeper(), lost(3))
        (event,) = (await it.cluster.list(Kind.EVENT)).items
        assert (event["involvedObject"]["kind"], event["involvedObject"]["name"]) == ("Node", "n1")
        assert event["message"] == (
            "avoided by all jobs until 2026-01-08 00:01 UTC: 3 strikes in 7 days;"
            " `rerail nodes --clear n1` lets it in again"
        )


async def test_a_leader_that_died_before_it_wrote_has_lost_nothing() -> None:
    async with ground() as it:
        dead = it.keeper()
        dead.passed(KEY, lost(3), Plan(None))
        await passes(it.keeper(), lost(3))
        assert len(await it.lines("n1")) == 3


async def test_nothing_is_written_while_nothing_is_new() -> None:
    async with ground() as it:
        keeper = it.keeper()
        await passes(keeper, lost(1))
        before = (await it.stored())["metadata"]["resourceVersion"]
        for _ in range(3):
            await passes(keeper, lost(1))
        assert (await it.stored())["metadata"]["resourceVersion"] == before


async def test_what_finds_no_room_is_not_written_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerail_operator.shell.strikes.record.MAX_BYTES", 150)
    async with ground() as it:
        keeper = it.keeper()
        await passes(keeper, lost(2), lost(1, node="n2", uid="uid-2", minute=30))
        before = await it.stored()
        assert list(before["data"]) == ["n2"]
        await passes(keeper, lost(2))
        assert await it.stored() == before


async def test_without_any_incident_no_object_is_made() -> None:
    async with ground() as it:
        await passes(it.keeper(), lost(0))
        assert (await it.cluster.list(Kind.CONFIG_MAP)).items == []


async def test_a_standby_writes_nothing() -> None:
    async with ground() as it:
        await passes(it.keeper(Standby()), lost(3))
        assert (await it.cluster.list(Kind.CONFIG_MAP)).items == []


async def test_a_node_is_avoided_while_the_write_fails_and_it_is_written_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with ground() as it:
        keeper = it.keeper()
        it.cluster.faults.add(Fault(FaultKind.THROTTLED, "create", Kind.CONFIG_MAP))
        await passes(keeper, lost(3))
        assert it.struck() == {"n1": "3 strikes in 7 days"}
        assert "strikes against nodes are not kept in ConfigMap rerail-node-strikes" in caplog.text
        await keeper.step()
        assert len(await it.lines("n1")) == 3


async def test_a_node_that_the_api_server_calls_ready_is_not_struck_by_one_namespace() -> None:
    async with ground() as it:
        await passes(it.keeper(), lost(5, node="n7"))
        assert [line.split()[2] for line in await it.lines("n7")] == ["told"] * 5
        assert it.struck() == {}


async def test_strikes_of_a_job_that_is_gone_stay() -> None:
    async with ground() as it:
        keeper = it.keeper()
        await passes(keeper, lost(2))  # the fleet has never seen this job: it is deleted by now
        it.clock.advance(3600)
        await passes(keeper, lost(1, uid="uid-next", minute=30))
        assert len(await it.lines("n1")) == 3


async def test_what_a_person_clears_in_between_is_not_written_over() -> None:
    async with ground() as it:
        keeper = it.keeper()
        await passes(keeper, lost(3))
        it.cluster.faults.add(Fault(FaultKind.CONFLICT, "replace", Kind.CONFIG_MAP))
        await passes(keeper, lost(1, node="n2", uid="uid-2"))  # refused: somebody else was writing
        now = it.clock.now()
        data = {**(await it.stored())["data"], "n1": f"{now:%Y-%m-%dT%H:%M:%SZ} cleared\n"}
        await it.cluster.replace(Kind.CONFIG_MAP, HOME, {**(await it.stored()), "data": data})
        await passes(keeper, lost(3))
        assert await it.lines("n1") == ["2026-01-01T01:00:00Z cleared"]
        assert len(await it.lines("n2")) == 1
        assert it.struck() == {}


async def test_a_running_keeper_takes_notice_by_itself() -> None:
    async with ground() as it:
        keeper = it.keeper()
        task = asyncio.create_task(keeper.run())
        try:
            keeper.passed(KEY, lost(3), Plan(None))
            await until(lambda: it.struck() == {"n1": "3 strikes in 7 days"})
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_week_later_the_node_is_let_in_and_the_book_is_empty() -> None:
    async with ground() as it:
        keeper = it.keeper()
        await passes(keeper, lost(3))
        it.clock.advance(7 * 86_400)
        await passes(keeper, lost(3))
        assert it.struck() == {}
        assert (await it.stored())["data"] == {}


async def test_a_line_that_cannot_be_read_is_named_and_the_others_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with ground() as it:
        keeper = it.keeper()
        await passes(keeper, lost(3))
        stored = await it.stored()
        bad = stored["data"]["n1"] + "2026-01-01T00:04:00Z Gremlin seen team/job uid-job#4 -\n\nnonsense\n"
        await it.cluster.replace(Kind.CONFIG_MAP, HOME, {**stored, "data": {"n1": bad}})
        with caplog.at_level(logging.WARNING):
            await keeper.step()
        assert "a line of n1 cannot be read and is left out: 'nonsense'" in caplog.text
        assert "Gremlin" in caplog.text
        await passes(keeper, lost(1, node="n2", uid="uid-2"))
        assert len(await it.lines("n1")) == 3


def strikes(count: int, at: datetime, wide: int = 1) -> Record:
    return Record(
        tuple(
            Strike(
                at, IncidentClass.NODE_LOSS, "n" * 63, "j" * 63, f"{i:036}", i, ("z" * 63,) * wide, among=wide
            )
            for i in range(count)
        )
    )


def test_a_book_survives_its_text() -> None:
    book = {
        "n1": strikes(8, START, 3),
        "n2": Record((), START),
        "n3": Record(strikes(1, START).strikes, START),
    }
    assert book_of({"data": data_of(book)}) == book


def test_what_is_too_much_for_one_object_leaves_out_the_nodes_that_were_struck_first() -> None:
    book = {f"n{i:04}": strikes(8, START + timedelta(minutes=i), 3) for i in range(1000)}
    data = data_of(book)
    size = sum(len(node) + len(text) for node, text in data.items())
    assert MAX_BYTES * 0.99 < size <= MAX_BYTES
    assert list(data) == list(book)[-len(data) :]

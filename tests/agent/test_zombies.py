"""Agents of an older round that come back in the middle of the next one: they disturb nobody and can be sent away.

The operator's own coordinator, real agents and real processes. What a zombie may do to checkpoints is tested in
`tests/trainer/test_fencing.py`, and who is sent away when in `tests/shell/test_engine.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from rerail_api.contract import AgentState
from rerail_operator.core.world import Agent
from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.coordinator import Coordinator, Limits
from rerail_operator.shell.leader import AlwaysLeader
from rerail_operator.shell.tokens import FileTokenVerifier
from tests.agent.process import AgentProcess, eventually

QUICK = Limits(heartbeat=0.2, silent=1.5)
SCRIPT = 'echo "rank $RANK of round $RERAIL_ROUND meets at $MASTER_PORT"; exec sleep 1000'


class Proxy:
    """Between an agent and its coordinator: passes bytes on, until it is cut, in which nothing arrives any more."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """As a switch that drops every packet: connections stay open and carry nothing."""
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(OSError, asyncio.CancelledError):
            await self._open.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
            finally:
                back.transport.abort()
        writer.transport.abort()
        self._tasks.discard(task)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._open.wait()
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError


class Gang:
    """Two node ranks of one job, and whoever stands by to take the place of one."""

    def __init__(self, leader: Coordinator, agents: dict[str, AgentProcess]) -> None:
        self.leader = leader
        self.agents = agents

    def seen(self, name: str) -> Agent | None:
        return self.leader.agents("uid-of-job").get(f"uid-{name}")

    async def is_(self, name: str, state: AgentState, number: int) -> Agent:
        """The agent once it is connected and says so."""

        def matches() -> Agent | None:
            now = self.seen(name)
            fits = now is not None and now.connected and (now.state, now.round) == (state, number)
            return now if fits else None

        return await eventually(matches, f"{name} {state} in round {number}; seen {self.seen(name)}")  # type: ignore[no-any-return]

    async def run(self, number: int, *names: str) -> None:
        """One round from its barrier to running ranks."""
        for name in names:
            assert self.leader.send(f"uid-{name}", {"do": "join", "round": number})
        ready = [await self.is_(name, AgentState.READY, number) for name in names]
        for rank, name in enumerate(names):
            self.leader.send(
                f"uid-{name}", {"do": "run", "round": number, "release": release(number, rank, ready[0])}
            )
        for name in names:
            await self.is_(name, AgentState.RUNNING, number)
            await self.agents[name].says(f"of round {number} meets at {ready[0].port}")


def release(number: int, node_rank: int, first: Agent) -> dict[str, Any]:
    return {
        "round": number, "node_rank": node_rank, "num_nodes": 2, "nproc": 1,
        "master_addr": first.address, "master_port": first.port, "min_step": 0,
    }  # fmt: skip


@pytest.fixture
async def leader(new_agent: Callable[[], AgentProcess]) -> AsyncIterator[Coordinator]:
    token = new_agent().folder / "token"
    coordinator = Coordinator(
        FileTokenVerifier(token), SystemClock(), lambda uid: None, AlwaysLeader(), QUICK
    )
    await coordinator.start("127.0.0.1", 0)
    yield coordinator
    await coordinator.stop()


@pytest.mark.parametrize("how", ["its processes are stopped", "it is cut off"])
async def test_who_comes_back_in_the_middle_of_the_next_round_disturbs_nobody(
    how: str, leader: Coordinator, new_agent: Callable[[], AgentProcess]
) -> None:
    async with Proxy(leader.port) as proxy:
        agents = {name: new_agent().with_timing(silent=1.5, heartbeat=0.2) for name in ("a", "b", "c")}
        gang = Gang(leader, agents)
        for name, agent in agents.items():
            port = proxy.port if name == "b" else leader.port
            agent.start(f"127.0.0.1:{port}", "sh", "-c", SCRIPT, RERAIL_POD_UID=f"uid-{name}")
            await gang.is_(name, AgentState.IDLE, 0)
        await gang.run(1, "a", "b")
        zombie = agents["b"]
        ranks = zombie.rank_pids()
        if how == "it is cut off":
            proxy.cut()
        else:
            for pid in [zombie.pid, *ranks]:
                os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: (b := gang.seen("b")) and not b.connected, "the silence of b")
        assert zombie.below() == ranks, "training goes on while nobody leads"
        await gang.run(2, "a", "c")
        running = agents["a"].rank_pids() + agents["c"].rank_pids()

        if how == "it is cut off":
            proxy.heal()
        else:
            for pid in [*ranks, zombie.pid]:
                os.kill(pid, signal.SIGCONT)
        await gang.is_("b", AgentState.RUNNING, 1)
        # A release of the new round is nothing to who has not stood at its barrier.
        first = gang.seen("a")
        assert first is not None
        leader.send("uid-b", {"do": "run", "round": 2, "release": release(2, 1, first)})
        leader.send("uid-b", {"do": "finish", "code": 1, "message": "the pod of this agent is gone"})
        assert await zombie.exit_code() == 1
        assert zombie.below() == [] and "round 2" not in zombie.output()
        assert zombie.termination()["round"] == 1
        assert agents["a"].rank_pids() + agents["c"].rank_pids() == running
        for name in ("a", "c"):
            await gang.is_(name, AgentState.RUNNING, 2)


async def test_a_zombie_that_is_called_to_the_barrier_ends_its_old_ranks_first(
    leader: Coordinator, new_agent: Callable[[], AgentProcess]
) -> None:
    agents = {"a": new_agent(), "b": new_agent().with_timing(silent=1.5)}
    gang = Gang(leader, agents)
    for name, agent in agents.items():
        agent.start(f"127.0.0.1:{leader.port}", "sh", "-c", SCRIPT, RERAIL_POD_UID=f"uid-{name}")
        await gang.is_(name, AgentState.IDLE, 0)
    await gang.run(1, "a", "b")
    zombie = agents["b"]
    old = zombie.rank_pids()
    for pid in [zombie.pid, *old]:
        os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: (b := gang.seen("b")) and not b.connected, "the silence of b")
    leader.send("uid-b", {"do": "join", "round": 2})  # kept for its return
    for pid in [*old, zombie.pid]:
        os.kill(pid, signal.SIGCONT)
    ready = await gang.is_("b", AgentState.READY, 2)
    assert ready.ranks_alive == 0 and zombie.below() == []
    await gang.run(2, "a", "b")
    assert not set(zombie.rank_pids()) & set(old)

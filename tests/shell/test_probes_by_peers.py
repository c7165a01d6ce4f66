"""Real agents and the operator's own coordinator: an agent falls silent, and its peers are asked about it."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from rerail_agent.bundle import build
from rerail_operator.core.world import Agent, Probe
from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.coordinator import Coordinator, Limits
from rerail_operator.shell.leader import AlwaysLeader
from rerail_operator.shell.tokens import FileTokenVerifier
from tests.agent.process import AgentProcess

from .agent_client import AgentClient
from .waiting import until

TOKEN = "secret"
QUICK = Limits(heartbeat=0.2, silent=60, resend=0.3, progress=0.1, probe=0.7)
AGENTS = {"heartbeat": 0.2, "probe": 0.7, "silent": 60.0}


class Gang:
    """A coordinator, the agents of one job, and what the coordinator knows of them."""

    def __init__(self, coordinator: Coordinator, folder: Path, pyz: Path) -> None:
        self.coordinator = coordinator
        self.told: list[str] = []
        self._folder = folder
        self._pyz = pyz
        self.processes: dict[str, AgentProcess] = {}

    def agent(self, name: str, port: int = 0, **env: str) -> AgentProcess:
        """A real agent, of pod `uid-NAME`; `port`: of whatever stands between it and the coordinator."""
        folder = self._folder / name
        folder.mkdir()
        process = AgentProcess(self._pyz, folder).with_timing(**AGENTS)
        (folder / "token").write_text(TOKEN)
        who = {"RERAIL_POD": name, "RERAIL_POD_UID": f"uid-{name}"}
        process.start(f"127.0.0.1:{port or self.coordinator.port}", "sleep", "1000", **who, **env)
        self.processes[name] = process
        return process

    def seen(self, name: str) -> Agent | None:
        return self.coordinator.agents("uid-of-job").get(f"uid-{name}")

    async def there(self, *names: str) -> None:
        for name in names:
            await until(lambda name=name: (a := self.seen(name)) and a.connected, 30, f"hello of {name}")

    async def verdict(self, name: str) -> Probe:
        """What peers found about an agent that is silent."""

        def found() -> bool:
            agent = self.seen(name)
            return agent is not None and not agent.connected and agent.probe is not None

        await until(found, 30, f"a verdict on {name}")
        agent = self.seen(name)
        assert agent is not None and agent.probe is not None
        return agent.probe


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "agent.pyz"
    path.write_bytes(build())
    return path


@pytest.fixture
async def gang(tmp_path: Path, pyz: Path) -> AsyncIterator[Gang]:
    (tmp_path / "token").write_text(TOKEN)
    told: list[str] = []
    coordinator = Coordinator(
        FileTokenVerifier(tmp_path / "token"), SystemClock(), told.append, AlwaysLeader(), QUICK
    )
    await coordinator.start("127.0.0.1", 0)
    gang = Gang(coordinator, tmp_path, pyz)
    gang.told = told
    yield gang
    for process in gang.processes.values():
        process.clean_up()
    await coordinator.stop()


@asynccontextmanager
async def cable(target: int) -> AsyncIterator["Cable"]:
    """A way to the coordinator that can be cut without anybody being told."""
    made = Cable(target)
    server = await asyncio.start_server(made.carry, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    made.tear_down()
    server.close()


class Cable:
    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def tear_down(self) -> None:
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onwards = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, onwards]
        for source, sink in ((reader, onwards), (there, writer)):
            task = asyncio.get_running_loop().create_task(self._pump(source, sink))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await self._whole.wait()
            sink.write(data)
        sink.close()


async def some_beats(gang: Gang) -> None:
    """Time enough to suspect and to ask, counted in the coordinator's own beats."""
    client = stand_in(9)
    client.job_uid = "uid-of-a-third-job"
    await client.connect("127.0.0.1", gang.coordinator.port)
    for _ in range(3 * QUICK.missed_beats):
        await client.receive("ping")
        await client.say()
    await client.close()


async def test_a_stopped_agent_is_mute_though_its_kernel_takes_connects_and_is_heard_again(
    gang: Gang,
) -> None:
    victim = gang.agent("a")
    for name in "bc":
        gang.agent(name)
    await gang.there("a", "b", "c")
    victim.signal(signal.SIGSTOP)
    try:
        probe = await gang.verdict("a")
        assert (probe.asked, probe.mute, probe.reached, probe.refused, probe.timed_out) == (2, 2, 0, 0, 0)
        told = len(gang.told)
    finally:
        victim.signal(signal.SIGCONT)
    await gang.there("a")
    again = gang.seen("a")
    assert again is not None and again.probe is None, "what was found of an earlier silence is over"
    assert len(gang.told) > told


async def test_a_killed_agents_machine_refuses(gang: Gang) -> None:
    victim = gang.agent("a")
    for name in "bc":
        gang.agent(name)
    await gang.there("a", "b", "c")
    os.kill(victim.pid, signal.SIGKILL)
    probe = await gang.verdict("a")
    assert (probe.asked, probe.refused) == (2, 2)


@contextmanager
def dropping() -> Iterator[int]:
    """A port that drops every packet, as a machine that is off does: the queue of a listener is full."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(32):
            client = opened.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield port


async def test_a_machine_that_answers_nobody_times_out(gang: Gang) -> None:
    for name in "bc":
        gang.agent(name)
    await gang.there("b", "c")
    with dropping() as port:
        victim = stand_in(0)
        victim.report |= {"address": "127.0.0.1", "probe_port": port}
        await victim.connect("127.0.0.1", gang.coordinator.port)
        probe = await gang.verdict("old-0")
        await victim.close()
    assert (probe.asked, probe.timed_out) == (2, 2)


async def test_an_agent_behind_a_cut_cable_is_reached_by_its_peers(gang: Gang) -> None:
    async with cable(gang.coordinator.port) as way:
        gang.agent("a", port=way.port)
        for name in "bc":
            gang.agent(name)
        await gang.there("a", "b", "c")
        way.cut()
        probe = await gang.verdict("a")
        assert (probe.asked, probe.reached) == (2, 2)
        way.mend()
        await gang.there("a")


async def test_one_peer_is_asked_where_there_is_one_and_none_where_there_is_none(gang: Gang) -> None:
    victims = [gang.agent("a"), gang.agent("b")]
    gang.agent("c")
    await gang.there("a", "b", "c")
    os.kill(victims[0].pid, signal.SIGKILL)
    await gang.verdict("a")
    os.kill(victims[1].pid, signal.SIGKILL)
    probe = await gang.verdict("b")
    assert (probe.asked, probe.refused) == (1, 1)
    gang.coordinator.forget("uid-a")
    gang.coordinator.forget("uid-b")
    last = gang.processes["c"]
    os.kill(last.pid, signal.SIGKILL)
    await until(lambda: (a := gang.seen("c")) and not a.connected)
    await some_beats(gang)
    alone = gang.seen("c")
    assert alone is not None and alone.probe is None


def stand_in(number: int, token: str = TOKEN) -> AgentClient:
    """An agent of the version before: it does not announce that it can probe."""
    names = {
        "job": "team/job",
        "job_uid": "uid-of-job",
        "pod": f"old-{number}",
        "pod_uid": f"uid-old-{number}",
    }
    return AgentClient(**names, token=token)


async def test_agents_that_do_not_announce_it_and_those_of_other_jobs_are_never_asked(gang: Gang) -> None:
    old, stranger, victim = stand_in(0), stand_in(1), stand_in(2)
    stranger.job_uid = "uid-of-another-job"
    victim.report |= {"address": "127.0.0.1", "probe_port": 9}
    for client in (old, stranger, victim):
        await client.connect("127.0.0.1", gang.coordinator.port)
    await victim.receive("welcome")
    obeying = [asyncio.create_task(client.obey()) for client in (old, stranger)]
    await until(lambda: (a := gang.seen("old-2")) and not a.connected)
    await some_beats(gang)
    for client, task in zip((old, stranger), obeying, strict=True):
        assert {frame["kind"] for frame in client.received} <= {"welcome", "ping"}
        task.cancel()
        await client.close()
    await victim.close()
    assert (a := gang.seen("old-2")) and a.probe is None


async def test_an_answer_that_nobody_asked_for_changes_nothing(gang: Gang) -> None:
    liar, victim = stand_in(0), stand_in(1)
    victim.report |= {"address": "127.0.0.1", "probe_port": 9}
    for client in (liar, victim):
        await client.connect("127.0.0.1", gang.coordinator.port)
        await client.receive("welcome")
    await until(lambda: (a := gang.seen("old-1")) and not a.connected)
    for number in range(1, 20):
        await liar.send_frame({"kind": "probed", "id": number, "outcome": "timeout"})
    await liar.say(state="Ready", round=9)
    await until(lambda: (a := gang.seen("old-0")) and a.round == 9)
    assert (a := gang.seen("old-1")) and a.probe is None
    for client in (liar, victim):
        await client.close()

"""Finding the coordinator, losing it, and finding it again."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from tests.agent.certificates import Authority
from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess, eventually

SLEEP = ("sleep", "1000")


async def running(coordinator: Coordinator, number: int = 1) -> None:
    await coordinator.hello()
    coordinator.join(number)
    await coordinator.state("Ready", number)
    coordinator.run(number)
    await coordinator.state("Running", number)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


async def test_a_lost_leader_is_found_again_and_told_everything(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start(coordinator.address, *SLEEP)
    await running(coordinator)
    (agent.folder / "token").write_text("rotated")
    coordinator.hang_up()
    hello = await coordinator.hello(2)
    assert hello["token"] == "rotated"
    report = hello["report"]
    assert report["state"] == "Running" and report["round"] == 1 and report["term"] == 7
    assert report["release"]["master_addr"] == "127.0.0.1" and report["ranks_alive"] == 1
    assert (await coordinator.state("Running"))["ranks_alive"] == 1


async def test_ranks_run_and_fail_while_the_leader_is_away(agent: AgentProcess) -> None:
    async with Coordinator(term=3) as first:
        agent.start(first.address, *SLEEP)
        await running(first)
        pid = agent.rank_pids()[0]
        port = first.port
    await agent.says("no connection to the coordinator")
    os.kill(pid, signal.SIGSEGV)
    await eventually(lambda: agent.termination().get("exit"), "evidence in the termination message")
    async with Coordinator(term=4, port=port) as second:
        hello = await second.hello()
        assert hello["report"]["state"] == "Failed" and hello["report"]["exit"]["signal"] == 11
        await agent.says("connected to the coordinator")
        second.join(2)
        ready = await second.state("Ready", 2)
        assert ready["term"] == 4


async def test_without_a_leader_a_failed_node_stops_keeps_its_evidence_and_waits(agent: AgentProcess) -> None:
    async with Coordinator(term=3) as first:
        agent.with_timing(unled_failure=1.0).start(
            first.address, "sh", "-c", 'echo "rank $RANK"; exec sleep 1000'
        )
        await first.hello()
        first.join(1)
        await first.state("Ready", 1)
        first.run(1, nproc=3)
        await first.until(lambda r: r["ranks_alive"] == 3)
        await eventually(lambda: agent.output().count("] rank ") == 3, "every rank's words")
        pids, port = agent.rank_pids(), first.port
        os.kill(pids[1], signal.SIGSEGV)
        await first.state("Failed")
        # As long as somebody leads, what follows is his to say.
        await first.until(lambda r: r["exit"]["age"] > 1.5)
        assert first.report["ranks_alive"] == 2
    await agent.says("a rank has failed and no leader is there")
    await eventually(lambda: not agent.below(), "the end of the other ranks")
    async with Coordinator(term=4, port=port) as second:
        report = (await second.hello())["report"]
        assert (report["state"], report["round"], report["ranks_alive"]) == ("Failed", 1, 0)
        assert (report["exit"]["signal"], report["exit"]["rank"], report["exit"]["ordered"]) == (11, 1, False)
        assert report["exit"]["lines"] == ["rank 1"]
        second.join(2)
        await second.state("Ready", 2)
        second.run(2, nproc=2)
        assert (await second.until(lambda r: r["state"] == "Running"))["ranks_alive"] == 2


async def test_an_unreachable_coordinator_is_told_once_with_what_to_check(agent: AgentProcess) -> None:
    port = free_port()
    agent.start(f"127.0.0.1:{port}", *SLEEP)
    text = await agent.says("no connection to the coordinator")
    assert f"127.0.0.1:{port}" in text and "connection refused" in text and "Check that" in text
    async with Coordinator(port=port) as late:
        await running(late)
        assert agent.output().count("no connection to the coordinator") == 1


async def test_a_silent_leader_is_dropped(agent: AgentProcess, coordinator: Coordinator) -> None:
    coordinator.pinging = False
    agent.with_timing(silent=1.5).start(coordinator.address, "true")
    await coordinator.hello(2)
    assert "silent for 1.5 s" in agent.output()
    coordinator.pinging = True
    coordinator.join(1)
    await coordinator.state("Ready", 1)


async def test_done_without_a_leader_ends_in_peace(agent: AgentProcess, coordinator: Coordinator) -> None:
    agent.with_timing(unled_completion=0.5).start(coordinator.address, "true")
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1)
    await coordinator.state("Done", 1)
    coordinator.welcoming = False
    coordinator.hang_up()
    assert await agent.exit_code() == 0
    assert "no leader" in agent.termination()["message"] and agent.termination()["state"] == "Done"


async def test_a_standby_names_the_leader(coordinator: Coordinator, agent: AgentProcess) -> None:
    async with Coordinator() as standby:
        standby.answer = {"kind": "redirect", "address": ""}
        agent.start(standby.address, *SLEEP)
        await standby.hello(2)
        standby.answer = {"kind": "redirect", "address": coordinator.address}
        await running(coordinator)


async def test_a_redirect_in_a_circle_is_left(agent: AgentProcess) -> None:
    async with Coordinator() as standby:
        standby.answer = {"kind": "redirect", "address": standby.address}
        agent.start(standby.address, *SLEEP)
        await agent.says("redirect in a circle")


async def test_a_refusal_is_told_and_not_repeated_fast(coordinator: Coordinator, agent: AgentProcess) -> None:
    coordinator.answer = {"kind": "refuse", "reason": "the token has expired at 12:00"}
    agent.with_timing(refused=1.0).start(coordinator.address, *SLEEP)
    await agent.says("refused this agent: the token has expired at 12:00")
    assert len(coordinator.hellos) == 1
    first = time.monotonic()
    coordinator.answer = None
    await coordinator.hello(2)
    assert time.monotonic() - first > 0.5
    await coordinator.state("Idle")


async def test_a_leader_of_the_past_is_left(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start(coordinator.address, *SLEEP)
    await running(coordinator)
    coordinator.term = 6
    coordinator.hang_up()
    await agent.says("it leads with term 6, which is over")
    coordinator.term = 8
    await coordinator.until(lambda r: r["term"] == 8)


async def test_what_does_not_speak_the_protocol_is_left(agent: AgentProcess) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(replies.pop(0) if replies else b"")
        await writer.drain()
        writer.close()

    replies = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x" * 100_000, b'{"kind": "order"}\n']
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        agent.start(f"127.0.0.1:{port}", *SLEEP)
        await agent.says("not our protocol")
        await eventually(lambda: not replies, "all replies")
    assert agent.below() == []


async def test_tls_with_a_private_authority(agent: AgentProcess, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with Coordinator(tls=authority.server("coordinator.rerail.svc")) as leader:
        agent.start(
            leader.address,
            *SLEEP,
            RERAIL_COORDINATOR_TLS="1",
            RERAIL_CA_FILE=str(authority.file),
            RERAIL_COORDINATOR_NAME="coordinator.rerail.svc",
        )
        await running(leader)
        agent.signal(signal.SIGTERM)
        stopped = await leader.state("Stopped", 1)
        assert stopped["exit"]["signal"] == 15 and await agent.exit_code() == 143


async def test_tls_refuses_another_name_and_another_authority(
    new_agent: Callable[[], AgentProcess], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    authority, other = Authority(tmp_path), Authority(tmp_path / "other")
    async with Coordinator(tls=authority.server("coordinator.rerail.svc")) as leader:
        for ca, name in ((authority.file, "else.rerail.svc"), (other.file, "coordinator.rerail.svc")):
            agent = new_agent().start(
                leader.address,
                *SLEEP,
                RERAIL_COORDINATOR_TLS="1",
                RERAIL_CA_FILE=str(ca),
                RERAIL_COORDINATOR_NAME=name,
            )
            await agent.says("its certificate is not trusted")
        assert leader.hellos == []


async def test_peers_can_probe_the_agent(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start(coordinator.address, *SLEEP)
    hello = await coordinator.hello()
    for host in ("127.0.0.1", "::1") if socket.has_dualstack_ipv6() else ("127.0.0.1",):
        reader, writer = await asyncio.open_connection(host, hello["report"]["probe_port"])
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        await writer.wait_closed()


def test_contexts_speak_nothing_older_than_tls_1_2(tmp_path: Path) -> None:
    from rerail_agent.link import tls_context

    context = tls_context(str(Authority(tmp_path).file))
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2

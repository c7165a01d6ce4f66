"""The coordinator behind TLS: who may connect, and what a connection costs."""

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.cluster import Kind
from rerail_operator.shell.coordinator import Coordinator, Limits
from rerail_operator.shell.leader import AlwaysLeader
from rerail_operator.shell.memory import MemoryCluster
from rerail_operator.shell.tls import (
    READ_BUFFER_BYTES,
    AuthorityUnreadable,
    load_or_create_authority,
    make_authority,
    server_context,
    shrink_tls_buffers,
)
from rerail_operator.shell.tokens import FileTokenVerifier, Identity

from .agent_client import AgentClient
from .waiting import until

CLOCK = SystemClock()
NAME = "rerail-coordinator.rerail-system.svc"
CONNECTIONS = 300
MAX_BYTES_PER_CONNECTION = 80 * 1024


def client_context(certificate: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=certificate.decode())


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret")
    return tmp_path / "token"


def an_agent(number: int = 0) -> AgentClient:
    return AgentClient("team/job", "uid-job", f"job-{number}", f"uid-{number}", token="secret")


async def test_agents_reach_the_server_that_the_authority_names_and_no_other(token_file: Path) -> None:
    authority, other = make_authority(CLOCK.now()), make_authority(CLOCK.now())
    coordinator = Coordinator(FileTokenVerifier(token_file), CLOCK, lambda job: None, AlwaysLeader())
    await coordinator.start("127.0.0.1", 0, server_context(authority, NAME, CLOCK.now()))
    try:
        good = an_agent()
        await good.connect("127.0.0.1", coordinator.port, client_context(authority.certificate), NAME)
        assert (await good.receive())["kind"] == "welcome"
        with pytest.raises(ssl.SSLCertVerificationError):
            await an_agent().connect("127.0.0.1", coordinator.port, client_context(other.certificate), NAME)
        with pytest.raises(ssl.SSLCertVerificationError):
            await an_agent().connect("127.0.0.1", coordinator.port, client_context(authority.certificate))
        plain = an_agent(1)
        await plain.connect("127.0.0.1", coordinator.port)
        await plain.ended()
        assert plain.received == []
        await plain.close()
        await good.say(state="Ready", round=1)
        await until(lambda: coordinator.agents("uid-job")["uid-0"].round == 1)
        await good.close()
    finally:
        await coordinator.stop()


class SlowVerifier:
    """Verifies when it is told to."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.done = False

    async def verify(self, token: str) -> Identity:
        await self.may.wait()
        self.done = True
        return Identity()


async def test_an_agent_whose_time_was_over_is_not_admitted_after_all() -> None:
    authority, verifier = make_authority(CLOCK.now()), SlowVerifier()
    limits = Limits(authenticate=0.3)
    coordinator = Coordinator(verifier, CLOCK, lambda job: None, AlwaysLeader(), limits)
    await coordinator.start("127.0.0.1", 0, server_context(authority, NAME, CLOCK.now()))

    def refused() -> ssl.SSLSocket:
        """A peer that reads the refusal and leaves the connection half closed."""
        plain = socket.create_connection(("127.0.0.1", coordinator.port), timeout=10)
        peer = client_context(authority.certificate).wrap_socket(plain, server_hostname=NAME)
        peer.sendall(json.dumps(an_agent().hello()).encode() + b"\n")
        assert b'"refuse"' in peer.recv(4096)
        return peer

    try:
        peer = await asyncio.to_thread(refused)
        verifier.may.set()
        await until(lambda: verifier.done)
        assert coordinator.agents("uid-job") == {}
        peer.close()
    finally:
        await coordinator.stop()


async def test_the_authority_is_made_once_and_shared_by_all_replicas() -> None:
    cluster = MemoryCluster(CLOCK)
    found = await asyncio.gather(
        *(load_or_create_authority(cluster, "rerail-system", "rerail-ca", CLOCK) for _ in range(3))
    )
    assert len(set(found)) == 1
    certificate = x509.load_pem_x509_certificate(found[0].certificate)
    assert certificate.not_valid_after_utc - CLOCK.now() > timedelta(days=19 * 365)


async def test_a_secret_that_holds_something_else_is_named() -> None:
    cluster = MemoryCluster(CLOCK)
    meta = {"name": "rerail-ca", "namespace": "rerail-system"}
    await cluster.create(
        Kind.SECRET, "rerail-system", {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {}}
    )
    with pytest.raises(AuthorityUnreadable, match="Secret rerail-system/rerail-ca holds no usable"):
        await load_or_create_authority(cluster, "rerail-system", "rerail-ca", CLOCK)


def test_asyncio_still_has_the_buffer_that_we_cut() -> None:
    shrink_tls_buffers()
    shrink_tls_buffers()
    assert asyncio.sslproto.SSLProtocol.max_size == READ_BUFFER_BYTES


CROWD = """
import asyncio, ssl, sys
from tests.shell.agent_client import AgentClient

async def main(port, ca, name, count):
    tls = ssl.create_default_context(cafile=ca)
    agents = [AgentClient("team/job", "uid-job", f"job-{i}", f"uid-{i}", token="secret") for i in range(count)]
    for agent in agents:
        await agent.connect("127.0.0.1", port, tls, name)
        await agent.receive("welcome", seconds=30)
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
"""


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_an_agent_behind_tls_costs_at_most_80_kib(token_file: Path, tmp_path: Path) -> None:
    authority = make_authority(CLOCK.now())
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    coordinator = Coordinator(FileTokenVerifier(token_file), CLOCK, lambda job: None, AlwaysLeader())
    await coordinator.start("127.0.0.1", 0, server_context(authority, NAME, CLOCK.now()))
    warm = an_agent(9999)
    await warm.connect("127.0.0.1", coordinator.port, client_context(authority.certificate), NAME)
    await warm.receive("welcome")
    before = resident_bytes()
    arguments = [str(coordinator.port), str(tmp_path / "ca.crt"), NAME, str(CONNECTIONS)]
    crowd = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CROWD, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert crowd.stdout is not None
        assert (await asyncio.wait_for(crowd.stdout.readline(), 60)).strip() == b"open"
        assert coordinator.connections >= CONNECTIONS
        per_connection = (resident_bytes() - before) / CONNECTIONS
        print(f"{per_connection / 1024:.0f} KiB per connection")
        assert per_connection <= MAX_BYTES_PER_CONNECTION, f"{per_connection / 1024:.0f} KiB"
    finally:
        await crowd.communicate(b"")
        await warm.close()
        await coordinator.stop()

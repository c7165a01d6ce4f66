"""A coordinator for tests, what it told, and agents that speak to it over real sockets."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from rerail_operator.core.world import Agent
from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.coordinator import Coordinator, Limits
from rerail_operator.shell.leader import AlwaysLeader
from rerail_operator.shell.tokens import FileTokenVerifier

from .agent_client import AgentClient

TOKEN = "a-random-token"
QUICK = Limits(heartbeat=0.1, silent=1.5, authenticate=0.4, unauthenticated=4, resend=0.3, progress=0.1)


OpenDesk = Callable[..., Awaitable["Desk"]]


class Desk:
    """A coordinator with what it told; `agent(n)` are agents of job `uid-job`."""

    def __init__(self, coordinator: Coordinator, changes: list[str]) -> None:
        self.coordinator = coordinator
        self.changes = changes
        self.clients: list[AgentClient] = []

    async def agent(self, number: int = 0, connect: bool = True, **fields: Any) -> AgentClient:
        names = {"job": "team/job", "job_uid": "uid-job", "pod": f"job-{number}", "pod_uid": f"uid-{number}"}
        client = AgentClient(**{**names, "token": TOKEN, **fields})
        self.clients.append(client)
        if connect:
            await client.connect("127.0.0.1", self.coordinator.port)
        return client

    def seen(self, number: int = 0) -> Agent | None:
        return self.coordinator.agents("uid-job").get(f"uid-{number}")


@pytest.fixture
async def open_desk(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Desk]]]:
    (tmp_path / "token").write_text(TOKEN + "\n")
    desks: list[Desk] = []

    async def build(limits: Limits = QUICK, leadership: Any = None, verifier: Any = None) -> Desk:
        changes: list[str] = []
        coordinator = Coordinator(
            verifier or FileTokenVerifier(tmp_path / "token"),
            SystemClock(),
            changes.append,
            leadership or AlwaysLeader(),
            limits,
        )
        await coordinator.start("127.0.0.1", 0)
        desks.append(Desk(coordinator, changes))
        return desks[-1]

    yield build
    for desk in desks:
        await desk.coordinator.stop()
        for client in desk.clients:
            await client.close()


@pytest.fixture
async def desk(open_desk: Callable[..., Awaitable[Desk]]) -> Desk:
    return await open_desk()

"""Agent and operator's own coordinator, over TLS: what one writes the other reads."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rerail_api.contract import AgentState
from rerail_operator.core.world import Agent
from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.coordinator import Coordinator
from rerail_operator.shell.leader import AlwaysLeader
from rerail_operator.shell.tls import make_authority, server_context
from rerail_operator.shell.tokens import FileTokenVerifier
from tests.agent.process import AgentProcess, eventually
from tests.agent.test_bundle import interpreters

NAME = "rerail-coordinator.rerail-system.svc"
CLOCK = SystemClock()
PYTHONS = [sys.executable, *(python for version in ("3.9", "3.13") for python in interpreters(version))]


@pytest.fixture
async def coordinator(agent: AgentProcess, tmp_path: Path) -> AsyncIterator[Coordinator]:
    """The operator's coordinator; the agent's environment is such that it finds and trusts it."""
    authority = make_authority(CLOCK.now())
    (tmp_path / "ca.crt").write_bytes(authority.certificate)
    agent.env |= {
        "RERAIL_COORDINATOR_TLS": "1",
        "RERAIL_COORDINATOR_NAME": NAME,
        "RERAIL_CA_FILE": str(tmp_path / "ca.crt"),
    }
    verifier = FileTokenVerifier(agent.folder / "token")
    leader = Coordinator(verifier, CLOCK, lambda job_uid: None, AlwaysLeader())
    await leader.start("127.0.0.1", 0, server_context(authority, NAME, CLOCK.now()))
    yield leader
    await leader.stop()


def release(number: int) -> dict[str, Any]:
    return {
        "round": number,
        "node_rank": 0,
        "num_nodes": 1,
        "nproc": 2,
        "master_addr": "127.0.0.1",
        "master_port": 29500,
        "min_step": 0,
    }


@pytest.mark.parametrize("python", PYTHONS)
async def test_a_life_from_barrier_to_completion(
    coordinator: Coordinator, agent: AgentProcess, python: str
) -> None:
    def seen() -> Agent | None:
        return coordinator.agents("uid-of-job").get("uid-of-pod")

    async def state(wanted: AgentState, number: int) -> Agent:
        def matches() -> Agent | None:
            now = seen()
            return now if now and (now.state, now.round) == (wanted, number) else None

        return await eventually(matches, f"{wanted} in round {number}; seen {seen()}")  # type: ignore[no-any-return]

    agent.python = [python, "-I"]
    script = (
        'echo \'{"step": 7, "contract": 1, "checkpoint_step": 5}\' >> $RERAIL_PROGRESS; '
        'if [ $RERAIL_ROUND = 1 ]; then echo "OSError: no luck"; exit 83; fi'
    )
    agent.start(f"127.0.0.1:{coordinator.port}", "sh", "-c", script)
    await state(AgentState.IDLE, 0)
    assert coordinator.send("uid-of-pod", {"do": "join", "round": 1})
    ready = await state(AgentState.READY, 1)
    assert ready.address == "127.0.0.1" and 20000 <= ready.port < 30000
    coordinator.send("uid-of-pod", {"do": "run", "round": 1, "release": release(1)})
    failed = await eventually(
        lambda: (now := seen()) and now.state is AgentState.FAILED and not now.ranks_alive and now, "failure"
    )
    assert failed.exit.exit_code == 83 and failed.exit.exception == "OSError" and failed.exit.contract
    assert failed.exit.same_on_all and failed.exit.lines == ("OSError: no luck",)
    assert failed.progress.step == 7 and failed.progress.checkpoint_step == 5
    assert failed.release.nproc == 2
    coordinator.send("uid-of-pod", {"do": "join", "round": 2})
    await state(AgentState.READY, 2)
    coordinator.send("uid-of-pod", {"do": "run", "round": 2, "release": release(2)})
    done = await state(AgentState.DONE, 2)
    assert done.exit is None
    coordinator.send("uid-of-pod", {"do": "finish", "code": 0, "message": "complete"})
    assert await agent.exit_code() == 0
    assert agent.termination()["message"] == "complete"


async def test_a_wrong_token_is_refused_with_the_operators_words(
    coordinator: Coordinator, agent: AgentProcess, tmp_path: Path
) -> None:
    (tmp_path / "stale").write_text("expired")
    agent.start(f"127.0.0.1:{coordinator.port}", "true", RERAIL_TOKEN_FILE=str(tmp_path / "stale"))
    await agent.says("the coordinator refused this agent: ")
    assert coordinator.agents("uid-of-job") == {}

"""An agent whose ranks are forked, as a test sees it: started in a place with a torch of one line, and led through rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess


def started(
    agent: AgentProcess, coordinator: Coordinator, place: Path, *command: str, **env: str
) -> AgentProcess:
    return agent.start(
        coordinator.address, *command, PYTHONPATH=str(place), PYTHONDONTWRITEBYTECODE="1", **env
    )


async def through(coordinator: Coordinator, number: int = 1, **release: Any) -> None:
    await coordinator.hello()
    coordinator.join(number)
    await coordinator.state("Ready", number)
    coordinator.run(number, **release)


def parked(agent: AgentProcess) -> int | None:
    """The parked interpreter below the agent."""
    for pid in agent.below():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"rerail-parked\0"):
                return pid
        except OSError:
            continue
    return None


def ranks(agent: AgentProcess) -> list[int]:
    return [pid for pid in agent.rank_pids() if pid != parked(agent)]

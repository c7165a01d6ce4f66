"""The agent as it ships, and a coordinator to lead it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from rerail_agent.bundle import build
from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "agent.pyz"
    path.write_bytes(build())
    return path


@pytest.fixture
async def coordinator() -> AsyncIterator[Coordinator]:
    async with Coordinator() as leader:
        yield leader


@pytest.fixture
def new_agent(pyz: Path, tmp_path: Path) -> Iterator[Callable[[], AgentProcess]]:
    """Makes agents that are surely gone after the test."""
    agents: list[AgentProcess] = []

    def make() -> AgentProcess:
        folder = tmp_path / f"agent-{len(agents)}"
        folder.mkdir()
        agents.append(AgentProcess(pyz, folder))
        return agents[-1]

    yield make
    for agent in agents:
        agent.clean_up()


@pytest.fixture
def agent(new_agent: Callable[[], AgentProcess]) -> AgentProcess:
    return new_agent()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder on the ranks' path, with a torch in it."""
    folder = tmp_path / "place"
    (folder / "package").mkdir(parents=True)
    (folder / "torch.py").write_text("MARK = 'imported'\n")
    (folder / "package" / "__init__.py").touch()
    return folder

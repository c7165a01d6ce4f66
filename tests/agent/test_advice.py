"""Advice: from the release and from frames into the file that the ranks read, and back in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess, eventually

SHOW = "echo $RERAIL_ADVICE > %s; echo ${RERAIL_CHECKPOINT_SECONDS:-none} > %s; exec sleep 1000"


class Ranks:
    """One rank that writes down where its advice lies and what its environment says."""

    def __init__(self, agent: AgentProcess, address: str) -> None:
        self.where, self.began = agent.folder / "where", agent.folder / "began"
        agent.start(address, "sh", "-c", SHOW % (self.where, self.began))

    async def file(self) -> Path:
        text = await eventually(
            lambda: self.where.exists() and self.where.read_text().strip(), "the file's name"
        )
        return Path(text)

    async def environment(self) -> str:
        text = await eventually(
            lambda: self.began.exists() and self.began.read_text().strip(), "its environment"
        )
        return str(text)


async def read(ranks: Ranks) -> Any:
    return json.loads((await ranks.file()).read_text())


async def running(coordinator: Coordinator, agent: AgentProcess, **release: Any) -> Ranks:
    ranks = Ranks(agent, coordinator.address)
    hello = await coordinator.hello()
    assert hello["report"]["checkpoint_seconds"] == 0  # so the operator knows that advice is taken here
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1, **release)
    await coordinator.state("Running", 1)
    await ranks.environment()
    return ranks


async def test_the_release_begins_with_what_it_tells(coordinator: Coordinator, agent: AgentProcess) -> None:
    ranks = await running(coordinator, agent, checkpoint_seconds=118)
    assert await read(ranks) == {"checkpoint_seconds": 118}
    assert await ranks.environment() == "118"
    assert coordinator.report["checkpoint_seconds"] == 118
    assert coordinator.report["release"]["checkpoint_seconds"] == 118


async def test_a_release_of_the_version_before_tells_nothing(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    ranks = await running(coordinator, agent)
    assert await read(ranks) == {"checkpoint_seconds": None}
    assert await ranks.environment() == "none"


async def test_advice_while_ranks_run_is_in_their_file_and_in_the_report(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    ranks = await running(coordinator, agent)
    coordinator.send(kind="advice", term=7, round=1, checkpoint_seconds=40)
    await coordinator.until(lambda r: r["checkpoint_seconds"] == 40)
    assert await read(ranks) == {"checkpoint_seconds": 40}
    coordinator.send(kind="advice", term=7, round=1, checkpoint_seconds=0)
    await coordinator.until(lambda r: r["checkpoint_seconds"] == 0)
    assert await read(ranks) == {"checkpoint_seconds": None}
    coordinator.join(2)
    ready = await coordinator.state("Ready", 2)
    assert ready["checkpoint_seconds"] == 0


@pytest.mark.parametrize(
    "stale",
    [
        {"term": 6, "round": 1, "checkpoint_seconds": 9},
        {"term": 7, "round": 2, "checkpoint_seconds": 9},
        {"term": 7, "round": 1, "checkpoint_seconds": "soon"},
        {"term": 7, "round": 1},
    ],
    ids=["of an older leader", "of another round", "no number", "nothing"],
)
async def test_advice_that_is_not_for_these_ranks_is_passed_over(
    coordinator: Coordinator, agent: AgentProcess, stale: dict[str, Any]
) -> None:
    ranks = await running(coordinator, agent, checkpoint_seconds=118)
    coordinator.send(kind="advice", **stale)
    coordinator.send(kind="advice", term=7, round=1, checkpoint_seconds=40)
    await coordinator.until(lambda r: r["checkpoint_seconds"] == 40)
    assert 9 not in {r["checkpoint_seconds"] for r in coordinator.reports}
    assert await read(ranks) == {"checkpoint_seconds": 40}

"""A parked interpreter that is lost: no rank notices, and the next round has another, though not for ever."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from rerail_agent.warmstart import RENEWALS
from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess, eventually
from tests.agent.warm import parked, ranks, started

SAYS_HOW = """
import json, os, sys, time
print("warm" if "torch" in sys.modules else "cold", os.environ["RERAIL_ROUND"], flush=True)
import torch
with open(os.environ["RERAIL_PROGRESS"], "a") as file: file.write(json.dumps({"step": 3}) + "\\n")
time.sleep(1000)
"""


async def says_how(agent: AgentProcess, coordinator: Coordinator, place: Path) -> None:
    """An agent whose ranks say how they were started, connected."""
    (place / "train.py").write_text(SAYS_HOW)
    started(agent, coordinator, place, sys.executable, str(place / "train.py"))
    await coordinator.hello()


async def once_more(coordinator: Coordinator, agent: AgentProcess, number: int) -> str:
    """How the rank of a further round found itself: "warm" or "cold"."""
    coordinator.join(number)
    await coordinator.state("Ready", number)
    coordinator.run(number)
    await coordinator.until(lambda r: r["round"] == number and (r["progress"] or {}).get("step") == 3)

    def word() -> str | None:
        said = agent.output()
        return next((one for one in ("warm", "cold") if f"[rank 0] {one} {number}\n" in said), None)

    # its progress is read from a file and may be known before what it printed
    return str(await eventually(word, f"the word of round {number}"))


async def test_a_parked_interpreter_that_dies_hurts_no_rank_and_the_next_round_has_another(
    coordinator: Coordinator, agent: AgentProcess, place: Path
) -> None:
    await says_how(agent, coordinator, place)
    assert await once_more(coordinator, agent, 1) == "warm"
    (rank,), first = ranks(agent), parked(agent)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await agent.says("parked interpreter is lost: it ended with signal 9")
    assert agent.below() == [rank], "nothing is imported beside ranks that run"
    assert await once_more(coordinator, agent, 2) == "warm"
    second = parked(agent)
    assert second not in (None, first) and agent.output().count("is lost") == 1
    assert agent.output().count("warm start: imported") == 2
    assert await once_more(coordinator, agent, 3) == "warm"
    assert parked(agent) == second
    coordinator.finish(0)
    assert await agent.exit_code() == 0


async def test_a_parked_interpreter_that_does_not_fork_costs_one_cold_start(
    coordinator: Coordinator, agent: AgentProcess, place: Path
) -> None:
    await says_how(agent, coordinator, place)
    assert await once_more(coordinator, agent, 1) == "warm"
    frozen = parked(agent)
    assert frozen is not None
    os.kill(frozen, signal.SIGSTOP)
    assert await once_more(coordinator, agent, 2) == "cold"
    assert agent.output().count("is lost: it does not fork") == 1
    assert await once_more(coordinator, agent, 3) == "warm"
    assert not os.path.exists(f"/proc/{frozen}")


async def test_a_parked_interpreter_that_dies_again_and_again_is_given_up(
    coordinator: Coordinator, agent: AgentProcess, place: Path
) -> None:
    await says_how(agent, coordinator, place)
    for number in range(1, RENEWALS + 2):
        assert await once_more(coordinator, agent, number) == "warm"
        pid = parked(agent)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        lost = min(number, RENEWALS)
        await eventually(lambda n=lost: agent.output().count("is lost") == n, f"the loss of number {number}")
    await agent.says("no warm start: the parked interpreter is given up: it ended with signal 9")
    for number in (RENEWALS + 2, RENEWALS + 3):
        assert await once_more(coordinator, agent, number) == "cold"
    assert parked(agent) is None and agent.output().count("given up") == 1
    assert agent.output().count("is lost") == RENEWALS

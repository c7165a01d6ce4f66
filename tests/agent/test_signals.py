"""SIGTERM to the agent: stop, save, and leave with an honest code."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess, eventually

SAVES = """
import os,signal,sys,time
def stop(*_):
    print('saved', flush=True)
    sys.exit(int(sys.argv[1]))
signal.signal(15, stop)
print('up', flush=True)
while 1: time.sleep(1)
"""
IGNORES = """
import signal,time
signal.signal(15, lambda *_: print('heard', flush=True))
print('up', flush=True)
while 1: time.sleep(1)
"""


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code, *arguments)


async def up(coordinator: Coordinator, agent: AgentProcess, nproc: int = 1) -> None:
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1, nproc=nproc)
    for rank in range(nproc):
        await agent.says(f"[rank {rank}] up")


@pytest.mark.parametrize("code", [0, 75, 76])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_program_that_saves_gives_the_agent_its_code(
    coordinator: Coordinator, agent: AgentProcess, code: int, number: signal.Signals
) -> None:
    agent.start(coordinator.address, *python(SAVES, str(code)))
    await up(coordinator, agent, nproc=2)
    agent.signal(number)
    stopped = await coordinator.state("Stopped", 1)
    assert await agent.exit_code() == code
    assert agent.output().count("saved") == 2
    message = agent.termination()
    assert message["state"] == "Stopped" and message["message"] == f"the agent received {number.name}"
    if code:
        assert stopped["exit"]["exit_code"] == code and stopped["exit"]["ordered"] is True
        assert message["exit"]["exit_code"] == code and message["exit"]["ordered"] is True
    else:
        assert stopped["exit"] is None and message["exit"] is None


async def test_the_grace_ends_with_kill(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start(coordinator.address, *python(IGNORES), RERAIL_GRACE_SECONDS="0.3")
    await up(coordinator, agent)
    agent.signal(signal.SIGTERM)
    assert await agent.exit_code() == 137
    assert "heard" in agent.output()


async def test_a_second_signal_ends_the_grace_and_ranks_hear_only_one(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start(coordinator.address, *python(IGNORES), RERAIL_GRACE_SECONDS="1000")
    await up(coordinator, agent)
    agent.signal(signal.SIGTERM)
    await agent.says("heard")
    agent.signal(signal.SIGTERM)
    assert await agent.exit_code() == 137
    assert agent.output().count("heard") == 1


async def test_term_reaches_the_rank_and_nobody_else(coordinator: Coordinator, agent: AgentProcess) -> None:
    # a DataLoader worker or a save daemon in the rank's own process group must live on while the rank saves
    script = (
        "trap 'kill -0 $child && echo child lives; exit 75' TERM; "
        "sleep 1000 & child=$!; echo up; while :; do wait $child; done"
    )
    agent.start(coordinator.address, "sh", "-c", script)
    await up(coordinator, agent)
    agent.signal(signal.SIGTERM)
    assert await agent.exit_code() == 75
    assert "child lives" in agent.output()


async def test_before_any_rank_ran_it_does_not_claim_success(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start(coordinator.address, "true")
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    agent.signal(signal.SIGTERM)
    assert await agent.exit_code() == 143


async def test_done_and_then_terminated_is_still_done(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start(coordinator.address, "true")
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1)
    await coordinator.state("Done", 1)
    agent.signal(signal.SIGTERM)
    assert await agent.exit_code() == 0
    assert agent.termination()["state"] == "Done"


async def test_no_order_revives_an_agent_that_leaves(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start(coordinator.address, *python(IGNORES), RERAIL_GRACE_SECONDS="1000")
    await up(coordinator, agent)
    agent.signal(signal.SIGTERM)
    await agent.says("heard")
    coordinator.join(2)
    coordinator.stop(1, "abort")
    assert await agent.exit_code() == 137
    assert all(report["round"] < 2 for report in coordinator.reports)


async def test_escaped_grandchildren_are_swept_and_nothing_is_left(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    code = (
        "import os,signal,time\n"
        "signal.signal(15,signal.SIG_IGN)\n"
        "if os.fork()==0:\n"
        " os.setsid()\n"
        " if os.fork():os._exit(0)\n"
        " print('escaped',os.getpid(),flush=True)\n"
        " time.sleep(1000)\n"
        "print('up',flush=True)\n"
        "time.sleep(1000)"
    )
    agent.start(coordinator.address, *python(code))
    await up(coordinator, agent)
    escaped = int((await agent.says("escaped")).split("escaped ")[1].split()[0])
    coordinator.stop(1, "abort")
    await coordinator.state("Stopped", 1)
    assert agent.below() == []
    await eventually(lambda: not os.path.exists(f"/proc/{escaped}"), "the end of the escaped process")

"""Every order on real processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess, eventually

SLEEP = ("sleep", "1000")


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


def state_of(pid: int) -> str:
    """The letter that the kernel gives for the state of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


async def running(coordinator: Coordinator, number: int = 1, **release: object) -> None:
    """Bring the agent through the barrier of a round."""
    await coordinator.hello()
    coordinator.join(number)
    await coordinator.state("Ready", number)
    coordinator.run(number, **release)


async def test_a_round_from_hello_to_finish(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start(coordinator.address, "sh", "-c", "echo rank $RANK of $WORLD_SIZE")
    hello = await coordinator.hello()
    assert hello == {
        "kind": "hello",
        "v": 1,
        "token": "secret",
        "job": "team/job",
        "job_uid": "uid-of-job",
        "pod": "job-0",
        "pod_uid": "uid-of-pod",
        "can": ["probe"],
        "report": hello["report"],
    }
    assert hello["report"] == {
        "state": "Idle",
        "round": 0,
        "term": 0,
        "release": None,
        "address": "127.0.0.1",
        "port": None,
        "exit": None,
        "ranks_alive": 0,
        "progress": None,
        "progress_age": None,
        "busy": {},
        "checkpoint_seconds": 0,
        "moved_age": None,
        "step_seconds_p99": None,
        "stacks": None,
        "probe_port": hello["report"]["probe_port"],
    }
    coordinator.join(4)
    ready = await coordinator.state("Ready", 4)
    assert 20000 <= ready["port"] < 30000 and ready["term"] == 7
    release = coordinator.run(4, node_rank=1, num_nodes=2, nproc=2)
    done = await coordinator.state("Done", 4)
    assert done["exit"] is None and done["ranks_alive"] == 0 and done["release"] == release
    assert sorted(line for line in agent.output().splitlines() if line.startswith("[rank")) == [
        "[rank 2] rank 2 of 4",
        "[rank 3] rank 3 of 4",
    ]
    coordinator.finish(0)
    assert await agent.exit_code() == 0
    assert agent.termination() == {"rerail": 1, "round": 4, "state": "Done", "exit": None, "message": ""}


async def test_a_killed_rank_is_reported_and_the_others_run_on(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start(coordinator.address, *SLEEP)
    await running(coordinator, nproc=2)
    await coordinator.until(lambda r: r["ranks_alive"] == 2)
    os.kill(agent.rank_pids()[1], signal.SIGKILL)
    failed = await coordinator.state("Failed", 1)
    assert failed["ranks_alive"] == 1
    evidence = failed["exit"]
    assert evidence.pop("age") < 5
    assert evidence == {
        "rank": 1,
        "local_rank": 1,
        "exit_code": None,
        "signal": 9,
        "ordered": False,
        "exception": None,
        "last_line": "",
        "lines": [],
        "contract": False,
        "codes": {"1": -9},
        "same_on_all": False,
    }
    assert agent.termination()["exit"]["signal"] == 9
    coordinator.finish(1, "the job has failed")
    assert await agent.exit_code() == 1
    assert agent.termination()["message"] == "the job has failed"


async def test_a_join_aborts_the_round_before_and_starts_anew(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    # ignores TERM, and has a grandchild in a session of its own that ignores it too
    code = (
        "import os,signal,time;signal.signal(15,signal.SIG_IGN);"
        "open(os.environ['TMPDIR']+'/left','w').close();"
        "print('up',os.environ['RERAIL_ROUND'],flush=True)\n"
        "if os.fork()==0:\n os.setsid()\n if os.fork():os._exit(0)\n"
        "time.sleep(1000)"
    )
    agent.start(coordinator.address, *python(code))
    await running(coordinator, nproc=2)
    await agent.says("[rank 1] up 1")
    first = await coordinator.until(lambda r: r["ranks_alive"] == 2)
    old = set(await eventually(lambda: len(pids := agent.below()) >= 4 and pids, "grandchildren"))
    coordinator.join(2)
    ready = await coordinator.state("Ready", 2)
    assert agent.termination() == {}
    assert not old & set(agent.below())
    assert ready["exit"] is None and ready["release"] is None and ready["port"] != first["port"]
    assert not list(agent.folder.glob("rerail-*/round-1"))
    coordinator.run(2)
    await agent.says("[rank 0] up 2")
    coordinator.join(2)
    coordinator.join(1)
    coordinator.finish(0)
    assert await agent.exit_code() == 0


async def test_stop_save_gives_the_ranks_their_grace(coordinator: Coordinator, agent: AgentProcess) -> None:
    code = (
        "import os,signal,sys,time;r=os.environ['RANK']\n"
        "def stop(*_):\n print('saved',r,flush=True);sys.exit(75)\n"
        "signal.signal(15,stop);print('up',r,flush=True)\n"
        "while 1:time.sleep(1)"
    )
    agent.start(coordinator.address, *python(code))
    await running(coordinator, nproc=2)
    await agent.says("up 0")
    await agent.says("up 1")
    coordinator.stop(1, "save")
    coordinator.stop(1, "save")
    stopped = await coordinator.state("Stopped", 1)
    assert stopped["exit"]["exit_code"] == 75 and stopped["exit"]["ordered"] is True
    assert stopped["exit"]["codes"] == {"0": 75, "1": 75} and stopped["ranks_alive"] == 0
    assert agent.output().count("saved") == 2
    coordinator.finish(0)
    assert await agent.exit_code() == 0


@pytest.mark.parametrize("again", [False, True], ids=["the grace ends", "the order becomes abort"])
async def test_a_rank_that_ignores_term_is_killed(
    coordinator: Coordinator, agent: AgentProcess, again: bool
) -> None:
    code = "import signal,time;signal.signal(15,signal.SIG_IGN);print('up',flush=True);time.sleep(1000)"
    agent.start(coordinator.address, *python(code))
    await running(coordinator)
    await agent.says("up")
    coordinator.stop(1, "save", grace=1000 if again else 0.3)
    if again:
        await coordinator.state("Stopping", 1)
        coordinator.stop(1, "abort")
    stopped = await coordinator.state("Stopped", 1)
    assert stopped["exit"]["signal"] == 9 and stopped["exit"]["ordered"] is True
    assert agent.below() == []


async def test_a_death_before_the_order_is_no_ordered_death(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start(coordinator.address, *SLEEP)
    await running(coordinator)
    await coordinator.state("Running", 1)
    rank = agent.rank_pids()[0]
    agent.signal(signal.SIGSTOP)
    os.kill(rank, signal.SIGSEGV)
    await eventually(lambda: state_of(rank) == "Z", "the end of the rank")
    coordinator.stop(1, "save")
    agent.signal(signal.SIGCONT)
    stopped = await coordinator.state("Stopped", 1)
    assert stopped["exit"]["signal"] == 11 and stopped["exit"]["ordered"] is False


async def test_of_two_ranks_that_died_at_once_the_killed_one_is_the_cause(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    code = "import signal,sys,time;signal.signal(15,lambda *_:sys.exit(1));print('up',flush=True)\nwhile 1:time.sleep(1)"
    agent.start(coordinator.address, *python(code))
    await running(coordinator, nproc=2)
    await agent.says("[rank 0] up")
    await agent.says("[rank 1] up")
    first, second = agent.rank_pids()
    agent.signal(signal.SIGSTOP)
    os.kill(first, signal.SIGTERM)
    os.kill(second, signal.SIGKILL)
    for pid in (first, second):
        await eventually(lambda pid=pid: state_of(pid) == "Z", "the end of a rank")
    agent.signal(signal.SIGCONT)
    failed = await coordinator.until(lambda r: r["state"] == "Failed" and r["ranks_alive"] == 0)
    assert failed["exit"]["rank"] == 1 and failed["exit"]["codes"] == {"0": 1, "1": -9}


async def test_a_large_left_over_is_gone_before_the_next_barrier(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    code = (
        "import os,time;d=os.environ['TMPDIR']\n"
        "for i in range(4000): os.close(os.open(f'{d}/{i}',os.O_CREAT))\n"
        "print('full',flush=True);time.sleep(1000)"
    )
    agent.start(coordinator.address, *python(code))
    await running(coordinator)
    await agent.says("full")
    coordinator.join(2)
    await coordinator.state("Ready", 2)
    assert list(agent.folder.glob("rerail-*/*")) == []


async def test_stop_without_ranks_is_stopped(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start(coordinator.address, *SLEEP)
    await coordinator.hello()
    coordinator.join(3)
    await coordinator.state("Ready", 3)
    coordinator.stop(3, "save")
    assert (await coordinator.state("Stopped", 3))["port"] is None
    coordinator.run(3)
    coordinator.stop(5, "abort")
    assert (await coordinator.state("Stopped", 5))["exit"] is None
    coordinator.join(6)
    await coordinator.state("Ready", 6)


async def test_an_older_leader_and_older_rounds_are_ignored(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start(coordinator.address, *SLEEP)
    await running(coordinator, number=5)
    await coordinator.state("Running", 5)
    coordinator.send(kind="order", term=6, do="stop", round=5, mode="abort", grace=0)
    await agent.says("ignored an order of term 6")
    coordinator.stop(4, "abort")
    coordinator.join(4)
    coordinator.order("dance", round=5)
    await agent.says("does not know")
    coordinator.run(5, nproc=2)
    await agent.says("different release of round 5")
    assert coordinator.report["state"] == "Running"
    assert len(agent.rank_pids()) == 1
    coordinator.stop(5, "abort")
    await coordinator.state("Stopped", 5)


async def test_a_run_is_only_valid_at_its_barrier(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start(coordinator.address, *SLEEP)
    await coordinator.hello()
    coordinator.run(2)
    coordinator.join(2)
    await coordinator.state("Ready", 2)
    coordinator.run(3)
    coordinator.order("run", round=2, release={"round": 2})
    await agent.says("ignored an order")
    assert coordinator.report["state"] == "Ready"
    coordinator.run(2)
    await coordinator.state("Running", 2)


async def test_the_rounds_offer_different_ports(coordinator: Coordinator, agent: AgentProcess) -> None:
    agent.start(coordinator.address, *SLEEP)
    await coordinator.hello()
    ports = []
    for number in range(1, 12):
        coordinator.join(number)
        ports.append((await coordinator.state("Ready", number))["port"])
    assert len(set(ports)) == len(ports)


async def test_a_command_that_does_not_exist_fails_like_a_rank(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start(coordinator.address, "no-such-program")
    await running(coordinator, nproc=2)
    failed = await coordinator.state("Failed", 1)
    assert failed["exit"]["exit_code"] == 127 and failed["exit"]["same_on_all"] is True
    assert failed["exit"]["last_line"] == "cannot start 'no-such-program': No such file or directory"

"""What only a container or a stubborn kernel shows: PID 1, shared memory, processes that survive KILL."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerail_agent.console import Sink
from rerail_agent.ranks import Ranks
from rerail_agent.takedown import Outcome, Takedown
from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess, eventually

PTRACE_SEIZE, PTRACE_DETACH, PTRACE_O_TRACEEXIT = 0x4206, 17, 0x40
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc")


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, timeout=30).returncode == 0


class Grip:
    """Holds a process below this one against KILL: traced, it stops in the middle of its end until it is let go.

    What a disk or a driver does to a process, without either; it needs no root and no version of control groups.
    """

    def __init__(self) -> None:
        self._ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        self._ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._held: int | None = None

    def take(self, pid: int) -> None:
        if self._ptrace(PTRACE_SEIZE, pid, None, PTRACE_O_TRACEEXIT) != 0:
            raise OSError(ctypes.get_errno(), f"cannot trace {pid}")
        self._held = pid

    def let_go(self) -> None:
        """Its end goes on; a process that has not begun to end is killed first."""
        if self._held is not None:
            os.kill(self._held, signal.SIGKILL)
            assert os.waitpid(self._held, 0)[0] == self._held
            self._ptrace(PTRACE_DETACH, self._held, None, None)
            self._held = None


@pytest.fixture
def grip() -> Iterator[Grip]:
    grip = Grip()
    yield grip
    grip.let_go()


@pytest.mark.skipif(not can_unshare(), reason="needs the right to make namespaces (root)")
async def test_pid_1_reaps_orphans_and_empties_shared_memory(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    inner = 'mount -t tmpfs none /dev/shm && echo other > /dev/shm/foreign && chown 12345 /dev/shm/foreign && exec "$@"'
    agent.python = [*NAMESPACE, "sh", "-c", inner, "sh", *agent.python]
    # orphans that end at once would stay zombies below a PID 1 that does not reap
    script = (
        "mkdir -p /dev/shm/ours; echo x > /dev/shm/ours/segment; "
        "for i in 1 2 3; do (sh -c 'sleep 0 & exit' &); done; echo up; exec sleep 1000"
    )
    agent.start(coordinator.address, "sh", "-c", script)
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1)
    await agent.says("[rank 0] up")
    first = agent.rank_pids()[0]
    shm = Path(f"/proc/{first}/root/dev/shm")
    assert Path(f"/proc/{first}/status").read_text().split("NSpid:")[1].split()[1] == "1"
    await eventually(lambda: len(agent.below()) == 2, "the reaping of every orphan")
    assert (shm / "ours/segment").exists()
    coordinator.join(2)
    await coordinator.state("Ready", 2)
    assert not (shm / "ours").exists() and (shm / "foreign").exists()
    coordinator.run(2)
    await coordinator.state("Running", 2)
    os.kill(first, signal.SIGTERM)
    assert await agent.exit_code() == 143


async def test_processes_that_survive_kill_make_the_agent_stuck(
    coordinator: Coordinator, agent: AgentProcess, grip: Grip
) -> None:
    agent.with_timing(cannot_stop=0.5).start(coordinator.address, "sleep", "1000")
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1)
    await coordinator.state("Running", 1)
    (rank,) = agent.rank_pids()
    grip.take(rank)
    coordinator.join(2)
    stuck = await coordinator.state("Stuck", 1)
    assert stuck["ranks_alive"] == 1
    await agent.says("cannot stop and has to be replaced")
    stat = Path(f"/proc/{rank}/stat")
    await eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "t", "the stop in its end")
    grip.let_go()
    await coordinator.state("Ready", 2)


async def test_a_takedown_is_stuck_only_after_its_time() -> None:
    left = [2**22 + 1]
    ranks = Ranks(asyncio.get_running_loop(), Sink(1))
    takedown = Takedown(ranks, cannot_stop=15.0, survivors=lambda: left)
    takedown.abort(100.0)
    assert takedown.step(114.9) is Outcome.UNDER_WAY
    assert takedown.step(115.1) is Outcome.STUCK
    left.clear()
    assert takedown.step(115.2) is Outcome.CLEAN

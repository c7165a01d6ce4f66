"""What only a container or a stubborn kernel shows: PID 1, shared memory, processes that survive KILL."""

from __future__ import annotations

import asyncio
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

FREEZER = Path("/sys/fs/cgroup/freezer")
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc")


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, timeout=30).returncode == 0


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A frozen cgroup does not even deliver KILL (cgroup v1)."""
    group = FREEZER / f"rerail-test-{os.getpid()}"
    group.mkdir()
    yield group
    (group / "freezer.state").write_text("THAWED")
    for _ in range(500):
        try:
            group.rmdir()
            return
        except OSError:
            for pid in (group / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
    group.rmdir()


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


@pytest.mark.skipif(
    not os.access(FREEZER, os.W_OK),
    reason="needs root and the freezer of cgroup v1 to hold a process against KILL",
)
async def test_processes_that_survive_kill_make_the_agent_stuck(
    coordinator: Coordinator, agent: AgentProcess, freezer: Path
) -> None:
    agent.with_timing(cannot_stop=0.5).start(coordinator.address, "sleep", "1000")
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1)
    await coordinator.state("Running", 1)
    (freezer / "cgroup.procs").write_text(str(agent.rank_pids()[0]))
    (freezer / "freezer.state").write_text("FROZEN")
    coordinator.join(2)
    stuck = await coordinator.state("Stuck", 1)
    assert stuck["ranks_alive"] == 1
    await agent.says("cannot stop and has to be replaced")
    (freezer / "freezer.state").write_text("THAWED")
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

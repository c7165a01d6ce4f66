"""Processes by their mark: found wherever they fled to, ended without a remainder, and after a killed runner too."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from rerail_operator.shell.local import processes, state

pytestmark = pytest.mark.local

MARK = "RERAIL_TEST_MARK"
# A child that starts a grandchild in a session of its own, which outlives it.
ESCAPE = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); time.sleep(600)"


@pytest.fixture
def mark() -> Iterator[str]:
    value = uuid.uuid4().hex
    yield value
    processes.send(processes.marked(MARK, value), signal.SIGKILL)


def start(mark: str, code: str, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, MARK: mark, **env})


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)


async def test_a_tree_is_found_by_its_mark_and_ended_whole(mark: str) -> None:
    child = start(mark, ESCAPE)
    until(lambda: len(processes.marked(MARK, mark)) == 2)
    assert await processes.kill_all(partial(processes.marked, MARK, mark)) == []
    assert child.wait() == -signal.SIGKILL
    assert processes.marked(MARK, mark) == []


def test_the_rank_is_the_topmost_process_that_carries_its_number(mark: str) -> None:
    child = start(mark, ESCAPE, RANK="3")
    until(lambda: len(processes.marked(MARK, mark)) == 2)
    found = processes.marked(MARK, mark)
    assert processes.rank_process(found, 3) == child.pid
    assert processes.rank_process(found, 2) is None
    processes.send(found, signal.SIGKILL)
    child.wait()


def test_nothing_is_left_when_the_runner_itself_is_killed(mark: str) -> None:
    guard = subprocess.Popen(
        [sys.executable, "-m", "rerail_operator.shell.local.guard", MARK, mark], stdin=subprocess.PIPE
    )
    child = start(mark, ESCAPE)
    until(lambda: len(processes.marked(MARK, mark)) == 2)
    assert guard.stdin is not None
    guard.stdin.close()  # what the end of the runner does to the pipe
    assert guard.wait(30) == 0
    assert child.wait(30) == -signal.SIGKILL
    assert processes.marked(MARK, mark) == []


def test_a_process_that_is_gone_has_no_parent_and_no_environment() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert processes.parent(child.pid) is None
    assert processes.environment(child.pid) == {}


def test_two_runs_cannot_share_a_workdir(tmp_path: Path) -> None:
    with state.held(tmp_path):
        with pytest.raises(state.Busy, match="another run uses"), state.held(tmp_path):
            pass
    with state.held(tmp_path):
        pass  # free again


async def test_killing_what_does_not_die_ends_at_its_deadline() -> None:
    started = asyncio.get_running_loop().time()
    immortal: list[int] = []  # nobody is signalled, and yet it is always there

    class Stubborn(list[int]):
        def __bool__(self) -> bool:
            return True

    left = await processes.kill_all(lambda: Stubborn(immortal), seconds=0.2)
    assert isinstance(left, Stubborn)
    assert asyncio.get_running_loop().time() - started < 10

"""What people and the operator learn about a failure."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from rerail_agent.evidence import TERMINATION_BYTES, write_termination_message
from rerail_agent.output import Lines, Tail, bounded
from rerail_agent.settings import KUBELET_TERMINATION_LOG
from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


async def failed(coordinator: Coordinator, nproc: int = 1, per_node: bool = False) -> dict[str, Any]:
    """Run one round to its failure on all ranks; the evidence."""
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1, nproc=nproc)
    report = await coordinator.until(lambda r: r["state"] == "Failed" and r["ranks_alive"] == 0, "failure")
    return dict(report["exit"])


async def test_an_exception_is_named_with_its_line(coordinator: Coordinator, agent: AgentProcess) -> None:
    code = "print('step 1')\nfor i in range(40): print('noise',i)\nraise ValueError('lr is -1')"
    agent.start(coordinator.address, *python(code))
    evidence = await failed(coordinator, nproc=2)
    assert evidence["exception"] == "ValueError" and evidence["last_line"] == "ValueError: lr is -1"
    assert evidence["exit_code"] == 1 and evidence["signal"] is None
    assert evidence["codes"] == {"0": 1, "1": 1} and evidence["same_on_all"] is True
    assert len(evidence["lines"]) == 20
    assert evidence["lines"][-1] == "ValueError: lr is -1" and "noise 39" in evidence["lines"]
    assert len("\n".join(evidence["lines"]).encode()) <= 2048
    assert agent.termination()["exit"]["exception"] == "ValueError"


async def test_ranks_that_end_differently_are_not_the_same(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    agent.start(coordinator.address, "sh", "-c", "echo rank $RANK; exit 3")
    evidence = await failed(coordinator, nproc=2)
    assert evidence["exit_code"] == 3 and evidence["same_on_all"] is False
    assert evidence["exception"] is None


async def test_the_last_words_of_a_rank_come_with_its_end(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    # no line end, and a grandchild that keeps the pipe open
    agent.start(coordinator.address, "sh", "-c", "sleep 1000 & printf 'out of luck'; exit 9")
    evidence = await failed(coordinator)
    assert evidence["last_line"] == "out of luck" and evidence["exit_code"] == 9
    assert "[rank 0] out of luck\n" in agent.output()


async def test_a_declared_contract_is_reported(coordinator: Coordinator, agent: AgentProcess) -> None:
    script = 'echo \'{"step": 3, "contract": 1}\' >> $RERAIL_PROGRESS; exit 85'
    agent.start(coordinator.address, "sh", "-c", script)
    evidence = await failed(coordinator)
    assert evidence["contract"] is True and evidence["exit_code"] == 85
    assert coordinator.report["progress"] == {"step": 3, "contract": 1}


async def test_monstrous_output_neither_stops_the_rank_nor_the_agent(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    code = "import os\nfor _ in range(300): os.write(1, b'x'*100000)\nos.write(2, b'\\n\\xff\\x00\\x1b[31m red\\n')\nraise SystemExit(1)"
    agent.start(coordinator.address, *python(code))
    evidence = await failed(coordinator)
    assert evidence["lines"][-1].endswith(" red")
    assert max(len(line) for line in agent.output().splitlines()) < 9000


async def test_a_reader_that_never_reads_stops_nobody(coordinator: Coordinator, agent: AgentProcess) -> None:
    code = "import os\nfor i in range(40): os.write(1, b'y'*99999+b'\\n')\nraise SystemExit(7)"
    reading, writing = os.pipe()
    try:
        # the agent's own output goes into a pipe that is full after 64 KiB
        agent.python = ["sh", "-c", f'exec "$@" >/proc/{os.getpid()}/fd/{writing} 2>&1', "sh", *agent.python]
        agent.start(coordinator.address, *python(code))
        assert (await failed(coordinator))["exit_code"] == 7
        coordinator.finish(7)
        assert await agent.exit_code() == 7
    finally:
        os.close(reading)
        os.close(writing)


# ---------------------------------------------------------------------- the pieces

TRACEBACK = [b"Traceback (most recent call last):", b'  File "a.py", line 1, in <module>', b"    f()"]
TAILS: dict[str, tuple[list[bytes], tuple[str, str] | None]] = {
    "a plain exception": ([*TRACEBACK, b"KeyError: 'x'"], ("KeyError", "KeyError: 'x'")),
    "a dotted type loses its module": (
        [*TRACEBACK, b"torch.OutOfMemoryError: CUDA out of memory."],
        ("OutOfMemoryError", "torch.OutOfMemoryError: CUDA out of memory."),
    ),
    "torch's rank tags": (
        [b"[rank3]: " + line for line in [*TRACEBACK, b"RuntimeError: x"]],
        ("RuntimeError", "RuntimeError: x"),
    ),
    "an exception without a message": ([*TRACEBACK, b"KeyboardInterrupt"], ("KeyboardInterrupt",) * 2),
    "the exception raised while handling another": (
        [*TRACEBACK, b"KeyError: 1", b"", b"During handling of it:", *TRACEBACK, b"OSError: 2"],
        ("OSError", "OSError: 2"),
    ),
    "noise after the traceback": (
        [*TRACEBACK, b"ValueError: v", *[b"[W1124 ProcessGroupNCCL.cpp:1] warning"] * 50],
        ("ValueError", "ValueError: v"),
    ),
    "a traceback long past": ([*TRACEBACK, b"ValueError: v", *[b"step"] * 300], None),
    "a syntax error has no header": (
        [b'  File "a.py", line 1', b"    def", b"SyntaxError: invalid syntax"],
        ("SyntaxError", "SyntaxError: invalid syntax"),
    ),
    "torchrun's own exception is no cause": (
        [*TRACEBACK, b"torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "],
        None,
    ),
    "a log line about errors": ([b"saw 3 errors: none fatal", b"Error rate: 0.1"], None),
}


@pytest.mark.parametrize("name", TAILS)
def test_the_exception_is_read_from_the_last_lines(name: str) -> None:
    printed, wanted = TAILS[name]
    tail = Tail()
    for line in printed:
        tail.add(line)
    assert tail.exception() == wanted


def test_lines_are_cut_whole_bounded_and_flushed() -> None:
    lines = Lines()
    assert lines.feed(b"one\ntw", 0.0) == [b"one"]
    assert lines.flush(0.5) == []
    assert lines.feed(b"o\n\nthree", 0.6) == [b"two", b""]
    assert lines.flush(2.0) == [b"three"]
    assert lines.feed(b"\nfour\n", 2.1) == [b"four"]
    assert lines.feed(b"z" * 20000, 3.0) == [b"z" * 8192, b"z" * 8192]
    assert lines.feed(b"\n", 3.0) == [b"z" * (20000 - 2 * 8192)]


def test_a_progress_bar_leaves_its_last_state() -> None:
    tail = Tail()
    tail.add(b"\r  1%|\r 50%|\x1b[32m#####\x1b[0m")
    assert tail.last_line() == " 50%|#####"


def test_evidence_is_bounded_in_lines_and_bytes() -> None:
    assert bounded([str(i) for i in range(30)]) == [str(i) for i in range(10, 30)]
    assert len("\n".join(bounded(["é" * 1000] * 20)).encode()) <= 2048


def test_the_termination_message_keeps_the_file_and_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "termination"
    path.write_bytes(b"x" * 9000)
    inode = path.stat().st_ino
    evidence = {
        "lines": ["\\" * 500] * 20,
        "last_line": "\\" * 500,
        "codes": {str(i): -11 for i in range(64)},
        "exit_code": 1,
    }
    write_termination_message(str(path), {"rerail": 1, "exit": evidence, "message": "m" * 9000})
    raw = path.read_bytes()
    assert len(raw) <= TERMINATION_BYTES and path.stat().st_ino == inode
    assert json.loads(raw)["exit"]["exit_code"] == 1
    write_termination_message(str(tmp_path / "no/folder"), {"rerail": 1, "exit": None})
    write_termination_message(str(tmp_path / "new"), {"rerail": 1, "exit": None})
    assert json.loads((tmp_path / "new").read_bytes()) == {"rerail": 1, "exit": None, "message": ""}


@pytest.mark.skipif(Path(KUBELET_TERMINATION_LOG).exists(), reason="runs in a container of Kubernetes")
def test_nothing_is_made_in_dev() -> None:
    write_termination_message(KUBELET_TERMINATION_LOG, {"rerail": 1, "exit": None})
    assert not Path(KUBELET_TERMINATION_LOG).exists()

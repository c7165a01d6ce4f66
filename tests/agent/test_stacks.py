"""Where ranks stand that make no step: what the agent finds out, and that it stops nothing."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from rerail_agent.progress import ProgressFile
from rerail_agent.stacks import innermost
from tests.agent.coordinator import Coordinator, Report
from tests.agent.process import AgentProcess, eventually

RANK = """
import faulthandler, json, os, signal, sys, time
def waits_for_its_data():
    while True:
        time.sleep(0.05)
def waits_for_the_others():
    while True:
        time.sleep(0.05)
rank = int(os.environ["RANK"])
if "{deaf}" != "deaf":
    faulthandler.register(signal.SIGUSR1, all_threads=True)
print("up", rank, flush=True)
with open(os.environ["RERAIL_PROGRESS"], "a") as file:
    file.write(json.dumps({{"step": 40, "phase": "train"}}) + "\\n")
waits_for_its_data() if rank == 1 else waits_for_the_others()
"""


async def asked(
    coordinator: Coordinator, agent: AgentProcess, *command: str, nproc: int = 3, stop: int | None = None
) -> Report:
    """One round up to step 40, where it is asked; `stop`: a rank that is stopped before. The answer."""
    agent.start(coordinator.address, *command)
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1, nproc=nproc)
    await coordinator.until(lambda r: (r["progress"] or {}).get("step") == 40, "step 40")
    for rank in range(nproc):
        await agent.says(f"up {rank}")
    if stop is not None:
        pids = agent.rank_pids()
        os.kill(pids[stop], signal.SIGSTOP)
    coordinator.send(kind="stacks", term=7, round=1, step=40)
    report = await coordinator.until(lambda r: r["stacks"], "stacks")
    assert report["stacks"]["step"] == 40 and report["state"] == "Running"
    assert report["ranks_alive"] == nproc, "nothing is stopped"
    return report


def python(deaf: str = "") -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", RANK.format(deaf=deaf))


async def test_ranks_that_stand_alike_share_a_place_and_the_odd_one_comes_first(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    first, second = (await asked(coordinator, agent, *python()))["stacks"]["places"]
    assert first["ranks"] == [1] and "waits_for_its_data" in first["where"]
    assert second["ranks"] == [0, 2] and "waits_for_the_others" in second["where"]
    assert (first["state"], first["told"]) == ("", False)
    assert "waits_for_its_data" in agent.output(), "the stacks are in the log"


async def test_a_stopped_rank_is_named_by_its_state_and_nobody_waits_for_its_word(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    places = (await asked(coordinator, agent, *python(), stop=1))["stacks"]["places"]
    assert [(place["ranks"], place["state"]) for place in places] == [([1], "T"), ([0, 2], "")]


async def test_a_program_that_never_heard_of_the_signal_survives_the_question(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    (place,) = (await asked(coordinator, agent, *python("deaf")))["stacks"]["places"]
    assert place["ranks"] == [0, 1, 2] and place["waits"] == ""
    assert "File" not in agent.output()


async def test_behind_a_shell_the_rank_itself_is_asked(coordinator: Coordinator, agent: AgentProcess) -> None:
    script = f'{sys.executable} -S -c "$0" ; exit $?'
    report = await asked(coordinator, agent, "sh", "-c", script, RANK.format(deaf=""))
    assert any("waits_for_its_data" in place["where"] for place in report["stacks"]["places"])


async def test_the_answer_is_taken_back_when_a_step_is_made(
    coordinator: Coordinator, agent: AgentProcess, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    code = RANK.format(deaf="").replace(
        "while True:\n        time.sleep(0.05)\ndef waits_for_the_others",
        f"while not os.path.exists({str(go)!r}):\n        time.sleep(0.02)\n"
        "    open(os.environ['RERAIL_PROGRESS'], 'a').write('{\"step\": 41}\\n')\n    time.sleep(600)\n"
        "def waits_for_the_others",
    )
    await asked(coordinator, agent, sys.executable, "-S", "-c", code, nproc=2)
    go.touch()
    report = await coordinator.until(lambda r: r["progress"]["step"] == 41 and not r["stacks"], "step 41")
    assert report["ranks_alive"] == 2


async def test_a_question_about_another_round_or_of_an_older_leader_is_not_answered(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    await asked(coordinator, agent, *python(), nproc=1)
    for term, number in ((6, 1), (7, 2)):
        coordinator.send(kind="stacks", term=term, round=number, step=99)
    coordinator.send(kind="stacks", term=7, round=1, step=41)
    report = await coordinator.until(lambda r: (r["stacks"] or {}).get("step") != 40, "another answer")
    assert report["stacks"] is None or report["stacks"]["step"] == 41


async def test_killing_goes_on_while_the_ranks_are_looked_at(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    await asked(coordinator, agent, *python(), stop=1)
    coordinator.join(2)
    report = await coordinator.state("Ready", 2)
    assert report["stacks"] is None and report["moved_age"] is None
    await eventually(lambda: not agent.below(), "every rank gone")


# ---------------------------------------------------------------------- stacks as they are printed

DUMP = b"""Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait
Current thread 0x00007f02 [python] (most recent call first):
  File "/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 2810 in all_reduce
  File "/app/train/loop.py", line 83 in update
  File "<frozen runpy>", line 88 in _run_code
"""


@pytest.mark.parametrize(
    ("printed", "place"),
    [
        (DUMP, b"train/loop.py:83 update > distributed/distributed_c10d.py:2810 all_reduce"),
        (DUMP.replace(b"Current thread", b"Thread"), b"train/loop.py:83 update > distributed/distributed_c10d.py:2810 all_reduce"),
        (b"step 3\nFatal\n", b""),
        (b"Current thread 0x00007f02 (most recent call first):\n  <no Python frame>\n", b""),
    ],
)  # fmt: skip
def test_the_place_is_the_innermost_own_line_and_the_innermost_of_all(printed: bytes, place: bytes) -> None:
    assert innermost(printed.splitlines()) == place


# ---------------------------------------------------------------------- how long steps take


def told(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_steps_are_timed_without_the_phases_in_between(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    progress, now = ProgressFile(path), 100.0
    seconds = [(1, 2.0), (2, 2.0), (4, 6.0), (5, 2.0)]
    told(path, '{"step": 0, "phase": "train"}')
    progress.poll(now)
    for step, took in seconds:
        assert progress.step_seconds_p99 is None
        now += took
        told(path, f'{{"step": {step}, "phase": "train"}}')
        progress.poll(now)
    assert progress.step_seconds_p99 == 3.0, "two steps in six seconds are three each"
    for phase, later in (("eval", 1.0), ("train", 500.0)):
        now += later
        told(path, f'{{"step": 5, "phase": "{phase}"}}')
        progress.poll(now)
    assert progress.step_seconds_p99 == 3.0 and progress.moved_at == now
    now += 4.0
    told(path, '{"step": 6, "phase": "train"}')
    progress.poll(now)
    assert progress.step_seconds_p99 == 4.0


def test_the_same_step_told_again_is_no_move(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    progress = ProgressFile(path)
    told(path, '{"step": 3}')
    progress.poll(10.0)
    told(path, '{"step": 3, "loss": 2.0}')
    progress.poll(70.0)
    assert (progress.moved_at, progress.read_at) == (10.0, 70.0)

"""A rank that makes no step: its stacks, who stands where, and exit code 84; in time, whatever the main thread does."""

import os
import pickle
import re
import signal
import time
from pathlib import Path

import pytest

from rerail_trainer.hang import Hang, HangReport, spans, summary, under_way

from .gang import Yard
from .inside import STUCK_SECONDS, STUCK_STEP

LONG = ("--train.steps=1000000", "--checkpoint.every_steps=1000000")


def test_when_one_rank_is_frozen_the_other_names_its_collective_and_leaves_with_84(yard: Yard) -> None:
    gang = yard.start(*LONG, ranks=2, inside="stand_still_on_rank_1")
    gang.until_frozen(1)
    assert gang.end_of(0) == 84
    output = gang.output()
    told = re.search(r"nothing finished for (\d+) s in phase train, after step (\d+) \(exit 84\)", output)
    assert told, output
    # By the rank's own clock: neither before the limit nor by the minute that a deaf interpreter is granted.
    assert STUCK_SECONDS <= int(told[1]) < 60 and int(told[2]) == STUCK_STEP - 1
    assert re.search(r"rank 0: waits in gloo:all_reduce number \d+ of group", output)
    assert 'loop.py", line' in output
    assert "rank 1: no report: stopped, gone, or still at work" in output
    folder = yard.checkpoints / ".hang" / "local"
    report = (folder / "rank-00000.txt").read_text()
    assert "waits in: gloo:all_reduce number" in report
    assert "Current thread" in report or "Thread 0x" in report
    recorded = pickle.loads((folder / "nccl_trace_rank_0").read_bytes())
    assert any(entry["profiling_name"] == "gloo:all_reduce" for entry in recorded["entries"])


def test_a_rank_that_waits_for_its_data_is_told_from_those_that_wait_for_it_and_nothing_is_lost(
    yard: Yard,
) -> None:
    words = (*LONG, "--checkpoint.every_steps=2", "--optim.horizon_steps=1000000")
    gang = yard.start(*words, ranks=2, inside="read_data_that_never_come")
    assert gang.wait() == [84, 84]
    places = gang.output().partition("where the ranks stand:\n")[2].splitlines()[:2]
    by_rank = {line.split(":")[0].strip(): line for line in places}
    assert "data/feed.py" in by_rank["rank 1"]
    assert "data/feed.py" not in by_rank["rank 0"]
    assert 'inside.py", line' in gang.output(), "the thread that reads is in the stacks"
    committed = max(yard.committed())
    again = yard.run(*words, f"--train.steps={committed + 2}", ranks=2)
    assert f"resumed from step {committed}" in again.output()


def test_before_the_first_step_the_limit_is_another(yard: Yard) -> None:
    gang = yard.start(*LONG, "--watchdog.init_seconds=2", "--parallel.init_seconds=60", ranks=2, missing=(1,))
    assert gang.wait() == [84]
    assert "in phase init, before the first step" in gang.output()


def test_native_code_that_holds_the_interpreter_cannot_stop_the_stacks(yard: Yard) -> None:
    gang = yard.start(*LONG, inside="hold_the_interpreter")
    # No thread of Python can run then, so the code is the C library's.
    assert gang.wait() == [1]
    assert "inside.py" in gang.output()
    assert "loop.py" in gang.output()


def test_zero_turns_it_off_and_a_long_pause_does_no_harm(yard: Yard) -> None:
    off = [f"--watchdog.{phase}_seconds=0" for phase in ("init", "step", "save", "eval")]
    gang = yard.start(*LONG, *off, ranks=2)
    gang.until_step(3)
    os.kill(gang.pids[1], signal.SIGSTOP)
    gang.until_frozen(1)
    # As long as the limit would be: there is no event to wait for where nothing may happen.
    time.sleep(3)
    os.kill(gang.pids[1], signal.SIGCONT)
    gang.until_step(max(gang.losses()) + 5)
    gang.signal(signal.SIGTERM)
    assert gang.wait() == [75, 75]


def test_stacks_on_demand_change_nothing(yard: Yard) -> None:
    gang = yard.start(*LONG)
    gang.until_step(3)
    os.kill(gang.pids[0], signal.SIGUSR1)
    gang.until_output("loop.py")
    gang.until_step(max(gang.losses()) + 3)
    gang.signal(signal.SIGTERM)
    assert gang.wait() == [75]


def test_a_rank_that_waits_says_for_what_when_it_is_asked(yard: Yard) -> None:
    gang = yard.start(*LONG, "--watchdog.step_seconds=0", ranks=2)
    gang.until_step(3)
    os.kill(gang.pids[1], signal.SIGSTOP)
    gang.until_frozen(1)

    def says_what_it_waits_for() -> bool:
        os.kill(gang.pids[0], signal.SIGUSR2)  # asked again: it may not have come to its collective before
        return "waits in gloo:" in gang.output()

    gang.until(says_what_it_waits_for)
    assert re.search(r"rank 0: stands in \S+\.py:\d+ \w+", gang.output())
    os.kill(gang.pids[1], signal.SIGCONT)
    gang.until_step(max(gang.losses()) + 3)
    gang.signal(signal.SIGTERM)
    assert gang.wait() == [75, 75]


PLACES = {0: "loop.py update", 1: "loop.py update", 2: "feed.py take", 3: "loop.py update"}


def test_the_rank_that_stands_apart_comes_first() -> None:
    assert summary(PLACES, 5) == [
        "rank 2: feed.py take",
        "rank 4: no report: stopped, gone, or still at work",
        "ranks 0-1, 3: loop.py update",
    ]


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), ([0, 1], "ranks 0-1"), ([0, 2, 3, 4, 9], "ranks 0, 2-4, 9")],
)
def test_ranks_are_written_as_people_write_them(ranks: list[int], text: str) -> None:
    assert spans(ranks) == text


def test_collectives_that_have_ended_are_not_waited_for() -> None:
    entry = {"profiling_name": "nccl:all_reduce", "process_group": ["0", "default_pg"], "collective_seq_id": 7,
             "input_sizes": [[4]], "input_dtypes": ["Float"], "retired": False, "state": "started"}  # fmt: skip
    ended = [{**entry, "retired": True}, {**entry, "state": "completed"}]
    assert under_way([*ended, entry]) == ["nccl:all_reduce number 7 of group 0, [[4]] Float"]


def test_a_folder_that_cannot_be_written_is_said_and_keeps_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    HangReport(0, 1, taken / "below").write(Hang("train", 4, 3.0))
    assert "no report in" in capsys.readouterr().err

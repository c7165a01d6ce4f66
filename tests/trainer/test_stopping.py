"""SIGTERM: finish the step, commit, and leave with the code that says so."""

import os
import re
import signal
from pathlib import Path

import pytest

from .gang import Yard


def pending(pid: int) -> set[int]:
    """Signals sent to a process that it has not got yet."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)$", text, re.MULTILINE)
    bits = int(found[0], 16) | int(found[1], 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


LONG = ("--train.steps=100000", "--checkpoint.every_steps=100000")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_under_way_and_leaves_with_75(yard: Yard, number: signal.Signals) -> None:
    gang = yard.start(*LONG, ranks=2)
    gang.until_step(3)
    gang.signal(number)
    assert gang.wait() == [75, 75]
    assert yard.committed() == [max(gang.losses())]
    assert gang.progress()[-1]["checkpoint_step"] == max(gang.losses())
    step = max(gang.losses())
    told = f"stopped as asked after step {step}, saved: the same command goes on from there"
    assert gang.output().count(told) == 1


def test_a_signal_to_one_rank_stops_all_at_the_same_step(yard: Yard) -> None:
    gang = yard.start(*LONG, ranks=2)
    gang.until_step(3)
    os.kill(gang.pids[1], signal.SIGTERM)
    assert gang.wait() == [75, 75]
    assert yard.committed() == [max(gang.losses())]


def test_a_second_signal_leaves_at_once_with_76_even_when_a_peer_is_frozen(yard: Yard) -> None:
    gang = yard.start(*LONG, ranks=2)
    gang.until_step(3)
    os.kill(gang.pids[1], signal.SIGSTOP)
    os.kill(gang.pids[0], signal.SIGTERM)
    # Two of a kind that are pending at once are one to the kernel.
    gang.until(lambda: signal.SIGTERM not in pending(gang.pids[0]))
    os.kill(gang.pids[0], signal.SIGTERM)
    assert gang.end_of(0) == 76
    assert "second SIGTERM" in gang.output()


def test_the_end_of_the_grace_period_leaves_with_76_before_the_kill(yard: Yard) -> None:
    gang = yard.start(*LONG, ranks=2, env={"RERAIL_GRACE_SECONDS": "2"})
    gang.until_step(3)
    os.kill(gang.pids[1], signal.SIGSTOP)
    os.kill(gang.pids[0], signal.SIGTERM)
    assert gang.end_of(0) == 76
    assert "grace period" in gang.output()


def test_a_signal_while_the_ranks_still_meet_leaves_with_75(yard: Yard) -> None:
    gang = yard.start(*LONG, ranks=2, missing=(1,))
    gang.until(lambda: gang.progress())
    os.kill(gang.pids[0], signal.SIGTERM)
    assert gang.wait() == [75]
    assert "before the first step" in gang.output()


def test_without_a_checkpoint_folder_a_signal_leaves_with_76(yard: Yard) -> None:
    gang = yard.start(*LONG, "--checkpoint.dir=")
    gang.until_step(3)
    gang.signal(signal.SIGTERM)
    assert gang.wait() == [76]
    assert "nothing will be saved" in gang.output()
    assert f"stopped as asked after step {max(gang.losses())}, not saved" in gang.output()


def test_a_save_is_due_by_the_clock_of_rank_0_on_all_ranks(yard: Yard) -> None:
    gang = yard.start(*LONG, "--checkpoint.every_seconds=1", ranks=2)
    gang.until(lambda: len(yard.committed()) == 2)
    gang.signal(signal.SIGTERM)
    assert gang.wait() == [75, 75]

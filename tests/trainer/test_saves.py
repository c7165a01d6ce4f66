"""Saves beside training: it goes on meanwhile, it learns what became of them, and a stop waits for them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .gang import PYTHONPATH, Gang, Yard, clean_environment, free_port
from .test_crash_points import BESIDE
from .test_faults import fill_up, needs_root, small_disk

__all__ = ["small_disk"]

LONG = (*BESIDE, "--train.steps=100000")
JOB = {"RERAIL_JOB": "team/a", "RERAIL_JOB_UID": "uid-a"}


def halted_writer(
    yard: Yard, *words: str, rank: int = 1, point: str = "folder-made", **wishes: object
) -> Gang:
    """Two ranks of which one has a writer that sleeps in the middle of the first save."""
    at = {"rank": rank, "point": point, "save": 1, "signal": "SIGSTOP", "victim": "writer"}
    gang = yard.start(*LONG, *words, ranks=2, at=at, **wishes)
    stat = Path(f"/proc/{gang.writer(rank)}/stat")
    gang.until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
    return gang


def test_training_goes_on_while_a_save_is_written_and_the_saves_due_meanwhile_are_left_out(
    yard: Yard, undisturbed: dict[int, float]
) -> None:
    gang = halted_writer(yard)
    newest = max(gang.losses())
    gang.until_step(newest + 20)
    assert yard.committed() == []
    assert {line.get("checkpoint_step", 0) for line in gang.progress()} == {0}
    assert len(gang.events("save-skipped")) >= 9
    os.kill(gang.writer(1), signal.SIGCONT)
    gang.until(lambda: gang.events("commit"))
    assert gang.events("commit")[0]["step"] == 2
    gang.until(lambda: any(line.get("checkpoint_step") == 2 for line in gang.progress()))
    assert {line["phase"] for line in gang.progress()} == {"init", "compile", "train"}
    losses = {step: loss for step, loss in gang.losses().items() if step in undisturbed}
    assert losses == {step: undisturbed[step] for step in losses}


def test_what_is_saved_is_the_state_of_its_step_though_training_has_gone_on(
    yard: Yard, undisturbed: dict[int, float]
) -> None:
    gang = halted_writer(yard)
    gang.until_step(30)
    os.kill(gang.writer(1), signal.SIGCONT)
    gang.until(lambda: 2 in yard.committed())
    gang.kill()
    for path in yard.checkpoints.glob("step-*"):
        if path.name != "step-00000002":
            (path / "MANIFEST.json").unlink()
    rest = yard.run(*BESIDE, "--train.steps=12", ranks=2)
    assert rest.losses() == {step: undisturbed[step] for step in range(3, 13)}


def test_a_stop_waits_for_the_save_under_way_and_then_saves_its_own_step(yard: Yard) -> None:
    gang = halted_writer(yard)
    gang.signal(signal.SIGTERM)
    gang.until_phase("save")
    os.kill(gang.writer(1), signal.SIGCONT)
    assert gang.wait() == [75, 75]
    assert yard.committed() == [2, max(gang.losses())]
    assert gang.progress()[-1]["checkpoint_step"] == max(gang.losses())


def test_a_stop_that_waits_in_vain_for_a_writer_ends_with_76_within_the_grace_period(yard: Yard) -> None:
    gang = halted_writer(yard, rank=0, env={"RERAIL_GRACE_SECONDS": "2"})
    gang.signal(signal.SIGTERM)
    assert gang.wait() == [76, 76]
    assert "grace period" in gang.output()
    assert yard.committed() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_of_processes_does_not_take_the_writers(
    yard: Yard, number: signal.Signals
) -> None:
    gang = yard.start(*LONG, "--checkpoint.every_steps=100000", ranks=2)
    gang.until_step(3)
    for rank in (0, 1):
        os.kill(gang.writer(rank), number)
    gang.signal(number)
    assert gang.wait() == [75, 75]
    assert yard.committed() == [max(gang.losses())]
    assert "writer" not in gang.output()


def test_a_writer_that_dies_between_saves_is_told_of_and_replaced(yard: Yard) -> None:
    port = free_port()
    gang = yard.start(*LONG, "--checkpoint.every_steps=50", f"--metrics.port={port}", ranks=2)
    gang.until_step(2)
    os.kill(gang.writer(1), signal.SIGKILL)
    gang.until_output("a writer is lost: rank 1: its writer ended with SIGKILL; training goes on, saved is 0")
    text = gang.metrics(port)
    assert 'rerail_trainer_checkpoint_failures_total{reason="writer"} 1' in text
    gang.until(lambda: gang.events("commit"))


@needs_root
def test_a_full_disk_fails_the_save_under_way_and_the_next_one_that_finds_room_works(
    yard: Yard, small_disk: Path
) -> None:
    port = free_port()
    words = (f"--checkpoint.dir={small_disk}/checkpoints", f"--metrics.port={port}")
    gang = yard.start(*LONG, *words, ranks=2)
    gang.until(lambda: len(gang.events("commit")) >= 2)
    ballast = fill_up(small_disk)
    gang.until_output("could not be saved: ")
    assert re.search(r"could not be saved: rank \d: No space left on device", gang.output())
    text = gang.metrics(port)
    assert re.search(r'checkpoint_failures_total\{reason="full"\} [1-9]', text)
    failed = gang.events("save-failed")[-1]["step"]
    gang.until_step(max(gang.losses()) + 3)
    ballast.unlink()
    gang.until(lambda: gang.events("commit")[-1]["step"] > failed)
    assert not [path for path in small_disk.rglob(f"{failed:08d}*")]


def test_a_writer_of_an_older_round_that_wakes_up_late_cannot_commit(yard: Yard) -> None:
    old = halted_writer(yard, rank=0, point="manifest-written", env={**JOB, "RERAIL_ROUND": "4"})
    new = yard.run(*BESIDE, "--train.steps=6", ranks=2, env={**JOB, "RERAIL_ROUND": "5"})
    assert min(new.losses()) == 1
    before = {path: path.read_bytes() for path in yard.checkpoints.rglob("step-*/*")}
    os.kill(old.writer(0), signal.SIGCONT)
    assert old.wait() == [80, 80]
    assert "round 4 of job team/a is over" in old.output()
    assert {path: path.read_bytes() for path in yard.checkpoints.rglob("step-*/*")} == before


def test_nothing_in_shared_memory_outlives_a_killed_rank(yard: Yard) -> None:
    def shared() -> set[str]:
        return {
            name for name in os.listdir("/dev/shm") if not name.startswith("rerail-rig-")
        }  # test clusters

    before = shared()
    gang = halted_writer(yard)
    assert shared() == before
    gang.kill()
    assert shared() == before


def test_the_stall_of_every_save_is_told_and_is_less_than_the_save(yard: Yard) -> None:
    port = free_port()
    gang = yard.start(*LONG, f"--metrics.port={port}", ranks=2)
    gang.until(lambda: len(gang.events("commit")) >= 3)
    for event in gang.events("commit"):
        assert 0 < event["stall_seconds"] < event["seconds"]
        assert event["bytes"] > 400_000
    text = gang.metrics(port)
    for name in ("stall_seconds", "stall_seconds_total", "save_seconds", "bytes", "last_committed_step"):
        assert re.search(rf"^rerail_trainer_checkpoint_{name} [0-9.e+-]+$", text, re.MULTILINE), name


def test_the_writer_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, rerail_trainer.checkpoint.writer\n"
        "sys.exit(', '.join({'torch', 'numpy', 'pydantic'} & set(sys.modules)) or 0)"
    )
    environment = {**clean_environment(), "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_step_that_is_not_finite_ends_the_run_only_after_the_save_under_way(yard: Yard) -> None:
    words = ("--optim.lr=1e30", "--optim.clip=0", "--checkpoint.every_steps=1", *LONG)
    at = {"rank": 1, "point": "folder-made", "save": 1, "signal": "SIGSTOP", "victim": "writer"}
    gang = yard.start(*words, ranks=2, at=at)
    gang.until_phase("save")
    assert yard.committed() == []
    os.kill(gang.writer(1), signal.SIGCONT)
    assert gang.wait() == [82, 82]
    assert yard.committed() == [1]


@pytest.mark.parametrize("mode", ["process", "sync"])
def test_progress_tells_for_how_long_training_stood_still_for_saves_so_far(yard: Yard, mode: str) -> None:
    gang = yard.run(f"--checkpoint.mode={mode}", "--train.steps=12", ranks=2)
    told = [line["stall_seconds"] for line in gang.progress() if "stall_seconds" in line]
    commits = gang.events("commit")
    assert told == sorted(told) and told[0] < told[-1]
    assert sum(event["stall_seconds"] for event in commits) <= told[-1] + 0.001
    assert told[-1] < sum(event["seconds"] for event in commits) + 0.1


def test_what_a_save_cost_that_failed_is_told_as_well(yard: Yard) -> None:
    at = {"rank": 1, "point": "folder-made", "save": 1, "signal": "SIGKILL", "victim": "writer"}
    gang = yard.start(
        *LONG, "--checkpoint.every_steps=100000", "--checkpoint.every_seconds=1", ranks=2, at=at
    )
    gang.until(lambda: gang.events("save-failed"))
    gang.until(lambda: gang.progress()[-1].get("stall_seconds", 0) > 0)

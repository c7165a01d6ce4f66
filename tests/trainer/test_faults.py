"""Bad surroundings: each gives one clear line and the code of the contract, and loses nothing that was committed."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .gang import Yard, Zygote, free_port

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root: mounts a small file system or changes user"
)
NOBODY = 65534


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 3 MiB, for checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "rerail-test", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def public_yard(zygote: Zygote) -> Iterator[Yard]:
    """A yard below folders that every user may pass."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yard = Yard(zygote, Path(name))
        yield yard
        yard.close()


def fill_up(disk: Path) -> Path:
    """Takes all space that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return ballast


@needs_root
def test_a_full_disk_costs_saves_but_neither_steps_nor_what_is_committed(
    yard: Yard, small_disk: Path
) -> None:
    folder = small_disk / "checkpoints"
    words = (f"--checkpoint.dir={folder}", "--train.steps=100000", "--optim.horizon_steps=100000")
    gang = yard.start(*words, "--checkpoint.every_steps=5", ranks=2)
    gang.until(lambda: len(list(folder.glob("step-*/MANIFEST.json"))) == 2)
    ballast = fill_up(small_disk)
    gang.until_output("could not be saved: ")
    assert "No space left on device" in gang.output()
    newest = max(gang.losses())
    gang.until_step(newest + 6)
    assert list(folder.glob("step-*/MANIFEST.json"))
    ballast.unlink()
    gang.until(lambda: any(line.get("checkpoint_step", 0) > newest for line in gang.progress()))
    fill_up(small_disk)
    gang.signal(signal.SIGTERM)
    assert gang.wait() == [76, 76]
    ballast.unlink()
    again = yard.start(*words, ranks=2)
    again.until_output("resumed from step")
    assert "damaged" not in again.output()


@needs_root
@pytest.mark.parametrize("mode", ["exists", "cannot-be-made"])
def test_a_folder_that_may_not_be_written_names_uid_path_and_fs_group(public_yard: Yard, mode: str) -> None:
    yard = public_yard
    locked = yard.folder / "locked"
    locked.mkdir(mode=0o755)
    folder = locked if mode == "exists" else locked / "sub"
    gang = yard.start(f"--checkpoint.dir={folder}", ranks=2, uid=NOBODY)
    assert gang.wait() == [64, 64]
    for part in (f"uid {NOBODY}", str(folder), "Permission denied", "fsGroup"):
        assert part in gang.output()


def test_a_checkpoint_folder_that_is_a_file_is_refused(yard: Yard) -> None:
    yard.checkpoints.write_text("not a folder")
    gang = yard.start()
    assert gang.wait() == [64]
    assert str(yard.checkpoints) in gang.output()


def test_a_loss_that_is_not_finite_ends_all_ranks_before_anything_is_changed(yard: Yard) -> None:
    words = ("--optim.lr=1e30", "--optim.clip=0", "--checkpoint.every_steps=1")
    gang = yard.start(*words, ranks=2)
    assert gang.wait() == [82, 82]
    bad = max(gang.losses()) + 1
    assert f"step {bad}: loss" in gang.output()
    assert max(yard.committed()) == bad - 1


def test_ranks_that_do_not_meet_leave_with_85_and_the_address(yard: Yard) -> None:
    gang = yard.start("--parallel.init_seconds=1", ranks=2, missing=(1,))
    assert gang.wait() == [85]
    assert "rank 0 of 2 could not meet the others at 127.0.0.1:" in gang.output()


def test_a_port_that_is_taken_leaves_with_85(yard: Yard) -> None:
    import socket

    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        gang = yard.start(ranks=2, missing=(1,), env={"MASTER_PORT": str(port)})
        assert gang.wait() == [85]
    assert f"127.0.0.1:{port}" in gang.output()


def test_a_batch_that_cannot_be_cut_over_the_ranks_names_sizes_that_fit(yard: Yard) -> None:
    gang = yard.start(ranks=3, missing=(1, 2))
    assert gang.wait() == [64]
    assert "16 sequences per step" in gang.output()
    assert "[1, 2, 4, 8, 16]" in gang.output()


def test_a_shard_with_a_wrong_header_leaves_with_83_and_its_name(yard: Yard) -> None:
    shard = yard.folder / "a.bin"
    shard.write_bytes(b"\1" * 4096)
    gang = yard.start("--data.source=shards", f"--data.path={shard}")
    assert gang.wait() == [83]
    assert str(shard) in gang.output()


def test_progress_that_cannot_be_written_never_stops_training(yard: Yard) -> None:
    gang = yard.run("--train.steps=2", env={"RERAIL_PROGRESS": "/dev/full"})
    assert gang.output().count("progress cannot be written") == 1


def test_a_folder_that_vanishes_in_mid_run_ends_the_round(yard: Yard) -> None:
    gang = yard.start("--train.steps=100000", "--checkpoint.every_steps=20", ranks=2)
    gang.until_step(5)
    shutil.rmtree(yard.checkpoints)
    assert gang.wait() == [80, 80]


@needs_root
def test_a_disk_that_is_full_at_the_start_is_no_reason_to_end_for_good(yard: Yard, small_disk: Path) -> None:
    fill_up(small_disk)
    gang = yard.start(f"--checkpoint.dir={small_disk}/checkpoints", ranks=2)
    assert gang.wait() == [80, 80]
    assert "No space left on device; free space or enlarge the volume" in gang.output()


@needs_root
def test_a_last_save_that_fails_is_not_called_done(yard: Yard, small_disk: Path) -> None:
    gang = yard.start(
        f"--checkpoint.dir={small_disk}/checkpoints",
        at={"point": "due", "step": 8, "signal": "SIGSTOP"},
    )
    gang.until_frozen(0)
    ballast = fill_up(small_disk)
    os.kill(gang.pids[0], signal.SIGCONT)
    assert gang.wait() == [80]
    assert "all 8 steps are done, but the last could not be saved" in gang.output()
    ballast.unlink()
    again = yard.run(f"--checkpoint.dir={small_disk}/checkpoints")
    assert sorted(again.losses()) == [7, 8]

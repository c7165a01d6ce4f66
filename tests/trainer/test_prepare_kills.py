"""prepare goes on after every kill, and nobody works in its folder beside it."""

import contextlib
import fcntl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .gang import DEADLINE_SECONDS, PYTHONPATH, clean_environment
from .texts import (
    DOCUMENTS,
    content,
    lines_file,
    prepare,
)

# Killed, and gone on.


def start(*words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    environment = {**clean_environment(), "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-m", "rerail_trainer", "prepare", *map(str, words)]
    return subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, text=True)


def until(holds: Any, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < end
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def much(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Input for a second or so of work, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("much")
    lines_file(folder, DOCUMENTS * 30)
    assert prepare(folder / "documents.jsonl", *MUCH, "--out", folder / "undisturbed", "--workers", "1") == 0
    return folder, content(folder / "undisturbed")


MUCH = ("--train-bpe", "300", "--held-out", "0.1", "--chunk-bytes", "6000", "--shard-tokens", "2000")


def test_killed_while_encoding_it_goes_on_and_its_workers_end_with_it(
    much: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    folder, undisturbed = much
    words, out = (folder / "documents.jsonl", *MUCH, "--out", "out"), tmp_path / "out"
    process = start(*words, "--workers", "2", cwd=tmp_path)
    until(lambda: len(list(out.glob(".work/chunk-*.json"))) >= 3, process)
    workers = [pid for pid in children_of(process.pid) if alive(pid)]
    process.kill()
    process.communicate()
    assert len(workers) >= 2
    end = time.monotonic() + DEADLINE_SECONDS
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.01)
    done = len(list(out.glob(".work/chunk-*.json")))
    second = start(*words, "--workers", "1", cwd=tmp_path)
    output, _ = second.communicate(timeout=DEADLINE_SECONDS)
    assert second.returncode == 0
    assert f"going on: {done} of " in output
    assert content(out) == undisturbed


def test_killed_while_joining_it_goes_on(much: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    folder, undisturbed = much
    words, out = (folder / "documents.jsonl", *MUCH, "--out", "out", "--workers", "1"), tmp_path / "out"
    process = start(*words, cwd=tmp_path)
    until(lambda: len(list(out.glob("train-*.bin"))) >= 5, process)
    process.kill()
    process.communicate()
    assert not (out / "corpus.json").exists()
    before = {path.name: path.stat().st_ino for path in out.glob("train-*.bin")}
    second = start(*words, cwd=tmp_path)
    second.communicate(timeout=DEADLINE_SECONDS)
    assert second.returncode == 0
    assert content(out) == undisturbed
    # Shards that were whole are still the same files.
    assert {name: (out / name).stat().st_ino for name in before} == before


def test_a_finished_corpus_is_left_alone_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = lines_file(tmp_path), tmp_path / "out"
    prepare(path, "--out", out, "--workers", "1")
    before = {file: file.stat().st_ino for file in out.iterdir()}
    assert prepare(path, "--out", out, "--workers", "2") == 0
    assert "is prepared already: nothing to do" in capsys.readouterr().out
    assert prepare(path, "--out", out, "--held-out", "0.5") == 64
    assert "holds another corpus: held_out differ; choose another --out" in capsys.readouterr().err
    path.write_text(path.read_text() + '{"text": "more"}\n')
    assert prepare(path, "--out", out) == 64
    assert "inputs differ" in capsys.readouterr().err
    assert {file: file.stat().st_ino for file in out.iterdir()} == before


def test_two_at_a_time_in_one_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out" / ".work").mkdir(parents=True)
    with (tmp_path / "out" / ".work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert prepare(lines_file(tmp_path), "--out", tmp_path / "out") == 64
    assert "another `prepare` is at work" in capsys.readouterr().err

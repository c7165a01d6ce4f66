"""`checkpoint ls`, `verify` and `prune`: what they say is so, and they harm nobody."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .gang import PYTHONPATH, Yard, clean_environment
from .test_damage import flip, two_steps, two_steps_made
from .test_fencing import JOB_A, in_round

__all__ = ["two_steps", "two_steps_made"]

LONG = ("--train.steps=100000", "--optim.horizon_steps=8")


def checkpoint(*words: str) -> tuple[int, str]:
    """The command as a user gives it; exit code, and all that it says. It must not have imported torch."""
    code = (
        "import sys\nfrom rerail_trainer.__main__ import main\ncode = main(['checkpoint', *sys.argv[1:]])\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**clean_environment(), "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def found(*words: str) -> Any:
    status, output = checkpoint(*words, "--json")
    assert status == 0, output
    return json.loads(output)


def test_ls_tells_every_step_with_its_state_size_ranks_and_author(yard: Yard, two_steps: Path) -> None:
    flip(two_steps.parent / "step-00000002" / "MANIFEST.json", 40)
    status, output = checkpoint("ls", str(yard.checkpoints))
    assert status == 0
    assert len(output.splitlines()) == 3
    size = sum(path.stat().st_size for path in two_steps.glob("rank-*"))
    [newest, damaged] = found("ls", str(yard.checkpoints))["steps"]
    told = {key: newest[key] for key in ("step", "state", "bytes", "ranks", "layout", "job", "round")}
    assert told == {
        "step": 4, "state": "committed", "bytes": size, "ranks": 2, "layout": "2 replicas", "job": "local", "round": 1,
    }  # fmt: skip
    assert (damaged["step"], damaged["state"]) == (2, "damaged")
    assert "its digest is wrong" in damaged["note"]


def test_ls_tells_steps_that_no_longer_count_and_saves_that_never_ended(yard: Yard) -> None:
    yard.run("--train.steps=6", "--optim.horizon_steps=8")
    at = {"point": "manifest-written", "step": 2, "signal": "SIGKILL"}
    yard.start(env={"RERAIL_RESUME": "Never"}, at=at).wait()
    steps = found("ls", str(yard.checkpoints))["steps"]
    assert [(entry["step"], entry["state"]) for entry in steps] == [
        (6, "outdated"),
        (4, "outdated"),
        (2, "under way"),
    ]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("MANIFEST.json", 0.5),
        ("rank-00000.safetensors", 0.1),
        ("rank-00001.safetensors", 0.9),
        ("rank-00001.json", 0.5),
    ],
)
def test_verify_finds_a_flipped_byte_in_any_file_and_changes_nothing(
    yard: Yard, two_steps: Path, name: str, place: float
) -> None:
    status, output = checkpoint("verify", str(yard.checkpoints))
    assert status == 0
    assert output.count("every digest is right") == 2
    flip(two_steps / name, int(place * (two_steps / name).stat().st_size))
    status, output = checkpoint("verify", str(yard.checkpoints))
    assert status == 65
    [line] = [line for line in output.splitlines() if line.startswith("step 4: ")]
    assert f"step-00000004/{name}" in line
    assert yard.committed() == [2, 4]
    assert checkpoint("verify", str(yard.checkpoints), "--step", "2")[0] == 0


def test_prune_keeps_the_newest_and_those_that_keep_every_names(yard: Yard) -> None:
    yard.run("--checkpoint.every_steps=1", "--checkpoint.keep=8")
    words = ("prune", str(yard.checkpoints), "--keep", "2", "--keep-every", "3")
    assert found(*words, "--dry-run")["removed"] == [5, 4, 2, 1]
    assert yard.committed() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found(*words)["removed"] == [5, 4, 2, 1]
    assert yard.committed() == [3, 6, 7, 8]
    assert sorted(path.name for path in yard.checkpoints.glob("step-*")) == [
        f"step-{step:08d}" for step in yard.committed()
    ]
    assert found(*words)["removed"] == []


def test_prune_never_leaves_fewer_than_two_steps(yard: Yard, two_steps: Path) -> None:
    status, output = checkpoint("prune", str(yard.checkpoints), "--keep", "1")
    assert status == 64
    assert "--keep 1 must be at least 2" in output
    assert yard.committed() == [2, 4]


def test_prune_refuses_a_folder_that_a_living_job_holds(yard: Yard) -> None:
    gang = yard.start(*LONG, env=in_round(JOB_A, 3))
    gang.until(lambda: len(yard.committed()) >= 2)
    status, output = checkpoint("prune", str(yard.checkpoints), "--keep", "2")
    assert status == 64
    assert "in use by job team/a (uid uid-a), round 3" in output
    gang.kill()
    assert checkpoint("prune", str(yard.checkpoints), "--keep", "2")[0] == 0


@pytest.mark.parametrize("words", [("ls", "/nowhere"), ("burn", "/nowhere"), ("prune", "/nowhere"), ()])
def test_wrong_words_are_one_line_and_64(words: tuple[str, ...]) -> None:
    status, output = checkpoint(*words)
    assert status == 64
    assert len(output.splitlines()) == 1
    assert output.startswith("rerail_trainer: ")

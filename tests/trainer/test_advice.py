"""How often to save, as the operator tells it: at the start, while training runs, and the same on all ranks."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from rerail_trainer.advice import Advice

from .gang import Gang, Yard

SLOW = ("--train.steps=100000", "--checkpoint.every_steps=3")
"""Without advice a save follows the other."""
NEVER = ("--train.steps=100000", "--checkpoint.every_steps=100000")


def tell(path: Path, content: str) -> None:
    """As the agent does it: whoever reads sees the old or the new."""
    fresh = path.with_suffix(".new")
    fresh.write_text(content)
    fresh.replace(path)


def saved(gang: Gang) -> list[int]:
    return [event["step"] for event in gang.events("commit")]


# -- what is read


def read(tmp_path: Path, content: str, before: str = "60") -> int:
    path = tmp_path / "advice.json"
    tell(path, content)
    return Advice({"RERAIL_ADVICE": str(path), "RERAIL_CHECKPOINT_SECONDS": before}).checkpoint_seconds()


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        ('{"checkpoint_seconds": 118}', 118),
        ('{"checkpoint_seconds": null}', 0),
        ('{"checkpoint_seconds": 118, "of_a_later_version": 1}', 118),
        ("{}", 60),
        ("[]", 60),
        ("", 60),
        ('{"checkpoint_seconds": "soon"}', 60),
        ('{"checkpoint_seconds": -1}', 60),
        ('{"checkpoint_seconds": true}', 60),
    ],
)
def test_the_file_is_believed_where_it_makes_sense(tmp_path: Path, content: str, seconds: int) -> None:
    assert read(tmp_path, content) == seconds


def test_without_a_file_the_environment_counts_and_without_both_nothing(tmp_path: Path) -> None:
    assert Advice({"RERAIL_CHECKPOINT_SECONDS": "7"}).checkpoint_seconds() == 7
    gone = {"RERAIL_ADVICE": str(tmp_path / "none"), "RERAIL_CHECKPOINT_SECONDS": "7"}
    assert Advice(gone).checkpoint_seconds() == 7
    assert Advice({}).checkpoint_seconds() == 0
    assert Advice({"RERAIL_CHECKPOINT_SECONDS": "soon"}).checkpoint_seconds() == 0


# -- what training does


@pytest.mark.parametrize("mode", ["sync", "process"])
def test_told_seconds_take_the_place_of_steps_and_every_save_is_made_once(yard: Yard, mode: str) -> None:
    env = {"RERAIL_CHECKPOINT_SECONDS": "1"}
    gang = yard.start(*SLOW, f"--checkpoint.mode={mode}", ranks=4, env=env)
    gang.until(lambda: len(gang.events("commit")) >= 3)
    gang.kill()
    times = [event["time"] for event in gang.events("commit")]
    assert min(later - earlier for earlier, later in pairwise(times)) > 0.8
    assert gang.events("save-skipped") == []


def test_what_is_told_while_training_runs_counts_from_then_on(yard: Yard, tmp_path: Path) -> None:
    path = tmp_path / "advice.json"
    tell(path, json.dumps({"checkpoint_seconds": None}))
    gang = yard.start(*NEVER, ranks=4, env={"RERAIL_ADVICE": str(path)})
    gang.until_step(20)
    assert saved(gang) == []
    tell(path, json.dumps({"checkpoint_seconds": 1}))
    gang.until(lambda: len(saved(gang)) >= 2)
    tell(path, json.dumps({"checkpoint_seconds": 3600}))
    gang.until_step(max(gang.losses()) + 200)
    quiet = len(saved(gang))
    gang.until_step(max(gang.losses()) + 200)
    assert len(saved(gang)) == quiet


def test_advice_that_only_another_rank_finds_changes_nothing(yard: Yard) -> None:
    """Rank 0 decides for all: a rank that hears otherwise saves with the others all the same."""
    gang = yard.start("--train.steps=40", ranks=2, env={}, env_of={1: {"RERAIL_CHECKPOINT_SECONDS": "1"}})
    assert gang.wait() == [0, 0], gang.output()
    assert saved(gang) == list(range(2, 41, 2))


def test_advice_taken_back_leaves_the_programs_own_way(yard: Yard, tmp_path: Path) -> None:
    path = tmp_path / "advice.json"
    tell(path, json.dumps({"checkpoint_seconds": 3600}))
    gang = yard.start(*SLOW, ranks=2, env={"RERAIL_ADVICE": str(path)})
    gang.until_step(30)
    assert saved(gang) == []
    tell(path, json.dumps({"checkpoint_seconds": None}))
    gang.until(lambda: len(saved(gang)) >= 3)
    assert all(step % 3 == 0 for step in saved(gang))


def test_a_life_with_kills_that_saves_by_the_clock_is_the_uninterrupted_one_bit_for_bit(yard: Yard) -> None:
    env = {"RERAIL_CHECKPOINT_SECONDS": "1"}
    losses: dict[int, float] = {}
    for _ in range(3):
        gang = yard.start("--train.steps=100000", "--optim.horizon_steps=60", ranks=4, env=env)
        gang.until(lambda gang=gang: len(saved(gang)) >= 1)
        gang.until_step(saved(gang)[-1] + 5)
        os.kill(gang.pids[2], 9)
        gang.kill()
        for step, loss in gang.losses().items():
            assert losses.setdefault(step, loss) == loss
    last = max(losses)
    other = Yard(yard.zygote, yard.folder / "undisturbed")
    other.folder.mkdir()
    whole = other.run(
        f"--train.steps={last}", "--optim.horizon_steps=60", "--checkpoint.every_steps=100000", ranks=4
    )
    assert whole.losses() == losses

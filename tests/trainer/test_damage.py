"""A changed, cut or missing byte anywhere in a checkpoint is found; the step before it is used and people are told."""

import json
import shutil
from pathlib import Path

import pytest

from .gang import Yard, Zygote

FOUR = ("--train.steps=4", "--optim.horizon_steps=8")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(bytes(data))


@pytest.fixture(scope="session")
def two_steps_made(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder in which two ranks have committed steps 2 and 4."""
    yard = Yard(zygote, tmp_path_factory.mktemp("two-steps"))
    yard.run(*FOUR, ranks=2)
    assert yard.committed() == [2, 4]
    return yard.checkpoints


@pytest.fixture
def two_steps(yard: Yard, two_steps_made: Path) -> Path:
    """The folder of step 4, in a copy of that folder."""
    shutil.copytree(two_steps_made, yard.checkpoints)
    return yard.checkpoints / "step-00000004"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("MANIFEST.json", 0.5),
        ("MANIFEST.json", 0.02),
        ("rank-00000.safetensors", 0.0),
        ("rank-00000.safetensors", 0.1),
        ("rank-00001.safetensors", 0.6),
        ("rank-00001.safetensors", 1.0),
        ("rank-00001.json", 0.5),
    ],
)
def test_a_flipped_byte_in_any_file_sends_back_to_the_step_before(
    yard: Yard, two_steps: Path, name: str, place: float
) -> None:
    size = (two_steps / name).stat().st_size
    flip(two_steps / name, int(place * (size - 1)))
    rest = yard.run(*FOUR, ranks=2)
    assert [line["resumed_from"] for line in rest.progress() if "resumed_from" in line] == [2]
    assert "step-00000004 is damaged" in rest.output()
    assert name in rest.output()
    assert len(list(yard.checkpoints.glob("corrupt-step-00000004.*"))) == 1
    assert yard.committed() == [2, 4]


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_file_that_is_cut_or_gone_sends_back_to_the_step_before(
    yard: Yard, two_steps: Path, harm: str
) -> None:
    file = two_steps / "rank-00001.safetensors"
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    rest = yard.run(*FOUR, ranks=2)
    assert [line["resumed_from"] for line in rest.progress() if "resumed_from" in line] == [2]


def test_damage_is_told_though_an_older_step_is_below_what_the_operator_has_seen(
    yard: Yard, two_steps: Path
) -> None:
    flip(two_steps / "rank-00000.safetensors", -1)
    rest = yard.run(*FOUR, ranks=2, env={"RERAIL_MIN_STEP": "4"})
    assert "step 4 was committed before, but 2 is the newest that can be read here" in rest.output()


def test_nothing_left_that_can_be_read_is_an_end_and_not_a_new_beginning(yard: Yard, two_steps: Path) -> None:
    for folder in yard.checkpoints.glob("step-*"):
        flip(folder / "rank-00000.safetensors", -1)
    gang = yard.start(*FOUR, ranks=2, env={"RERAIL_MIN_STEP": "4"})
    assert gang.wait() == [66, 66]
    assert len(list(yard.checkpoints.glob("corrupt-step-*"))) == 2


def test_without_an_operator_all_damaged_means_a_start_from_step_0_as_if_there_was_nothing(
    yard: Yard, two_steps: Path, uninterrupted: dict[int, float]
) -> None:
    for folder in yard.checkpoints.glob("step-*"):
        flip(folder / "rank-00000.safetensors", -1)
    rest = yard.run("--train.steps=2", "--optim.horizon_steps=8", ranks=2)
    assert rest.losses() == {step: uninterrupted[step] for step in (1, 2)}


def test_a_form_of_a_later_version_is_refused_and_not_set_aside(yard: Yard, two_steps: Path) -> None:
    from rerail_trainer.checkpoint.manifest import seal

    file = two_steps / "MANIFEST.json"
    body = json.loads(file.read_text())
    del body["digest"]
    file.write_bytes(seal({**body, "format": 3}))
    gang = yard.start(ranks=2)
    assert gang.wait() == [65, 65]
    assert "has form 3, this trainer reads forms 1 to 2" in gang.output()
    assert yard.committed() == [2, 4]

"""Weights that lie somewhere: opened from checkpoints and model directories, and taken as a training's first values."""

from pathlib import Path

import pytest
import torch

from rerail_trainer.config import ModelConfig
from rerail_trainer.failures import BadConfig
from rerail_trainer.weights import open_model

from .gang import Yard

CPU = torch.device("cpu")


def flip_first_value(path: Path) -> None:
    """Of a file of the safetensors form: the first tensor's first byte is another one."""
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1
    path.write_bytes(data)


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_checkpoint_folder_opens_at_its_newest_step_and_its_step_folders_at_theirs(yard: Yard) -> None:
    yard.run("--train.steps=4", ranks=2)
    newest = open_model(str(yard.checkpoints), CPU)
    assert newest.config == ModelConfig(
        layers=2, dim=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=257, seq_len=16
    )
    assert newest.origin.endswith("step-00000004")
    older = open_model(str(yard.checkpoints / "step-00000002"), CPU)
    assert older.origin.endswith("step-00000002")
    assert not torch.equal(newest.model.head.weight, older.model.head.weight)
    assert torch.equal(
        open_model(str(yard.checkpoints), CPU, step=2).model.head.weight, older.model.head.weight
    )
    assert newest.model.logits(torch.arange(8)[None]).shape == (1, 8, 257)


def test_of_a_folder_with_a_damaged_step_the_one_before_it_opens_and_nothing_is_renamed(yard: Yard) -> None:
    yard.run("--train.steps=4", "--parallel.shard=0", ranks=2)
    flip_first_value(yard.checkpoints / "step-00000004" / "rank-00001.safetensors")
    before = everything_in(yard.checkpoints)
    assert open_model(str(yard.checkpoints), CPU).origin.endswith("step-00000002")
    assert everything_in(yard.checkpoints) == before


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "neither a committed checkpoint nor config.json"),
        (tmp_path / "no", "no folder"),
    ):
        with pytest.raises(BadConfig, match=words):
            open_model(str(path), CPU)

"""Trainings to compare: what a gang's losses, gradient norms and last checkpoint were, and how far two are apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rerail_trainer.checkpoint import layout
from rerail_trainer.checkpoint.committed import list_steps
from rerail_trainer.checkpoint.load import read_pieces
from rerail_trainer.checkpoint.storage import PosixStorage
from rerail_trainer.checkpoint.tensorfile import read_piece

from .gang import Yard

TWENTY = ("--train.steps=20", "--optim.horizon_steps=20", "--checkpoint.every_steps=20")

EXPERTS = (
    "--model.experts=8", "--model.experts_per_token=2", "--model.expert_ffn=32", "--model.shared_ffn=16",
    "--model.dense_layers=1", "--model.balance_loss=0.01", "--model.z_loss=0.001", "--model.balance_bias=0.01",
)  # fmt: skip
"""One dense block, then one of eight experts with everything that moves with the load."""


@dataclass(frozen=True)
class Training:
    """20 steps: loss and gradient norm of each, and every tensor of the checkpoint at the end."""

    losses: Mapping[int, float]
    norms: Mapping[int, float]
    tensors: Mapping[str, Tensor]


def trained(yard: Yard, *words: str, ranks: int = 1, inside: str | None = None) -> Training:
    gang = yard.run(*TWENTY, *words, ranks=ranks, inside=inside)
    return Training(gang.losses(), gang.readings("grad_norm"), whole_tensors(yard.checkpoints))


def assert_relayed(
    yard: Yard, alone: Training, stations: Sequence[tuple[int, Sequence[str]]], *words: str
) -> None:
    """Two steps at each station, (ranks, words), each going on from what the one before saved, are those of `alone`."""
    for number, (ranks, layout_words) in enumerate(stations, 1):
        gang = yard.run(*TWENTY, *words, *layout_words, f"--train.steps={2 * number}", ranks=ranks)
        losses, norms = gang.losses(), gang.readings("grad_norm")
        assert sorted(losses) == [2 * number - 1, 2 * number]
        assert losses == pytest.approx({step: alone.losses[step] for step in losses}, abs=2e-6), layout_words
        assert norms == pytest.approx({step: alone.norms[step] for step in norms}, rel=1e-6), layout_words


def whole_tensors(folder: Path) -> dict[str, Tensor]:
    """The newest step, each tensor put together from the parts that ranks wrote; every value written just once."""
    storage = PosixStorage(str(folder))
    manifest = list_steps(storage).steps[0]
    wholes = {}
    for name, pieces in read_pieces(storage, layout.step_folder(manifest.step), manifest.files).items():
        whole = torch.full(pieces[0].shape, torch.nan)
        written = torch.zeros(pieces[0].shape, dtype=torch.int32)
        for piece in pieces:
            region = tuple(slice(at, at + size) for at, size in zip(piece.offset, piece.sizes, strict=True))
            whole[region] = read_piece(storage, piece).float()
            written[region] += 1
        assert bool((written == 1).all()), f"{name} was not written just once"
        wholes[name] = whole
    return wholes


def assert_same(training: Training, alone: Training, loss: float, norm: float, tensor: float) -> None:
    """loss, tensor: largest absolute differences allowed; norm: the largest relative one."""
    assert training.losses.keys() == alone.losses.keys() == set(range(1, 21))
    assert training.tensors.keys() == alone.tensors.keys()
    apart = {
        "loss": max(abs(training.losses[step] - alone.losses[step]) for step in alone.losses),
        "norm": max(abs(training.norms[step] / alone.norms[step] - 1) for step in alone.norms),
        "tensor": max(float((training.tensors[n] - alone.tensors[n]).abs().max()) for n in alone.tensors),
    }
    print("apart:", apart)
    assert apart["loss"] <= loss, apart
    assert apart["norm"] <= norm, apart
    assert apart["tensor"] <= tensor, apart

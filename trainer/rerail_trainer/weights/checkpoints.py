"""A committed step as a source of weights: read only, nothing in the folder is touched or renamed."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rerail_api.contract import ExitCode
from rerail_trainer.checkpoint import layout
from rerail_trainer.checkpoint.committed import list_steps
from rerail_trainer.checkpoint.load import read_pieces
from rerail_trainer.checkpoint.manifest import Manifest, decode
from rerail_trainer.checkpoint.state import MODEL
from rerail_trainer.checkpoint.storage import Storage, is_url, open_storage
from rerail_trainer.checkpoint.tensorfile import Damaged, StoredPiece, read_piece
from rerail_trainer.config import ModelConfig
from rerail_trainer.failures import BadConfig, TrainerExit

T = TypeVar("T")

KEPT_BYTES = 1 << 31
"""Of pieces that were read; one that is larger is kept alone."""


class CheckpointSource:
    """The model's tensors in one committed step, put together from the pieces of all ranks.

    Reading raises Damaged when a digest is wrong.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        folder = layout.step_folder(manifest.step)
        self.origin = f"{storage.root}/{folder}"
        self.step = manifest.step
        self.config = model_of(manifest.identity, self.origin)
        self.chats = manifest.identity.get("train.stage") == "sft"
        self._storage = storage
        self._pieces = {
            name.removeprefix(MODEL): pieces
            for name, pieces in read_pieces(storage, folder, manifest.files).items()
            if name.startswith(MODEL)
        }
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: pieces[0].shape for name, pieces in self._pieces.items()
        }
        self.dtype = self._pieces["norm.weight"][0].dtype if "norm.weight" in self._pieces else torch.float32
        self._kept: dict[StoredPiece, Tensor] = {}

    def read(self, name: str, region: tuple[slice, ...]) -> Tensor:
        pieces = self._pieces[name]
        whole = torch.empty([part.stop - part.start for part in region], dtype=pieces[0].dtype)
        filled = 0
        for piece in pieces:
            inner, outer = [], []
            for want, at, length in zip(region, piece.offset, piece.sizes, strict=True):
                low, high = max(want.start, at), min(want.stop, at + length)
                inner.append(slice(low - at, high - at))
                outer.append(slice(low - want.start, high - want.start))
            if all(part.stop > part.start for part in inner):
                values = self._read(piece)[tuple(inner)]
                whole[tuple(outer)] = values
                filled += values.numel()
        if filled != whole.numel():
            raise Damaged(pieces[0].path, f"{name} is not complete")
        return whole

    def _read(self, piece: StoredPiece) -> Tensor:
        """The whole piece, verified. Those read last stay in memory: boxes of experts come one by one, and a
        piece may hold many experts, or a slice of each.
        """
        if piece in self._kept:
            return self._kept[piece]
        while self._kept and sum(kept.length for kept in self._kept) + piece.length > KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        try:
            self._kept[piece] = read_piece(self._storage, piece)
        except FileNotFoundError as error:
            raise Damaged(piece.path, "it has gone") from error
        return self._kept[piece]


def is_checkpoint(path: str) -> bool:
    """Whether `path` (a folder or a URL) looks like a checkpoint folder or one of its steps."""
    if not is_url(path) and not Path(path).is_dir():
        return False
    storage, step = located(path)
    names = storage.names(step)
    return layout.MANIFEST in names if step else any(layout.step_of(name) is not None for name in names)


def located(path: str) -> tuple[Storage, str]:
    """The checkpoint folder that is `path`, or of which `path` is a step folder; and that one's name."""
    parent, _, name = path.rstrip("/").rpartition("/")
    if layout.step_of(name) is None:
        return open_storage(path), ""
    return open_storage(parent or "."), name


def committed_steps(path: str, step: int | None = None) -> tuple[Storage, tuple[Manifest, ...]]:
    """The steps that `path` offers, newest first: a whole checkpoint folder, or one step folder of it.

    step: only this one. BadConfig when there is none.
    """
    storage, name = located(path)
    if not name:
        steps = list_steps(storage).steps
    else:
        where = f"{name}/{layout.MANIFEST}"
        try:
            steps = (sound(lambda: decode(where, storage.read(where)), path),)
        except FileNotFoundError as error:
            raise BadConfig(f"{path} has no {layout.MANIFEST}: it is no committed step") from error
    chosen = tuple(manifest for manifest in steps if step is None or manifest.step == step)
    if not chosen:
        there = ", ".join(str(manifest.step) for manifest in steps) or "none"
        wanted = "no committed step" if step is None else f"no committed step {step}"
        raise BadConfig(f"{path} has {wanted}; committed are: {there}")
    return storage, chosen


def sound(read: Callable[[], T], origin: str) -> T:
    """What `read` gives; damage ends the program, as there is nothing else to turn to."""
    try:
        return read()
    except Damaged as error:
        raise TrainerExit(ExitCode.NO_CHECKPOINT, f"{origin} is damaged: {error}") from error


def model_of(identity: Mapping[str, Any], origin: str) -> ModelConfig:
    """The model's settings as the manifest has them; those that it does not know have their defaults.

    BadConfig for a setting that this program does not know: it could mean another computation.
    """
    stored = {name[6:]: value for name, value in identity.items() if name.startswith("model.")}
    known = {entry.name for entry in fields(ModelConfig)}
    foreign = sorted(set(stored) - known)
    if foreign:
        raise BadConfig(f"{origin} was written by another version: model.{foreign[0]} is not known here")
    return ModelConfig(**stored)

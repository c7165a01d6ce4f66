"""Loading, which all ranks do together: rank 0 chooses, every rank verifies what it reads,
all agree or try older.
"""

import errno
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from rerail_api.contract import ExitCode
from rerail_trainer.control import Control
from rerail_trainer.failures import TrainerExit
from rerail_trainer.parallel.shards import Shard, local_shard

from . import layout
from .committed import list_steps, set_aside
from .manifest import Manifest
from .save import Training
from .state import TrainingState, named_tensors, seed_random_state, set_random_state
from .storage import Storage
from .tensorfile import Damaged, StoredPiece, Written, read_index, read_piece

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """What was restored; None instead of it means a start from step 0."""

    manifest: Manifest
    same_world: bool


class Loader:
    """Restores the newest step that can be trusted. Every method is called by all ranks together."""

    def __init__(
        self, control: Control, storage: Storage, training: Training, say: Callable[[str], None]
    ) -> None:
        self._control, self._storage, self._training, self._say = control, storage, training, say
        self.set_aside: list[str] = []
        """Folders found damaged and renamed, newest first; known to rank 0 alone."""
        self.spoilt = False
        """Whether a step was partly read into the state before it was given up; equal on all ranks."""

    def load(self, state: TrainingState, seed: int) -> Loaded | None:
        """Fills `state` in place. None, with `state` spoilt, when no step can be loaded.

        Raises TrainerExit DATA_MISMATCH when the newest step belongs to another training.
        """
        while True:
            manifest = self._control.first_rank_does(self._newest)
            if manifest is None:
                return None
            problem = ""
            try:
                self._restore(manifest, state, seed)
            except Damaged as error:
                problem = str(error)
            problems = [text for text in self._control.collect(problem) if text]
            self.spoilt = bool(problems)
            if not problems:
                return Loaded(manifest, manifest.world_size == self._control.world_size)
            self._control.first_rank_does(
                partial(self._reject, layout.step_folder(manifest.step), problems[0])
            )

    def _newest(self) -> Manifest | None:
        listing = list_steps(self._storage)
        for folder, why in listing.damaged:
            self._reject(folder, why)
        if not listing.steps:
            return None
        newest = listing.steps[0]
        self._check(newest)
        return newest

    def _reject(self, folder: str, why: str) -> None:
        name = set_aside(self._storage, folder)
        self.set_aside.append(name)
        self._say(f"{folder} is damaged ({why}); kept as {name}, trying the step before it")

    def _check(self, manifest: Manifest) -> None:
        folder = f"{self._storage.root}/{layout.step_folder(manifest.step)}"
        if manifest.config_hash != self._training.config_hash:
            own = self._training.identity
            keys = sorted(
                key for key in {*own, *manifest.identity} if own.get(key) != manifest.identity.get(key)
            )
            changes = ", ".join(f"{key} was {manifest.identity.get(key)}, is {own.get(key)}" for key in keys)
            raise TrainerExit(ExitCode.DATA_MISMATCH, f"{folder} is of another training: {changes}")
        if manifest.data_digest != self._training.data_digest:
            raise TrainerExit(
                ExitCode.DATA_MISMATCH,
                f"{folder} was trained on other data: digest {manifest.data_digest[:12]}, "
                f"the data here has {self._training.data_digest[:12]}",
            )

    def _restore(self, manifest: Manifest, state: TrainingState, seed: int) -> None:
        folder, rank = layout.step_folder(manifest.step), self._control.rank
        stored = read_pieces(self._storage, folder, manifest.files)
        for name, tensor in named_tensors(state):
            if name not in stored:
                raise TrainerExit(ExitCode.DATA_MISMATCH, f"{folder} has no tensor {name}")
            fill_shard(self._storage, local_shard(tensor), stored[name])
        if manifest.world_size == self._control.world_size:
            set_random_state(self._host_state(folder, rank, manifest.files))
        else:
            seed_random_state(seed, manifest.step, rank)

    def _host_state(self, folder: str, rank: int, files: tuple[Written, ...]) -> dict[str, object]:
        written = next(entry for entry in files if entry.name == layout.host_file(rank))
        path = f"{folder}/{written.name}"
        data = _trusting(path, lambda: self._storage.read(path))
        if hashlib.sha256(data).hexdigest() != written.sha256:
            raise Damaged(path, "its digest is wrong")
        return json.loads(data)["random"]  # type: ignore[no-any-return]


def read_pieces(storage: Storage, folder: str, files: tuple[Written, ...]) -> dict[str, list[StoredPiece]]:
    """All pieces of a step by tensor name, from the verified headers of its files. Raises Damaged."""
    stored: dict[str, list[StoredPiece]] = defaultdict(list)
    for written in files:
        if written.covers == "header":
            path = f"{folder}/{written.name}"
            for piece in _trusting(path, partial(read_index, storage, folder, written)):
                stored[piece.name].append(piece)
    return dict(stored)


@torch.no_grad()
def fill_shard(storage: Storage, shard: Shard, pieces: list[StoredPiece]) -> None:
    """Fills the local part from those pieces that overlap it, however either was cut. Raises Damaged."""
    filled = 0
    for piece in pieces:
        if piece.shape != shard.shape:
            raise TrainerExit(
                ExitCode.DATA_MISMATCH, f"{piece.name} is {piece.shape}, the model wants {shard.shape}"
            )
        own, theirs = [], []
        for begin, size, at, length in zip(
            shard.offset, shard.tensor.shape, piece.offset, piece.sizes, strict=True
        ):
            low, high = max(begin, at), min(begin + size, at + length)
            own.append(slice(low - begin, high - begin))
            theirs.append(slice(low - at, high - at))
        if any(part.stop <= part.start for part in own):
            continue
        values = _trusting(piece.path, partial(read_piece, storage, piece))[tuple(theirs)]
        shard.tensor[tuple(own)].copy_(values)
        filled += values.numel()
    if filled != shard.tensor.numel():
        raise Damaged(pieces[0].path, f"{pieces[0].name} is not complete")


def _trusting(path: str, read: Callable[[], T]) -> T:
    """What `read` gives; a file that has gone or a disk that cannot read it counts as damage,
    all else does not.
    """
    try:
        return read()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO):
            raise Damaged(path, error.strerror or "it cannot be read") from error
        raise

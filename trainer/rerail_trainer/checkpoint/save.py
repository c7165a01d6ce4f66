"""Saving, which all ranks do together: stage, write, and one rename by rank 0 that makes it a checkpoint.

The three parts meet in values only (`Snapshot`, `Written`), so that writing can move to another process.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from rerail_trainer.control import Control

from . import layout
from .committed import commit, prune, superseded
from .manifest import Manifest
from .rounds import Tenure
from .state import Snapshot, TrainingState, capture
from .storage import Storage
from .tensorfile import Written, write_tensor_file


class SavePoint(Enum):
    """Moments of a save, in order, at which a process may die without harm; reported to an observer."""

    DUE = "due"
    FOLDER_MADE = "folder-made"
    STAGED = "staged"
    TENSORS_WRITTEN = "tensors-written"
    FILES_WRITTEN = "files-written"
    ALL_RANKS_WRITTEN = "all-ranks-written"
    MANIFEST_WRITTEN = "manifest-written"
    COMMITTED = "committed"
    PRUNED = "pruned"


Observer = Callable[[SavePoint, int], None]
"""Told every point and the step; the trainer passes one that does nothing."""


@dataclass(frozen=True)
class Position:
    """Where training stands, and what it is: the part of the manifest that the loop knows."""

    step: int
    tokens: int
    sample_index: int


@dataclass(frozen=True)
class Training:
    """What stays the same over all saves of a run."""

    identity: dict[str, Any]
    config_hash: str
    data_digest: str
    mode: str


@dataclass(frozen=True)
class Retention:
    keep: int
    keep_every: int


@dataclass(frozen=True)
class Outcome:
    """How a save ended, equal on all ranks: `failure` is empty when the step is committed."""

    step: int
    failure: str
    seconds: float
    bytes: int

    @property
    def committed(self) -> bool:
        return not self.failure


class Saver:
    """Saves steps of one round. Every method is called by all ranks together."""

    def __init__(self, control: Control, storage: Storage, tenure: Tenure, training: Training) -> None:
        self._control, self._storage, self._tenure, self._training = control, storage, tenure, training
        self.retention = Retention(keep=2, keep_every=0)
        self.observer: Observer = lambda point, step: None

    def save(self, position: Position, state: TrainingState) -> Outcome:
        """Commits `position`, or says why not; then training can go on all the same.

        Raises Superseded on all ranks when a newer round owns the folder.
        """
        began, step = time.monotonic(), position.step
        self.observer(SavePoint.DUE, step)
        try:
            work = self._control.first_rank_does(lambda: self._open(step))
            self.observer(SavePoint.FOLDER_MADE, step)
            snapshot = capture(state, self._control.rank, self._control.world_size)
            self.observer(SavePoint.STAGED, step)
            files, failure = self._write_all(work, snapshot, step)
            if not failure:
                self._control.first_rank_does(lambda: self._commit(work, position, files))
        except OSError as error:
            files, failure = [], _spoken(error)
        if failure:
            self._control.first_rank_does(lambda: self._drop(step))
        size = sum(written.size for written in files)
        return Outcome(step, failure, time.monotonic() - began, size)

    def _open(self, step: int) -> str:
        work = f"{self._tenure.work}/{layout.unique(layout.step_folder(step))}"
        try:
            self._storage.make_folder(work)
        except FileNotFoundError as error:
            raise superseded(self._tenure, step) from error
        return work

    def _write_all(self, work: str, snapshot: Snapshot, step: int) -> tuple[list[Written], str]:
        """The files of all ranks, or why some rank could not write its own."""
        files, failure = [], ""
        try:
            files = write_rank_files(self._storage, work, self._control.rank, snapshot, self._after(step))
        except OSError as error:
            failure = f"rank {self._control.rank}: {_spoken(error)}"
        self.observer(SavePoint.FILES_WRITTEN, step)
        results = self._control.collect((files, failure))
        self.observer(SavePoint.ALL_RANKS_WRITTEN, step)
        failures = [text for _, text in results if text]
        if failures and not self._control.first_rank_does(
            lambda: bool(self._storage.names(self._tenure.work))
        ):
            raise superseded(self._tenure, step)
        return [written for own, _ in results for written in own], failures[0] if failures else ""

    def _after(self, step: int) -> Callable[[SavePoint], None]:
        return lambda point: self.observer(point, step)

    def _commit(self, work: str, position: Position, files: list[Written]) -> None:
        step = position.step
        manifest = Manifest(
            **vars(position),
            **vars(self._training),
            torch_version=torch.__version__,
            world_size=self._control.world_size,
            time=time.time(),
            author=self._tenure.author,
            files=tuple(files),
        )
        try:
            self._storage.write(f"{work}/{layout.MANIFEST}", [manifest.encode()])
        except FileNotFoundError as error:
            raise superseded(self._tenure, step) from error
        self.observer(SavePoint.MANIFEST_WRITTEN, step)
        commit(self._storage, self._tenure, work, manifest)
        self.observer(SavePoint.COMMITTED, step)

    def prune(self, step: int) -> str:
        """Removes what retention lets go, after a commit of `step`; why not, where that failed."""
        retention = self.retention
        try:
            self._control.first_rank_does(
                lambda: prune(self._storage, self._tenure, retention.keep, retention.keep_every)
            )
        except OSError as error:
            return _spoken(error)
        self.observer(SavePoint.PRUNED, step)
        return ""

    def _drop(self, step: int) -> None:
        """Gives the space of failed saves back, so that the next one has a chance."""
        prefix = layout.step_folder(step)
        for name in self._storage.names(self._tenure.work):
            if name.startswith(prefix):
                self._storage.remove_folder(f"{self._tenure.work}/{name}")


def write_rank_files(
    storage: Storage, work: str, rank: int, snapshot: Snapshot, reached: Callable[[SavePoint], None]
) -> list[Written]:
    """Writes one rank's part durably; touches neither model nor other ranks, so any process may run it."""
    tensors = write_tensor_file(storage, work, layout.tensor_file(rank), snapshot.pieces)
    reached(SavePoint.TENSORS_WRITTEN)
    data = json.dumps(snapshot.host, sort_keys=True).encode()
    size = storage.write(f"{work}/{layout.host_file(rank)}", [data])
    return [tensors, Written(layout.host_file(rank), size, hashlib.sha256(data).hexdigest(), covers="all")]


def _spoken(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}"

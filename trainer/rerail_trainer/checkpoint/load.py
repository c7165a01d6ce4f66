"""Loading, which all ranks do together: rank 0 chooses, every rank verifies what it reads,
all agree or try older.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rerail_api.contract import ExitCode
from rerail_trainer.control import Control
from rerail_trainer.failures import TrainerExit
from rerail_trainer.parallel.shards import local_shard

from . import layout
from .committed import list_steps, set_aside
from .manifest import Manifest
from .reading import Ground, Wanted, by_name, covered, fill, read_headers
from .save import Training
from .state import TrainingState, named_tensors, seed_random_state, set_random_state
from .storage import Storage
from .tensorfile import Damaged, StoredPiece, Written
from .verify import verify_file


@dataclass(frozen=True)
class Loaded:
    """What was restored; None instead of it means a start from step 0. read_bytes: of all ranks together."""

    manifest: Manifest
    same_world: bool
    read_bytes: int
    seconds: float


@dataclass(frozen=True)
class Readers:
    """Who reads, and how much is verified: touched, all or size, as checkpoint.verify says."""

    all: Control
    node: Control
    verify: str


class Loader:
    """Restores the newest step that can be trusted. Every method is called by all ranks together."""

    def __init__(
        self, readers: Readers, storage: Storage, training: Training, say: Callable[[str], None]
    ) -> None:
        self._readers, self._storage, self._training, self._say = readers, storage, training, say
        self.set_aside: list[str] = []
        """Folders found damaged and renamed, newest first; known to rank 0 alone."""
        self.spoilt = False
        """Whether a step was partly read into the state before it was given up; equal on all ranks."""

    def load(self, state: TrainingState, seed: int) -> Loaded | None:
        """Fills `state` in place. None, with `state` spoilt, when no step can be loaded.

        Raises TrainerExit DATA_MISMATCH when the newest step belongs to another training.
        """
        control = self._readers.all
        while True:
            began = time.monotonic()
            # Only rank 0 lists: storage may show the others another newest step.
            manifest = control.first_rank_does(self._newest)
            if manifest is None:
                return None
            ground = self._restore(manifest, state, seed)
            told = control.collect((ground.problem, ground.read_bytes))
            problems = [problem for problem, _ in told if problem]
            self.spoilt = bool(problems)
            if not problems:
                same = manifest.world_size == control.world_size
                return Loaded(manifest, same, sum(size for _, size in told), time.monotonic() - began)
            control.first_rank_does(partial(self._reject, layout.step_folder(manifest.step), problems[0]))

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

    def _restore(self, manifest: Manifest, state: TrainingState, seed: int) -> Ground:
        control, verify = self._readers.all, self._readers.verify
        folder = layout.step_folder(manifest.step)
        ground = Ground(self._storage, folder, self._readers.node, check=verify != "size")
        if verify == "all":
            for written in manifest.files[control.rank :: control.world_size]:
                ground.trusting(written.name, partial(verify_file, self._storage, folder, written))
        wanted = [Wanted(name, local_shard(tensor)) for name, tensor in named_tensors(state)]
        stored = self._index(ground, manifest, wanted)
        if any(ground.node.collect(ground.problem)):
            return ground
        for want in wanted:
            if want.name not in stored:
                raise TrainerExit(ExitCode.DATA_MISMATCH, f"{folder} has no tensor {want.name}")
        fill(ground, wanted, stored)
        if manifest.world_size != control.world_size:
            seed_random_state(seed, manifest.step, control.rank)
        elif not ground.problem:
            host = self._host_state(ground, control.rank, manifest.files)
            if host is not None:
                set_random_state(host)
        return ground

    def _index(
        self, ground: Ground, manifest: Manifest, wanted: list[Wanted]
    ) -> dict[str, list[StoredPiece]]:
        """The pieces that this rank may need, by tensor. A rank that left off with the same layout finds its
        own in its own file; only where that is not all does the node read the other headers, each once.
        """
        files = [written for written in manifest.files if written.covers == "header"]
        rank, node = self._readers.all.rank, ground.node
        same = manifest.world_size == self._readers.all.world_size
        same = same and manifest.layout == self._training.layout
        own = {layout.tensor_file(rank)} if same else set()
        pieces = read_headers(ground, [written for written in files if written.name in own])
        if not node.most(not covered(wanted, by_name(pieces)))[0]:
            return by_name(pieces)
        known = {layout.tensor_file(node.base + local) for local in range(node.world_size)} if same else set()
        others = [written for written in files if written.name not in known]
        pieces += read_headers(ground, others[node.rank :: node.world_size])
        return by_name([piece for found in node.collect(pieces) for piece in found])

    def _host_state(self, ground: Ground, rank: int, files: tuple[Written, ...]) -> dict[str, object] | None:
        written = next(entry for entry in files if entry.name == layout.host_file(rank))
        path = f"{ground.folder}/{written.name}"

        def read() -> dict[str, object]:
            data = self._storage.read(path)
            ground.read_bytes += len(data)
            if hashlib.sha256(data).hexdigest() != written.sha256:
                raise Damaged(path, "its digest is wrong")
            return json.loads(data)["random"]  # type: ignore[no-any-return]

        return ground.trusting(path, read)


def read_pieces(storage: Storage, folder: str, files: tuple[Written, ...]) -> dict[str, list[StoredPiece]]:
    """All pieces of a step by tensor name, from the verified headers of its files. Raises Damaged."""
    ground = Ground(storage, folder, Control(0, 1))
    pieces = read_headers(ground, [written for written in files if written.covers == "header"])
    if ground.problem:
        path, _, why = ground.problem.partition(": ")
        raise Damaged(path, why)
    return by_name(pieces)

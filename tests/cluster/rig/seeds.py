"""Unpacked images that all nodes of all rigs share.

The seed is the root folder of a containerd that holds images, and grows: of a changed image only the changed
layers are unpacked. A node's own root is a copy of the seed's small databases with symbolic links to its
layers, which nobody ever writes to; so a node with 5 GB of images takes milliseconds and no disk.
Layers are removed only when no rig uses the seed.
"""

import fcntl
import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import node_files, paths
from .console import say
from .ground import IsolatedGround
from .node_files import NodePlan
from .runtime import Runtime
from .storage import StoredImage
from .versions import CONTAINERD

FOLDER = "seeds"
LAYERS = Path("io.containerd.snapshotter.v1.overlayfs/snapshots")


@dataclass(frozen=True)
class Seed:
    """The seed below `folder`; one per containerd version, as its databases may differ."""

    folder: Path

    @property
    def root(self) -> Path:
        """containerd's root folder."""
        return self.folder / f"containerd-{CONTAINERD}"

    def contents(self) -> dict[str, str]:
        """Which image (its identity) each name means in the seed."""
        with suppress(FileNotFoundError):
            return dict(json.loads((self.root / "contents.json").read_text()))
        return {}

    def record(self, contents: dict[str, str]) -> None:
        """Remember the contents."""
        partial = self.root / "contents.partial"
        partial.write_text(json.dumps(contents))
        partial.rename(self.root / "contents.json")


def provide(
    ground: IsolatedGround, binaries: dict[str, Path], images: list[StoredImage], plans: Iterable[NodePlan]
) -> IO[str]:
    """Fill the stores of these nodes, whose containerds have not started yet, with these images.

    The layers stay until the file that is returned is closed."""
    seed = Seed(paths.cache() / FOLDER)
    seed.root.mkdir(parents=True, exist_ok=True)
    wanted = {image.full_name: image.identity for image in images}
    with (seed.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        use = (seed.folder / ".use").open("w")
        try:
            if not wanted.items() <= seed.contents().items():
                _grow(ground, binaries, images, seed, alone=_is_alone(use))
            fcntl.flock(use, fcntl.LOCK_SH)
            for plan in plans:
                _link(seed.root, plan.store)
        except BaseException:
            use.close()
            raise
    return use


def _is_alone(use: IO[str]) -> bool:
    """Whether no other rig uses the seed now. (None can begin to: we hold the lock.)"""
    try:
        fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _link(root: Path, store: Path) -> None:
    """Copy everything but the layers, and link those."""

    def layers(folder: str, names: list[str]) -> list[str]:
        return names if Path(folder) == root / LAYERS else []

    shutil.copytree(root, store, symlinks=True, ignore=layers)
    for layer in (root / LAYERS).iterdir() if (root / LAYERS).exists() else ():
        place = store / LAYERS / layer.name
        (place / "work").mkdir(parents=True)
        (place / "fs").symlink_to(layer / "fs")


def _grow(
    ground: IsolatedGround, binaries: dict[str, Path], images: list[StoredImage], seed: Seed, *, alone: bool
) -> None:
    """Run a containerd on the seed and load the images; when alone, forget everything else."""
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix=".growing-", dir=seed.folder))
    plan = NodePlan(f"seed-{scratch.name[-8:]}", 0, scratch, ground.pod_range)
    try:
        plan.store.symlink_to(seed.root)
        node_files.write_runtime(plan, binaries)
        ground.run(["mkdir", "-p", str(plan.run)])
        runtime = Runtime(ground, plan, binaries["ctr"])
        process = runtime.start()
        for image in images:
            runtime.load(image)
            # Under a second name, so that it outlives its first one, which the next change of code takes away.
            runtime.tag(image.full_name, _kept(image))
        contents = seed.contents() | {image.full_name: image.identity for image in images}
        if alone:
            contents = {image.full_name: image.identity for image in images}
            _forget(runtime, images)
        process.terminate()
        seed.record(contents)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    say(f"unpacked {', '.join(image.name for image in images)} in {time.monotonic() - began:.0f} s")


def _forget(runtime: Runtime, images: list[StoredImage]) -> None:
    # containerd itself keeps each image under the digest of its configuration too.
    wanted = {name for image in images for name in (image.full_name, image.identity, _kept(image))}
    for name in runtime.image_names() - wanted:
        runtime.remove(name)
    runtime.collect()


def _kept(image: StoredImage) -> str:
    return f"rerail.dev/kept:{image.identity[-16:]}"

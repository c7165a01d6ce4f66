"""Unpacked images that all nodes of all rigs share by hard links.

A seed is the root folder of a containerd that holds a set of images. A node's own root is a copy of it by hard
links (layers are never written to; only the small databases are true copies), so a node with 5 GB of images
takes a second and no disk. The seed for a changed image grows from an older seed: only changed layers are unpacked.
"""

import fcntl
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import node_files, paths
from .console import say
from .ground import IsolatedGround, run
from .node_files import NodePlan
from .runtime import Runtime
from .storage import StoredImage
from .versions import CONTAINERD

FOLDER = "seeds"
_KEPT = 2


def provide(
    ground: IsolatedGround, binaries: dict[str, Path], images: list[StoredImage], plans: Iterable[NodePlan]
) -> None:
    """Fill the stores of these nodes, whose containerds have not started yet, with these images."""
    with _lock() as folder:
        words = sorted(f"{image.full_name} {image.identity}" for image in images)
        key = hashlib.sha256("\n".join([CONTAINERD, *words]).encode()).hexdigest()[:12]
        seed = folder / key
        if not seed.exists():
            _grow(ground, binaries, images, seed)
        seed.touch()  # so that the seeds in use are the last to go
        for plan in plans:
            _link(seed, plan.store)
        for old in _by_age(folder)[:-_KEPT]:
            shutil.rmtree(old)


@contextmanager
def _lock() -> Iterator[Path]:
    folder = paths.cache() / FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _by_age(folder: Path) -> list[Path]:
    seeds = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(seeds, key=lambda path: path.stat().st_mtime)


def _link(seed: Path, store: Path) -> None:
    """A database that two containerds wrote to would be a broken one."""
    run(["cp", "-al", str(seed), str(store)])
    for database in store.rglob("*.db"):
        copy = database.with_suffix(".copy")
        shutil.copy2(database, copy)
        copy.rename(database)


def _grow(ground: IsolatedGround, binaries: dict[str, Path], images: list[StoredImage], seed: Path) -> None:
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix=".growing-", dir=seed.parent))
    plan = NodePlan(f"seed-{scratch.name[-8:]}", 0, scratch, ground.pod_range)
    try:
        if older := _by_age(seed.parent):
            _link(older[-1], plan.store)
        node_files.write_runtime(plan, binaries)
        ground.run(["mkdir", "-p", str(plan.run)])
        runtime = Runtime(ground, plan, binaries["ctr"])
        process = runtime.start()
        for image in images:
            runtime.load(image)
        # containerd keeps each image under its name and under the digest of its configuration.
        wanted = {name for image in images for name in (image.full_name, image.identity)}
        for name in runtime.image_names() - wanted:
            runtime.remove(name)
        runtime.collect()
        process.terminate()
        plan.store.rename(seed)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    say(f"unpacked {', '.join(image.name for image in images)} in {time.monotonic() - began:.0f} s")

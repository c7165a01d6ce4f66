"""Where the rig keeps things: always outside the checkout."""

import os
import tempfile
from pathlib import Path

RIG = Path(__file__).resolve().parent
TOOLS = RIG.parent / "tools"
OWN = RIG.parent  # our own small programs: pause and probe
CHECKOUT = RIG.parents[2]


def cache() -> Path:
    """The cache of the machine: `RERAIL_CACHE`, else `rerail` in the user's cache folder."""
    if named := os.environ.get("RERAIL_CACHE"):
        folder = Path(named)
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rerail"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def fast_folder(prefix: str) -> Path:
    """A fresh folder for small files and etcd, in memory where the machine offers that."""
    memory = Path("/dev/shm")
    parent = str(memory) if os.access(memory, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def disk_folder(name: str) -> Path:
    """A folder on the cache's own file system, so that cached images can be hard-linked into it."""
    folder = cache() / "rigs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder

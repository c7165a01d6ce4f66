"""Builds the rig's binaries once per version and finds them again.

A binary lives in `CACHE/bin/TOOL-VERSION-DIGEST/TOOL`. The digest covers go.mod, go.sum, our own Go
files and the linker's stamps, so a changed pin is a new folder and an old one is never overwritten.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import paths
from .console import say
from .errors import CommandFailed, Missing
from .versions import TOOLS, Tool

_LINKER = "-s -w"


def source_folder(tool: Tool) -> Path:
    """The Go module that pins this tool."""
    return paths.OWN / tool.module if tool.module in {"pause", "probe"} else paths.TOOLS / tool.module


def digest(tool: Tool) -> str:
    """12 hex digits that change with anything that changes the binary (the Go release excepted)."""
    content = hashlib.sha256()
    folder = source_folder(tool)
    for name in sorted(p.name for p in folder.iterdir() if p.suffix in {".go", ".mod", ".sum"}):
        content.update(name.encode() + b"\0" + (folder / name).read_bytes() + b"\0")
    content.update("\0".join((tool.package, _LINKER, *tool.stamps)).encode())
    return content.hexdigest()[:12]


def location(name: str) -> Path:
    """Where this binary is, or will be once built."""
    tool = TOOLS[name]
    return paths.cache() / "bin" / f"{name}-{tool.version}-{digest(tool)}" / name


def ensure(names: Iterable[str]) -> dict[str, Path]:
    """The paths of these binaries, built first where they are missing. Two builders never collide.

    Raises Missing without Go, CommandFailed with the compiler's words when a build fails."""
    wanted = {name: location(name) for name in names}
    if all(path.exists() for path in wanted.values()):
        return wanted
    with _lock():
        for name, path in wanted.items():
            if not path.exists():  # somebody else may have built it while we waited
                _build(TOOLS[name], path)
    return wanted


@contextmanager
def _lock() -> Iterator[None]:
    folder = paths.cache() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is running on this machine; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(tool: Tool, target: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise Missing(
            f"Go 1.26 or newer is needed to build {tool.name}: install it from go.dev/dl and put it on PATH"
        )
    say(f"building {tool.name} {tool.version} ...")
    started = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent.parent))
    try:
        stamps = " ".join(f"-X {stamp}" for stamp in tool.stamps)
        flags = f"{_LINKER} {stamps}".strip()
        argv = ["nice", "-n", "5", go, "build", "-trimpath", "-ldflags", flags]
        argv += ["-o", str(scratch / tool.name), tool.package]
        done = subprocess.run(
            argv, cwd=source_folder(tool), env=_environment(), capture_output=True, text=True
        )
        if done.returncode != 0:
            raise CommandFailed(argv, done.returncode, done.stdout, done.stderr)
        shutil.rmtree(target.parent, ignore_errors=True)
        scratch.rename(target.parent)
        target.parent.chmod(0o755)  # mkdtemp made it private; containers and other users read it too
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    size = target.stat().st_size / 2**20
    say(f"built {tool.name} in {time.monotonic() - started:.0f} s ({size:.0f} MiB): {target}")


def _environment() -> dict[str, str]:
    # Static binaries, nothing of the checkout stamped in, nothing of the user's workspace mixed in.
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}

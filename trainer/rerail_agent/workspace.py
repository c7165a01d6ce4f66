"""Folders of one round: fresh for its ranks, gone before the next."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

from rerail_api.contract import ADVICE_CHECKPOINT_SECONDS

QUICK_SECONDS = 0.01
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - named on purpose: what dead ranks leave there is memory lost


class NoWorkspace(Exception):
    """No folder for temporary files can be written; the message says which were tried."""


class Workspace:
    """The agent's own folder with one folder per round in it."""

    def __init__(self, in_container: bool, shared_memory: Path = SHARED_MEMORY) -> None:
        """`in_container`: only this job writes to /dev/shm, so what its user left there is ours to remove."""
        self._in_container = in_container
        self._shared_memory = shared_memory
        self._base = _make_base(shared_memory)
        self._round = self._base / "round-0"

    @property
    def tmp(self) -> Path:
        """TMPDIR of the ranks."""
        return self._round / "tmp"

    @property
    def progress(self) -> Path:
        """The file to which ranks append progress lines."""
        return self._round / "progress.jsonl"

    @property
    def advice(self) -> Path:
        """What the operator would have the ranks do, as JSON; renewed while they run."""
        return self._round / "advice.json"

    @property
    def error_file(self) -> Path:
        """Where torchrun writes what went wrong."""
        return self._round / "error.json"

    def renew(self, number: int) -> None:
        """Folders of a round; raises OSError when they cannot be made. No earlier round may be alive."""
        self.clean()
        self._round = self._base / f"round-{number}"
        self.tmp.mkdir(parents=True)
        self.progress.touch()

    def advise(self, checkpoint_seconds: int) -> None:
        """Write the advice so that a reader sees the old or the new, never half of it; raises OSError."""
        content = json.dumps({ADVICE_CHECKPOINT_SECONDS: checkpoint_seconds or None})
        fresh = self.advice.with_suffix(".new")
        fresh.write_text(content + "\n", encoding="ascii")
        fresh.replace(self.advice)

    def clean(self) -> None:
        """Remove what earlier rounds left."""
        for left in _entries(self._base):
            _remove(Path(left.path))
        if self._in_container:
            self._clean_shared_memory()

    def remove(self) -> None:
        """At the end of the agent; shared memory ends with the pod."""
        _remove(self._base)

    def _clean_shared_memory(self) -> None:
        for entry in _entries(self._shared_memory):
            try:
                ours = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
            except OSError:
                continue
            if ours and Path(entry.path) != self._base:
                _remove(Path(entry.path))


class Cleaner:
    """Removes what a round has left in a thread, for a large cache must not stop the heartbeat."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._thread: threading.Thread | None = None

    def done(self) -> bool:
        """Begins where it has not; whether all is removed, which the next call begins anew."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._workspace.clean, name="cleaner", daemon=True)
            self._thread.start()
            self._thread.join(QUICK_SECONDS)
        if self._thread.is_alive():
            return False
        self._thread = None
        return True


def _make_base(shared_memory: Path) -> Path:
    tried = []
    for parent in (None, str(shared_memory)):
        # None: TMPDIR and the usual folders. A read-only root file system leaves the memory-backed one.
        try:
            return Path(tempfile.mkdtemp(prefix="rerail-", dir=parent))
        except OSError as error:
            tried.append(str(error))
    raise NoWorkspace("no folder for temporary files can be written: " + "; ".join(tried))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink()
    except OSError:
        return

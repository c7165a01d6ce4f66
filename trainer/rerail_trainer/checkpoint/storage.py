"""Where checkpoints lie, behind a small protocol. POSIX first: a local disk, or a shared volume."""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol


class Storage(Protocol):
    """Paths are relative to the root, with "/" between parts. Failures are OSError,
    as the system names them.
    """

    root: str

    def make_folder(self, path: str) -> None:
        """Makes one folder. FileExistsError if it is there, FileNotFoundError if its parent is not."""

    def write(self, path: str, pieces: Iterable[bytes | memoryview]) -> int:
        """Writes a new file and makes it durable; bytes written. Never makes a parent."""

    def replace(self, path: str, data: bytes) -> None:
        """Puts `data` at `path` so that a reader sees the old or the new content, never a part; durable."""

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `start`, or all that is there."""

    def size(self, path: str) -> int:
        """Bytes in a file."""

    def names(self, path: str) -> list[str]:
        """Names in a folder, sorted; empty when the folder is not there."""

    def rename(self, source: str, target: str) -> None:
        """Moves a folder or file in one act and makes that durable. The target must not hold anything."""

    def remove(self, path: str) -> None:
        """Removes a file, durably; no matter if it was not there."""

    def remove_folder(self, path: str) -> None:
        """Removes a folder and what is in it, as far as that goes."""

    def beat(self, path: str) -> None:
        """Marks a file as touched now."""

    def last_beat(self, path: str) -> float:
        """When a file was touched, by the storage's own clock, in seconds."""


def open_storage(root: str) -> Storage:
    """A folder of this machine, or an object store where `root` is a URL such as s3://bucket/path.

    Raises BadConfig for a URL without its driver.
    """
    if is_url(root):
        from .objects import ObjectStorage

        return ObjectStorage(root)
    return PosixStorage(root)


def is_url(root: str) -> bool:
    return "://" in root


class PosixStorage:
    """A folder of a file system with atomic rename (local disks, NFS, parallel file systems)."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def make_folder(self, path: str) -> None:
        os.mkdir(self._at(path))
        self._sync_folder(os.path.dirname(self._at(path)))

    def write(self, path: str, pieces: Iterable[bytes | memoryview]) -> int:
        written = 0
        with open(self._at(path), "xb", buffering=0) as file:
            for piece in pieces:
                view = memoryview(piece)
                while len(view):
                    count = file.write(view)
                    view = view[count:]
                    written += count
            os.fsync(file.fileno())
        return written

    def replace(self, path: str, data: bytes) -> None:
        fresh = f"{path}.new-{os.getpid()}"
        with suppress(FileNotFoundError):
            os.unlink(self._at(fresh))
        try:
            self.write(fresh, [data])
            os.replace(self._at(fresh), self._at(path))
        except OSError:
            with suppress(OSError):
                os.unlink(self._at(fresh))
            raise
        self._sync_folder(os.path.dirname(self._at(path)))

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        with open(self._at(path), "rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)

    def size(self, path: str) -> int:
        return os.stat(self._at(path)).st_size

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self._at(path)))
        except FileNotFoundError:
            return []

    def rename(self, source: str, target: str) -> None:
        self._sync_folder(self._at(source))
        os.rename(self._at(source), self._at(target))
        for folder in {os.path.dirname(self._at(source)), os.path.dirname(self._at(target))}:
            # A newer round may have taken the source's folder away by now; the rename has happened all the
            # same.
            with suppress(FileNotFoundError):
                self._sync_folder(folder)

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._at(path))
            self._sync_folder(os.path.dirname(self._at(path)))

    def remove_folder(self, path: str) -> None:
        shutil.rmtree(self._at(path), ignore_errors=True)

    def beat(self, path: str) -> None:
        os.utime(self._at(path))

    def last_beat(self, path: str) -> float:
        return os.stat(self._at(path)).st_mtime

    def _at(self, path: str) -> str:
        return str(Path(self.root, path)) if path else self.root

    @staticmethod
    def _sync_folder(path: str) -> None:
        if not os.path.isdir(path):
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

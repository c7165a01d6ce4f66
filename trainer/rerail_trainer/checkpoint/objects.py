"""Checkpoints in an object store, by fsspec: the same folder protocol where nothing can be renamed.

A folder is a number of objects under `.folders/<id>/`, and its name is one small object, the link, which
holds that id: `step-00001200.folder` at the root is the step. So what a rename does on a file system is one
put here: **a step is committed by the put of its link**, after every other object of it is durable, and it is
taken out by deleting that link first.

What the rename of a file system gives besides, the fence, two rules replace. A put of a link creates only
(the store's own If-None-Match where it has one), so a left-over process never replaces what a newer round
wrote. And what such a process commits late, after a newer round has listed, lies beyond the step that the
newer round's record names, and does not count (rounds.outdated). A crash between the two halves of a rename
leaves two links to one folder: removing one of them spares the objects as long as the root still points at
them.
"""

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from rerail_trainer.failures import BadConfig

T = TypeVar("T")

FOLDERS = ".folders"
LINK = ".folder"
BEAT = ".beat"
_CHUNK_BYTES = 16 * 1024 * 1024


class ObjectStorage:
    """A Storage at a URL such as s3://bucket/path. Raises BadConfig where fsspec or its driver is missing."""

    def __init__(self, url: str) -> None:
        self.root = url.rstrip("/")
        self._fs, self._base = _open(self.root)

    def make_folder(self, path: str) -> None:
        parent, name = _split(path)
        self._create(self._object(parent, name + LINK), _new_id(name))

    def write(self, path: str, pieces: Iterable[bytes | memoryview]) -> int:
        parent, name = _split(path)
        target, written = self._object(parent, name), 0
        with _as_os_errors(path), self._fs.open(target, "wb") as stream:
            for piece in pieces:
                view = memoryview(piece)
                for begin in range(0, len(view), _CHUNK_BYTES):
                    written += stream.write(bytes(view[begin : begin + _CHUNK_BYTES]))
        return written

    def replace(self, path: str, data: bytes) -> None:
        parent, name = _split(path)
        with _as_os_errors(path):
            self._fs.pipe_file(self._object(parent, name), data)

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        parent, name = _split(path)
        if length == 0:
            return b""
        with _as_os_errors(path):
            end = None if length is None else start + length
            return bytes(self._fs.cat_file(self._object(parent, name), start=start, end=end))

    def size(self, path: str) -> int:
        parent, name = _split(path)
        with _as_os_errors(path):
            return int(self._fs.size(self._object(parent, name)))

    def names(self, path: str) -> list[str]:
        try:
            found = self._entries(self._prefix(path))
        except FileNotFoundError:
            return []
        return sorted({name.removesuffix(LINK) for name in found})

    def rename(self, source: str, target: str) -> None:
        """Moves a folder. Between its two halves both names are there, which no reader minds."""
        from_parent, from_name = _split(source)
        to_parent, to_name = _split(target)
        old = self._object(from_parent, from_name + LINK)
        with _as_os_errors(source):
            identity = self._fs.cat_file(old)
        self._create(self._object(to_parent, to_name + LINK), identity)
        self._delete(old)

    def remove(self, path: str) -> None:
        parent, name = _split(path)
        with suppress(FileNotFoundError):
            self._delete(self._object(parent, name))

    def remove_folder(self, path: str) -> None:
        parent, name = _split(path)
        with suppress(OSError):
            link = self._object(parent, name + LINK)
            identity = self._target(link)
            self._delete(link)
            self._erase(identity)

    def beat(self, path: str) -> None:
        # An object of its own: only its time matters, and rewriting the record could undo another's write.
        self.replace(path + BEAT, b"")

    def last_beat(self, path: str) -> float:
        parent, name = _split(path)
        for beaten in (name + BEAT, name):
            with suppress(FileNotFoundError), _as_os_errors(path):
                return float(self._fs.modified(self._object(parent, beaten)).timestamp())
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _erase(self, identity: str) -> None:
        """Removes a folder's objects, and folders in it, unless the root has a name for them."""
        if identity in self._named_at_root():
            return
        prefix = f"{self._base}/{FOLDERS}/{identity}"
        for name in self._entries(prefix):
            if name.endswith(LINK):
                inner = self._target(f"{prefix}/{name}")
                self._delete(f"{prefix}/{name}")
                self._erase(inner)
            else:
                self._delete(f"{prefix}/{name}")

    def _named_at_root(self) -> set[str]:
        links = [name for name in self._entries(self._base) if name.endswith(LINK)]
        found = set()
        for link in links:
            with suppress(FileNotFoundError):
                found.add(self._target(f"{self._base}/{link}"))
        return found

    def _prefix(self, folder: str) -> str:
        """Where the objects of a folder lie. FileNotFoundError when one of its names is not there."""
        prefix = self._base
        for name in folder.split("/") if folder else ():
            prefix = f"{self._base}/{FOLDERS}/{self._target(f'{prefix}/{name}{LINK}')}"
        return prefix

    def _object(self, folder: str, name: str) -> str:
        return f"{self._prefix(folder)}/{name}"

    def _target(self, link: str) -> str:
        with _as_os_errors(link):
            return bytes(self._fs.cat_file(link)).decode()

    def _entries(self, prefix: str) -> list[str]:
        with _as_os_errors(prefix):
            try:
                found = self._fs.ls(prefix, detail=False)
            except FileNotFoundError:
                return []  # a prefix without any object
        names = [str(entry).rstrip("/").rpartition("/")[2] for entry in found]
        return [name for name in names if name and name not in (FOLDERS, prefix.rpartition("/")[2])]

    def _create(self, target: str, identity: str | bytes) -> None:
        data = identity.encode() if isinstance(identity, str) else identity
        with _as_os_errors(target):
            self._fs.pipe_file(target, data, mode="create")

    def _delete(self, target: str) -> None:
        with _as_os_errors(target):
            self._fs.rm_file(target)


def _open(url: str) -> tuple[Any, str]:
    """The file system behind a URL, and the path in it."""
    try:
        import fsspec
    except ImportError as error:
        raise BadConfig(f"checkpoint.dir={url} needs fsspec: pip install fsspec") from error
    try:
        # No cached listings: other processes write here. No shared instances: they do not survive a fork.
        file_system, path = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except (ImportError, ValueError) as error:
        raise BadConfig(f"checkpoint.dir={url} cannot be opened: {error}; s3:// needs s3fs: "
                        "pip install s3fs") from error  # fmt: skip
    if getattr(file_system, "auto_mkdir", None) is False:
        file_system.auto_mkdir = True  # file://: objects have no folders that somebody would make first
    return file_system, str(path).rstrip("/")


def _split(path: str) -> tuple[str, str]:
    parent, _, name = path.rpartition("/")
    return parent, name


def _new_id(name: str) -> str:
    """Readable for whoever looks into the bucket, and never used twice."""
    return f"{name.strip('.')}-{secrets.token_hex(8)}"


@contextmanager
def _as_os_errors(path: str) -> Iterator[None]:
    """What a driver raises, as OSError: a store that cannot be reached is no damaged file (not EIO)."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EREMOTEIO, f"{type(error).__name__}: {error}", path) from error

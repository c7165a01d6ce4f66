"""The process beside a rank that brings saves to storage while training goes on. It never imports torch.

It is told what to do over a socket: one line per order, whose text lies in an anonymous file, so that telling
never waits for this process. The bytes to be saved lie in another such file, which it maps. It answers in
lines of JSON. It lives as long as its rank and no longer: signals that ask the rank to stop pass it by, and
when the rank has gone it ends at once, whatever it is doing.
"""

import ctypes
import errno
import hashlib
import json
import mmap
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from rerail_trainer.environment import JobIdentity
from rerail_trainer.failures import Superseded, TrainerExit

from . import layout, ownership
from .committed import commit, prune, superseded
from .manifest import Author, Manifest
from .points import SavePoint
from .rounds import Tenure
from .storage import Storage, open_storage
from .tensorfile import Part, Written, write_tensor_file

GO = b"go\n"
"""What the rank says after a point of a save that it wanted to hear of."""
_PR_SET_PDEATHSIG = 1
_NICENESS = 5
"""On a machine that is short of cores training goes first."""


class Desk:
    """Where orders come in and replies go out. A thread reads, so that the rank's end is never missed."""

    def __init__(self, line: socket.socket, texts: int, memory: int) -> None:
        self._line, self._texts, self._memory = line, texts, memory
        self._orders: queue.Queue[tuple[int, int]] = queue.Queue()
        self._go: queue.Queue[None] = queue.Queue()
        self._map: mmap.mmap | None = None
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def next(self) -> dict[str, Any]:
        """Waits for an order."""
        begin, length = self._orders.get()
        return json.loads(os.pread(self._texts, length, begin))  # type: ignore[no-any-return]

    def reply(self, **values: Any) -> None:
        try:
            self._line.sendall(json.dumps(values).encode() + b"\n")
        except OSError:
            os._exit(0)  # the rank has gone

    def reached(self, step: int, point: SavePoint) -> None:
        """Tells of a point in the save of `step` and waits until the rank says go."""
        self.reply(point=point.value, step=step)
        self._go.get()

    def memory(self, size: int) -> memoryview:
        """The first `size` bytes of what the rank has filled, read only."""
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self._memory, size, prot=mmap.PROT_READ) if size else None
        return memoryview(self._map)[:size] if self._map is not None else memoryview(b"")

    def _read(self) -> None:
        for words in self._line.makefile("rb"):
            if words == GO:
                self._go.put(None)
            else:
                begin, length = words.split()
                self._orders.put((int(begin), int(length)))
        os._exit(0)


class Scribe:
    """Carries out orders, one after the other."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._storages: dict[str, Storage] = {}

    def carry_out(self, order: dict[str, Any]) -> None:
        """Whatever goes wrong is a reply: this process goes on."""
        name = order["do"]
        tenure = _tenure(order["tenure"])
        reached = partial(self._desk.reached, order["step"]) if order["observed"] else _unseen
        try:
            storage = self._open(order["root"])
            if name == "write":
                self._write(storage, order, reached)
            elif name == "commit":
                self._commit(storage, tenure, order, reached)
            else:
                storage.remove_folder(order["folder"])
                self._desk.reply(done=name)
        except Superseded as refusal:
            self._desk.reply(failed=name, reason="superseded", text=refusal.message)
        except FileNotFoundError as error:
            if self._fenced_out(tenure, order["root"]):
                text = superseded(tenure, order["step"]).message
                self._desk.reply(failed=name, reason="superseded", text=text)
            else:
                self._desk.reply(failed=name, **_told(error))
        except OSError as error:
            self._desk.reply(failed=name, **_told(error))
        except Exception as error:  # noqa: BLE001 - a save that fails must not take the next one with it
            traceback.print_exc()
            self._desk.reply(failed=name, reason="writer", text=f"{type(error).__name__}: {error}")

    def _write(self, storage: Storage, order: dict[str, Any], reached: Callable[[SavePoint], None]) -> None:
        with suppress(FileExistsError):  # another rank was first
            storage.make_folder(order["folder"])
        reached(SavePoint.FOLDER_MADE)
        memory = self._desk.memory(order["size"])
        parts = [_part(fields) for fields in order["parts"]]
        values = [memory[at : at + part.bytes] for part, at in zip(parts, order["places"], strict=True)]
        rank, folder = order["rank"], order["folder"]
        tensors = write_tensor_file(storage, f"{folder}/{layout.tensor_file(rank)}", parts, values)
        reached(SavePoint.TENSORS_WRITTEN)
        host = write_host_file(storage, f"{folder}/{layout.host_file(rank)}", order["host"])
        reached(SavePoint.FILES_WRITTEN)
        self._desk.reply(done="write", files=[vars(tensors), vars(host)])

    def _commit(
        self, storage: Storage, tenure: Tenure, order: dict[str, Any], reached: Callable[[SavePoint], None]
    ) -> None:
        author, body = tenure.author, order["manifest"]
        if not ownership.still_ours(storage, JobIdentity(author.job, author.uid), author.round):
            raise Superseded(f"{storage.root} was claimed by another job or a newer round: not saved")
        files = tuple(Written(**fields) for fields in body.pop("files"))
        manifest = Manifest(**body, time=time.time(), author=author, files=files)
        storage.write(f"{order['folder']}/{layout.MANIFEST}", [manifest.encode()])
        reached(SavePoint.MANIFEST_WRITTEN)
        commit(storage, tenure, order["folder"], manifest)
        reached(SavePoint.COMMITTED)
        self._desk.reply(done="commit", time=manifest.time, clock=time.monotonic())
        taken_out = partial(reached, SavePoint.TAKEN_OUT)
        problem = self._prune(storage, tenure, order["retention"], taken_out)
        reached(SavePoint.PRUNED)
        self._desk.reply(done="prune", text=problem)

    def _prune(
        self, storage: Storage, tenure: Tenure, retention: list[int], taken_out: Callable[[], None]
    ) -> str:
        """Removes what retention lets go; why not, where that failed."""
        try:
            keep, keep_every = retention
            prune(storage, tenure, keep, keep_every, taken_out)
        except FileNotFoundError:
            return ""  # a newer round prunes now
        except OSError as error:
            return _told(error)["text"]
        except TrainerExit as error:
            return error.message
        return ""

    def _fenced_out(self, tenure: Tenure, root: str) -> bool:
        try:
            return not self._open(root).names(tenure.work)
        except OSError:
            return False

    def _open(self, root: str) -> Storage:
        if root not in self._storages:
            self._storages[root] = open_storage(root)
        return self._storages[root]


def write_host_file(storage: Storage, path: str, host: dict[str, Any]) -> Written:
    """Writes what a rank holds besides tensors, as JSON."""
    data = json.dumps(host, sort_keys=True).encode()
    size = storage.write(path, [data])
    return Written(path.rpartition("/")[2], size, hashlib.sha256(data).hexdigest(), covers="all")


def _unseen(point: SavePoint) -> None:
    """Nobody watches."""


def _part(fields: list[Any]) -> Part:
    name, shape, offset, sizes, kind = fields
    return Part(name, tuple(shape), tuple(offset), tuple(sizes), kind)


def _tenure(fields: dict[str, Any]) -> Tenure:
    return Tenure(Author(**fields["author"]), fields["work"], None)


def _told(error: OSError) -> dict[str, str]:
    where = f" ({error.filename})" if error.filename else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return {"reason": "full" if full else "storage", "text": f"{error.strerror or error}{where}"}


def _live_as_long_as(parent: int) -> None:
    """Ends this process when `parent` ends, by the kernel's hand where it offers that."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def main(words: Sequence[str]) -> None:
    """words: descriptors of the socket, the orders' texts and the memory; the rank's process id."""
    line, texts, memory, parent = (int(word) for word in words)
    _live_as_long_as(parent)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)
    desk = Desk(socket.socket(fileno=line), texts, memory)
    desk.reply(done="start")
    scribe = Scribe(desk)
    while True:
        scribe.carry_out(desk.next())


if __name__ == "__main__":
    main(sys.argv[1:])

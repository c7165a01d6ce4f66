"""The agent's own output: written without ever waiting for the reader."""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections import deque

BUFFER_BYTES = 1024 * 1024
# A pipe that polls writable takes this much without blocking (one free page), so that the descriptor need
# not be made non-blocking: that flag would be shared with every process that inherited the same pipe.
CHUNK_BYTES = 4096


class Sink:
    """Bytes to one descriptor; lines that do not fit in the buffer are dropped and counted."""

    def __init__(self, fd: int, limit: int = BUFFER_BYTES) -> None:
        self._fd = fd
        self._limit = limit
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watching = False
        self._broken = False

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on the loop carries on writing when the reader is slow."""
        self._loop = loop

    def write(self, lines: bytes) -> None:
        """Whole lines, to be written as soon as the reader takes them."""
        if self._broken or not lines:
            return
        if self._size + len(lines) > self._limit:
            self._dropped += lines.count(b"\n")
        else:
            self._push(lines)
        self._drain()

    def flush(self, seconds: float) -> None:
        """Wait for the reader at most that long; for the end of the process only."""
        deadline = time.monotonic() + seconds
        while self._size and not self._broken and (left := deadline - time.monotonic()) > 0:
            self._wait_writable(min(left, 0.1))
            self._drain()

    def _push(self, lines: bytes) -> None:
        if self._dropped:
            note = b"[rerail] the reader of this output is too slow: %d lines dropped\n" % self._dropped
            self._dropped = 0
            self._waiting.append(note)
            self._size += len(note)
        self._waiting.append(lines)
        self._size += len(lines)

    def _drain(self) -> None:
        try:
            while self._waiting and self._wait_writable(0.0):
                data = self._waiting.popleft()
                chunk = _whole_lines(data)
                written = os.write(self._fd, chunk)
                self._size -= written
                if written < len(data):
                    self._waiting.appendleft(data[written:])
        except BlockingIOError:
            self._waiting.appendleft(data)
        except OSError:
            # Nobody reads any more (EPIPE) or the disk is full: the ranks matter more than their log.
            self._broken, self._size = True, 0
            self._waiting.clear()
        self._watch(bool(self._waiting))

    def _wait_writable(self, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        return bool(poller.poll(seconds * 1000.0))

    def _watch(self, wanted: bool) -> None:
        if self._loop is None or wanted == self._watching:
            return
        try:
            if wanted:
                self._loop.add_writer(self._fd, self._drain)
            else:
                self._loop.remove_writer(self._fd)
            self._watching = wanted
        except OSError:
            # A plain file cannot be watched, and need not be: it always polls writable.
            self._watching = False


class Console:
    """The agent's own messages, one line each, on stderr."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def say(self, message: str) -> None:
        line = " ".join(message.split())
        self._sink.write(f"[rerail] {line}\n".encode("utf-8", "replace"))


def _whole_lines(data: bytes) -> bytes:
    """At most one chunk of `data`, ending at a line end where there is one: two sinks may share a pipe."""
    if len(data) <= CHUNK_BYTES:
        return data
    end = data.rfind(b"\n", 0, CHUNK_BYTES) + 1
    return data[: end or CHUNK_BYTES]

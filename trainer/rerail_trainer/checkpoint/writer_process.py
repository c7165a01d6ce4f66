"""The rank's end of its writer: start it, give orders, hear replies, and notice when it is gone.

No call here waits for the writer unless it says so: a writer that is stuck costs saves, never steps.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any

from .points import Observer, SavePoint
from .staging import anonymous_file
from .writer import GO

SIGNALS = {signal.SIGTERM, signal.SIGINT}
_READ_BYTES = 1 << 16
_END_SECONDS = 1.0
"""A killed process ends in less, unless it hangs in a dead file system."""


class WriterProcess:
    """One writer, and its successor where it dies. Started and restarted on the main thread only: the kernel
    ties the writer's life to the thread that started it.
    """

    def __init__(self, memory: int) -> None:
        self._memory, self._texts = memory, anonymous_file("rerail-orders")
        self._process: subprocess.Popen[bytes] | None = None
        self._former: list[subprocess.Popen[bytes]] = []
        self._line: socket.socket | None = None
        self._heard = b""
        self.observer: Observer | None = None
        """Told a point, its step and the writer's process id; the writer waits meanwhile."""
        self.death = ""
        """Why there is no writer; empty while there is one."""
        self._unanswered: set[str] = set()
        self._written = 0
        self.replies: dict[str, dict[str, Any]] = {}
        """The answer to each order since the last of its name, by that name."""

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Starts a writer in place of the one there was."""
        self.stop()
        self.replies, self.death, self._heard = {}, "", b""
        self._unanswered.clear()
        own, other = socket.socketpair()
        descriptors = (other.fileno(), self._texts, self._memory)
        command = [sys.executable, "-m", "rerail_trainer.checkpoint.writer", *map(str, descriptors)]
        # What asks this rank to stop must not reach the writer, not even while it starts: a blocked signal
        # stays blocked in a child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process = subprocess.Popen(
                [*command, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            self.death = f"its writer could not be started: {error.strerror}"
            own.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            other.close()
        if not self.death:
            own.setblocking(False)
            self._line = own

    def order(self, name: str, **values: Any) -> None:
        """Gives an order, to be carried out after those before; its answer will be in `replies` by `name`."""
        self.replies.pop(name, None)
        text = json.dumps({"do": name, "observed": self.observer is not None, **values}).encode()
        if not self._unanswered:  # so no order is still to be read
            os.ftruncate(self._texts, 0)
            self._written = 0
        os.pwrite(self._texts, text, self._written)
        self._say(f"{self._written} {len(text)}\n".encode())
        self._written += len(text)
        self._unanswered.add(name)

    def listen(self, seconds: float = 0.0) -> None:
        """Takes in what the writer has said; waits up to `seconds` for something."""
        if self._line is None:
            return
        waiting = select.poll()  # not select, which knows no descriptor above 1023
        waiting.register(self._line, select.POLLIN)
        waiting.poll(seconds * 1000)
        try:
            while data := self._line.recv(_READ_BYTES):
                self._heard += data
        except BlockingIOError:
            pass
        except OSError:
            self._bury()
        else:
            self._bury()
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def stop(self) -> None:
        """Ends the writer at once, whatever it is doing."""
        if self._line is not None:
            self._line.close()
            self._line = None
        self._former = [process for process in self._former if process.poll() is None]
        if self._process is not None:
            self._process.kill()
            # Not waited for: a process that hangs in a dead file system does not end.
            self._former.append(self._process)
            self._process = None

    def close(self) -> None:
        """Ends the writer, and waits a moment for it: whoever looks for what a rank left finds nothing."""
        process = self._process
        self.stop()
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)

    def _take(self, reply: dict[str, Any]) -> None:
        if "point" in reply:
            if self.observer is not None:
                self.observer(SavePoint(reply["point"]), reply["step"], self.pid)
            self._say(GO)
        else:
            name = reply.get("done") or reply["failed"]
            self.replies[name] = reply
            self._unanswered.discard(name)

    def _say(self, words: bytes) -> None:
        if self._line is not None:
            with suppress(OSError):
                self._line.send(words)

    def _bury(self) -> None:
        """The writer has hung up."""
        assert self._process is not None  # noqa: S101
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        code = self._process.returncode
        how = "hung up" if code is None else f"ended with {signal.Signals(-code).name if code < 0 else code}"
        self.death = f"its writer {how}"
        self.stop()

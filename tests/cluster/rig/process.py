"""One process of the rig: started detached, logging to a file, known by its pid."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .errors import RigError
from .lifeline import started

T = TypeVar("T")


@dataclass
class Process:
    """A started process. `pid` is its number as the host sees it, whatever namespace it lives in."""

    name: str
    argv: list[str]
    pid: int
    log: Path
    popen: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        """False as soon as it has ended."""
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to this process only; no error if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        if number in (signal.SIGCONT, signal.SIGKILL) and self.popen.pid != self.pid and self.alive:
            # nsenter stops itself when its child stops, and a stopped parent never hears of the child's end.
            self.popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone (a stopped process dies too)."""
        self.signal(signal.SIGKILL)
        self.popen.wait(timeout=20)

    def terminate(self) -> None:
        """SIGTERM, and wait until it has ended in its own way (20 s, then subprocess.TimeoutExpired)."""
        self.signal(signal.SIGTERM)
        self.popen.wait(timeout=20)

    def tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def start_detached(argv: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process in its own session with both outputs in `log` (appended)."""
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def only_child(pid: int, seconds: float = 5.0) -> int:
    """The pid of the one child of `pid`, as soon as it exists. Raises RigError where there is none in time."""

    def look() -> int | None:
        # A forking program may fork from a thread; ask them all.
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                if found := children.read_text().split():
                    return int(found[0])
        return None

    return until(look, seconds, f"process {pid} starts its child", lambda: started(pid) is None)


def until(
    look: Callable[[], T | None], seconds: float, what: str, hopeless: Callable[[], bool] = lambda: False
) -> T:
    """Poll `look` until it answers something true, and return that.

    Raises RigError after `seconds`, or at once when `hopeless()` says that it can never come."""
    deadline = time.monotonic() + seconds
    pause = 0.01
    while True:
        if found := look():
            return found
        if hopeless():
            raise RigError(f"waited in vain: {what} (it ended)")
        if time.monotonic() > deadline:
            raise RigError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)

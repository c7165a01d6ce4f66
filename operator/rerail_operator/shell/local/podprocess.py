"""One pod as a tree of processes: started, watched, asked to end, ended without a remainder."""

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from functools import partial
from pathlib import Path

from rerail_api.contract import LOG_LINES, Env
from rerail_operator.shell.clock import Clock
from rerail_operator.shell.local import podstatus, processes
from rerail_operator.shell.local.podspec import Start

LINE_BYTES = 64 * 1024


class PodProcess:
    """The agent of one pod and all that descends from it.

    The first process's end is the container's end: whatever else carries the pod's mark is killed with it.
    """

    def __init__(self, uid: str, log: Path, clock: Clock, on_line: Callable[[str], None]) -> None:
        self.uid = uid
        self._log = log
        self._clock = clock
        self._on_line = on_line
        self._tail: deque[str] = deque(maxlen=LOG_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._started: datetime = clock.now()

    @property
    def pid(self) -> int | None:
        """The agent's pid while it has one."""
        return self._process.pid if self._process else None

    @property
    def started(self) -> datetime:
        return self._started

    def members(self) -> list[int]:
        """All living processes of this pod."""
        return processes.marked(Env.POD_UID, self.uid)

    async def start(self, start: Start) -> None:
        """Start the agent. Raises OSError where its program cannot be run."""
        self._process = await asyncio.create_subprocess_exec(
            *start.argv,
            env=dict(start.env),
            cwd=start.cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A Ctrl-C at the terminal is for the runner alone; it then asks the pods itself.
            start_new_session=True,
        )
        self._started = self._clock.now()

    async def wait(self, termination_log: Path) -> podstatus.Ended:
        """Wait for the end of the agent; no process of the pod is alive afterwards."""
        assert self._process is not None  # noqa: S101 - start() came first
        reading = asyncio.create_task(self._read_output())
        code = await self._process.wait()
        await self.kill()
        await reading
        written = termination_log.read_text("utf-8", "replace") if termination_log.exists() else ""
        message = podstatus.termination_message(written, tuple(self._tail), failed=code != 0)
        return podstatus.Ended(code, message, self._started, self._clock.now())

    def terminate(self) -> None:
        """SIGTERM to the agent, as a kubelet sends it to a container's first process."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        """SIGKILL to everything that belongs to the pod, until nothing is left."""
        left = await processes.kill_all(partial(processes.marked, Env.POD_UID, self.uid))
        if left:
            self._on_line(f"processes {left} of this pod do not die")

    async def _read_output(self) -> None:
        assert self._process is not None and self._process.stdout is not None  # noqa: S101
        with self._log.open("a", encoding="utf-8", errors="replace") as log:
            async for line in lines_of(self._process.stdout):
                self._tail.append(line)
                log.write(line + "\n")
                log.flush()
                self._on_line(line)


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """The stream line by line, without its line ends; a line of any length is cut, never an error."""
    rest = b""
    while chunk := await stream.read(LINE_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        rest = rest[-LINE_BYTES:]
        for line in whole:
            yield line[:LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")

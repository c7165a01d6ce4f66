"""A real agent process, started from the zipapp as a container would."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rerail_agent.proctree import descendants
from tests.agent.coordinator import DEADLINE_SECONDS

POLL_SECONDS = 0.02


async def eventually(wanted: Callable[[], Any], what: str) -> Any:
    """The first truthy answer before the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (answer := wanted()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(POLL_SECONDS)
    return answer


class AgentProcess:
    """One agent; `folder` holds its token, its output and its termination message."""

    def __init__(self, pyz: Path, folder: Path) -> None:
        self.pyz = pyz
        self.folder = folder
        self.python = [sys.executable, "-I"]
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "RERAIL_COORDINATOR_TLS": "0",
            "RERAIL_TOKEN_FILE": str(folder / "token"),
            "RERAIL_TERMINATION_LOG": str(folder / "termination"),
            "RERAIL_JOB": "team/job",
            "RERAIL_JOB_UID": "uid-of-job",
            "RERAIL_POD": "job-0",
            "RERAIL_POD_UID": "uid-of-pod",
            "RERAIL_POD_IP": "127.0.0.1",
            "RERAIL_NPROC": "1",
            "RERAIL_LAUNCHER": "PerRank",
            "RERAIL_GRACE_SECONDS": "20",
        }
        (folder / "token").write_text("secret\n")
        (folder / "termination").touch()
        self._process: subprocess.Popen[bytes] | None = None
        self._output = folder / "output"

    def start(self, address: str, *command: str, **env: str) -> AgentProcess:
        """Start with a coordinator's address and the ranks' command."""
        full = {**self.env, "RERAIL_COORDINATOR": address, **env}
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [*self.python, str(self.pyz), "--", *command], env=full, stdout=output, stderr=output
            )
        return self

    def with_timing(self, **seconds: float) -> AgentProcess:
        """The same agent with other spans of time than those of the contract."""
        entry = self.folder / "entry.py"
        entry.write_text(
            "import sys\n"
            f"sys.path.insert(0, {str(self.pyz)!r})\n"
            "from rerail_agent.entry import main\n"
            "from rerail_agent.settings import Timing\n"
            f"sys.exit(main(sys.argv[1:], Timing(**{seconds!r})))\n"
        )
        self.pyz = entry
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def termination(self) -> dict[str, Any]:
        """The termination message, {} as long as there is none."""
        raw = (self.folder / "termination").read_bytes()
        assert len(raw) <= 4096
        return dict(json.loads(raw)) if raw else {}

    def signal(self, number: int) -> None:
        assert self._process is not None and self._process.poll() is None
        self._process.send_signal(number)

    def below(self) -> list[int]:
        """Every process below the agent."""
        return descendants(self.pid)

    def rank_pids(self) -> list[int]:
        """Children of the agent in the order of their start."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return sorted(int(pid) for pid in path.read_text().split())

    async def says(self, text: str) -> str:
        """The output once it holds this text."""
        return str(
            await eventually(lambda: text in (out := self.output()) and out, f"{text!r} in the output")
        )

    async def exit_code(self) -> int:
        process = self._process
        assert process is not None
        await eventually(lambda: process.poll() is not None, "the agent's exit")
        return process.returncode

    def clean_up(self) -> None:
        """Whatever a failed test has left."""
        if self._process is None or self._process.poll() is not None:
            return
        left = descendants(self._process.pid)
        self._process.kill()
        self._process.wait()
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

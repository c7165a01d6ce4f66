"""A small process that cleans up when its owner closes the pipe, or dies in any way whatsoever.

The owner writes one JSON line per thing to clean: `{"link": NAME}`, `{"pid": N, "started": "TICKS"}`,
`{"cgroup": PATH}`, `{"path": PATH}`. At `{"end": true}` or end of file everything is undone: links are removed,
processes are killed (only if they are still the ones that were named), then control groups and paths are
removed. So teardown is one code path, and a test run that is killed with SIGKILL leaves nothing behind either.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_DEADLINE_SECONDS = 20.0


def started(pid: int) -> str | None:
    """The start time of a live process in clock ticks: with the pid it names a process for good.

    None where no such process lives; one that is dead but not yet reaped does not live."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


class Lifeline:
    """The owner's end: `watch_*` registers, `close` undoes everything and waits for it."""

    def __init__(self, log: Path) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", str(Path(__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the owner; we act when the owner is gone
            )

    @property
    def pipe(self) -> int:
        """The descriptor of the owner's end."""
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def watch_process(self, pid: int) -> None:
        """Kill this process at the end."""
        self._tell({"pid": pid, "started": started(pid)})

    def watch_link(self, name: str) -> None:
        """Remove this network link of the host at the end: its namespace may outlive its last process by minutes,
        while the kernel still tries to deliver what dead connections had to say."""
        self._tell({"link": name})

    def watch_cgroup(self, path: Path) -> None:
        """Remove this control group, with all below it, at the end."""
        self._tell({"cgroup": str(path)})

    def watch_path(self, path: Path) -> None:
        """Remove this folder at the end."""
        self._tell({"path": str(path)})

    def close(self) -> None:
        """Undo everything. Safe to call twice."""
        pipe = self._process.stdin
        if pipe is not None and not pipe.closed:
            # Said in words, for a process forked meanwhile may hold the pipe's other end open.
            with contextlib.suppress(BrokenPipeError):
                self._tell({"end": True})
            pipe.close()
            self._process.wait(timeout=3 * _DEADLINE_SECONDS)

    def _tell(self, entry: dict[str, Any]) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        pipe.write(json.dumps(entry).encode() + b"\n")
        pipe.flush()


def main() -> None:
    """The cleaner's end: collect until the pipe closes, then undo."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    entries: list[dict[str, Any]] = []
    for line in sys.stdin.buffer:
        entries.append(json.loads(line))
        if "end" in entries[-1]:
            break
    for entry in entries:
        if "link" in entry:
            # First, while the name is surely still ours: once its namespace is gone another rig may have taken it.
            subprocess.run(["ip", "link", "delete", entry["link"]], stderr=subprocess.DEVNULL)
    _kill([(e["pid"], e["started"]) for e in entries if "pid" in e])
    for entry in reversed(entries):
        if "cgroup" in entry:
            _remove_cgroup(Path(entry["cgroup"]))
        elif "path" in entry:
            shutil.rmtree(entry["path"], ignore_errors=True)


def _kill(named: list[tuple[int, str | None]]) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    live = [(pid, begun) for pid, begun in named if begun is not None and started(pid) == begun]
    for pid, _ in reversed(live):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(started(pid) == begun for pid, begun in live) and time.monotonic() < deadline:
        time.sleep(0.01)


def _remove_cgroup(top: Path) -> None:
    """Kill what is left in the group and remove it, leaves first; a group is busy for a moment after its last death."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while top.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                for pid in Path(folder, "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        time.sleep(0.01)


if __name__ == "__main__":
    main()

"""Progress lines: one JSON object per line, appended to the file that RERAIL_PROGRESS names. Torch-free."""

import json
import os
import sys
import time
from contextlib import suppress
from typing import Any

from rerail_api.contract import ProgressPhase
from rerail_trainer.report.finite import finite

CONTRACT = 1
"""Declares that this program's exit codes are those of the contract."""
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
"""O_APPEND, because the agent cuts the file to size: the next line then lands at the new end."""


def declare_contract(path: str) -> None:
    """The first line of every rank, before anything can fail: by it its agent reads its exit code."""
    if not path:
        return
    with suppress(OSError):  # a training says so once, with its first line
        descriptor = os.open(path, _FLAGS, 0o644)
        try:
            os.write(descriptor, (json.dumps({"contract": CONTRACT}) + "\n").encode())
        finally:
            os.close(descriptor)


class ProgressLog:
    """Appends lines; with an empty path, as on all ranks but 0, it does nothing.

    A line that cannot be written is dropped with one warning: reporting must never stop training.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self._warned = False

    @property
    def wanted(self) -> bool:
        """Whether anybody reads."""
        return self._path != ""

    def write(self, phase: ProgressPhase, **values: Any) -> None:
        line: dict[str, Any] = {"contract": CONTRACT, "phase": phase.value, "time": time.time()}
        line.update({key: finite(value) for key, value in values.items()})
        self._append(line)

    def busy(self, rank: int, seconds: float, steps: int) -> None:
        """What this rank computed by itself in its last steps: the one line that every rank writes."""
        self._append({"rank": rank, "busy_seconds": round(seconds, 6), "busy_steps": steps})

    def _append(self, line: dict[str, Any]) -> None:
        if not self._path:
            return
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, _FLAGS, 0o644)
            os.write(self._descriptor, (json.dumps(line) + "\n").encode())
        except OSError as error:
            if not self._warned:
                sys.stderr.write(f"progress cannot be written to {self._path}: {error.strerror}\n")
            self._warned = True

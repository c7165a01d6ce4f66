"""One JSON object per line: every step, and the events between steps, of all starts of a run. Torch-free."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerail_trainer.failures import BadConfig

from .finite import finite

_TAIL_BYTES = 1 << 20


class JsonLines:
    """A sink. Appends: starts of one run share a file, and steps that were made twice stand in it twice.

    A step is a line with `loss` and no `event`; an event has `event`, and mostly `step`. All have `time`.
    """

    def __init__(self, path: str) -> None:
        """Raises BadConfig if it cannot be written."""
        try:
            self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close
        except OSError as error:
            raise BadConfig(f"metrics.jsonl={path} cannot be written: {error.strerror}") from error
        if _ends_in_the_middle(path):
            # A kill or a full disk cut a line short: what follows must not be read as its end.
            self._file.write("\n")

    def step(self, values: Mapping[str, Any]) -> None:
        self._write(values)

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        self._write({"event": name, **values})

    def close(self) -> None:
        self._file.close()

    def _write(self, values: Mapping[str, Any]) -> None:
        line = {key: finite(value) for key, value in values.items()}
        line.setdefault("time", time.time())
        self._file.write(json.dumps(line) + "\n")


def highest_step(path: str) -> int | None:
    """The highest step near the end of a file of an earlier start; None without one."""
    if not Path(path).is_file():  # /dev/stdout and the like have no end to read
        return None
    try:
        with open(path, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL_BYTES, 0))
            lines = file.read().splitlines()
    except OSError:
        return None
    steps = [line["step"] for line in map(parsed, lines) if "loss" in line and "event" not in line]
    return max(steps, default=None)


def parsed(line: bytes | str) -> dict[str, Any]:
    """The object in a line; empty for a line that was cut short."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _ends_in_the_middle(path: str) -> bool:
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"

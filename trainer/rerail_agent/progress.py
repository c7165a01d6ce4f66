"""The progress file of a round: tailed, merged, and cut before it grows for ever."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from pathlib import Path
from typing import Any

from rerail_agent.orders import Release
from rerail_api.contract import (
    PROGRESS_FILE_BYTES,
    TIMED_STEPS,
    ProgressPhase,
    clean_busy,
    clean_progress,
)

LINE_BYTES = 4096
READ_BYTES = 256 * 1024
MOST_RANKS = 256
_LARGEST = 2**63 - 1
_TEXT_CHARACTERS = 32
_RECENT_STEPS = 256
_STEPPING = (None, ProgressPhase.TRAIN.value)


class ProgressFile:
    """The newest known value of every field that the ranks of one round have reported."""

    def __init__(self, path: Path, limit: int = PROGRESS_FILE_BYTES) -> None:
        self._path = path
        self._limit = limit
        self._offset = 0
        self._seen: tuple[int, int, int] | None = None
        self._values: dict[str, Any] = {}
        self._busy: dict[int, tuple[int, float]] = {}
        self.read_at: float | None = None
        """When the newest line was read, on the caller's clock."""
        self.moved_at: float | None = None
        """When step or phase last changed, on the same clock."""
        self._step_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)

    @property
    def newest(self) -> dict[str, Any] | None:
        return dict(self._values) if self._values else None

    def busy(self, ranks: range) -> dict[int, tuple[int, float]]:
        """Of these ranks that tell it: how many windows so far, and own seconds per step in the newest."""
        return {rank: window for rank, window in self._busy.items() if rank in ranks}

    @property
    def contract(self) -> bool:
        """The program has declared our table of exit codes."""
        return self._values.get("contract") == 1

    @property
    def step_seconds_p99(self) -> float | None:
        """Of the last steps of this round, evaluations and saves left out; None before there are enough."""
        if len(self._step_seconds) < TIMED_STEPS:
            return None
        ordered = sorted(self._step_seconds)
        return round(ordered[math.ceil(0.99 * len(ordered)) - 1], 3)

    def poll(self, now: float) -> bool:
        """Read what is new; true when a value has changed."""
        try:
            stat = os.stat(self._path)
            if (stat.st_ino, stat.st_size, stat.st_mtime_ns) == self._seen:
                return False
            with open(self._path, "r+b", buffering=0) as file:
                return self._read(file.fileno(), now)
        except OSError:
            # a program that removed the file, or a full file table: the next line will be read
            return False

    def _read(self, fd: int, now: float) -> bool:
        before = dict(self._values)
        stat = os.fstat(fd)
        if stat.st_size < self._offset:
            self._offset = 0
        while self._take(os.pread(fd, READ_BYTES, self._offset), now):
            pass
        stat = os.fstat(fd)
        self._seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        # Blocks count too: a writer without O_APPEND leaves a hole after each cut, large in size but empty.
        if self._offset == stat.st_size and min(stat.st_size, stat.st_blocks * 512) > self._limit:
            os.ftruncate(fd, 0)
            self._offset, self._seen = 0, None
        self._note_move(before, now)
        return self._values != before

    def _note_move(self, before: dict[str, Any], now: float) -> None:
        """Time the steps between two looks; a phase that began or ended in between is none of theirs."""
        step, phase = self._values.get("step"), self._values.get("phase")
        if (step, phase) == (before.get("step"), before.get("phase")):
            return
        made = (step or 0) - (before.get("step") or 0) if "step" in before else 0
        if self.moved_at is not None and made > 0 and phase == before.get("phase") and phase in _STEPPING:
            self._step_seconds.append((now - self.moved_at) / made)
        self.moved_at = now

    def _take(self, data: bytes, now: float) -> bool:
        """Whole lines of `data`; false when there is nothing more to take."""
        end = data.rfind(b"\n") + 1
        if not end:
            if len(data) < READ_BYTES:
                return False
            end = len(data)
        self._offset += end
        for line in data[:end].split(b"\n"):
            self._merge(line.lstrip(b"\0"), now)
        return True

    def _merge(self, line: bytes, now: float) -> None:
        if not line.strip() or len(line) > LINE_BYTES:
            return
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):
            return
        self._note_busy(told)
        clean = clean_progress(told)
        if clean is None:
            return
        contract = self._values.get("contract")
        self._values.update((field, value) for field, value in clean.items() if _bounded(value))
        if "loss" in clean:
            # Reports come twice a second; the loss at which a run began must not depend on that.
            self._values.setdefault("first_loss", clean["loss"])
        if contract == 1:
            self._values["contract"] = 1
        self.read_at = now

    def _note_busy(self, told: Any) -> None:
        window = clean_busy(told)
        if window is not None and (window[0] in self._busy or len(self._busy) < MOST_RANKS):
            self._busy[window[0]] = (self._busy.get(window[0], (0, 0.0))[0] + 1, round(window[1], 6))


def progress_report(progress: ProgressFile | None, release: Release | None, now: float) -> dict[str, Any]:
    """What REPORT says of a round's progress, and how much its own ranks compute, as far as they tell."""
    busy: dict[int, tuple[int, float]] = {}
    if progress is not None and release is not None:
        first = release.node_rank * release.nproc
        busy = progress.busy(range(first, first + release.nproc))
    return {
        "progress": progress.newest if progress is not None else None,
        "progress_age": _age(progress.read_at if progress is not None else None, now),
        "moved_age": _age(progress.moved_at if progress is not None else None, now),
        "step_seconds_p99": progress.step_seconds_p99 if progress is not None else None,
        "busy": {str(rank): list(window) for rank, window in busy.items()},
    }


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else round(max(0.0, now - at), 3)


def _bounded(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _TEXT_CHARACTERS and value.isprintable()
    return abs(value) <= _LARGEST if isinstance(value, int) else True

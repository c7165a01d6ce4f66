"""The rank processes of one round: started, listened to, and their ends noted."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

from rerail_agent.console import Sink
from rerail_agent.output import Lines, Tail, overwritten
from rerail_agent.torchrun import LAUNCHER_LINES, Cause, find_cause
from rerail_api.contract import LOG_LINES

READ_BYTES = 64 * 1024
DRAIN_READS = 32
OVERHEARD_LINES = 400
CANNOT_EXECUTE = 126
NOT_FOUND = 127

Fork = Callable[[Sequence[Mapping[str, str]], Sequence[int]], Union[list[int], None]]
"""Starts one process per environment with the descriptor that it writes to; None where it cannot."""


@dataclass(frozen=True)
class Launch:
    """One process to start; `rank` is None for a launcher that numbers its own ranks."""

    rank: int | None
    local_rank: int
    label: str
    command: Sequence[str]
    env: Mapping[str, str]
    error_file: Path | None = None


@dataclass
class Forked:
    """A child that was not started by exec; it is reaped by number, as all others are."""

    pid: int
    returncode: int | None = None


@dataclass
class Rank:
    """One process of the round, alive until `code` is set (exit code, or minus the signal)."""

    launch: Launch
    tail: Tail
    lines: Lines = field(default_factory=Lines)
    process: subprocess.Popen[bytes] | Forked | None = None
    pipe: int | None = None
    code: int | None = None
    ended_at: float = 0.0
    ordered: bool = False
    cause: Cause = field(default_factory=Cause)
    overheard: list[bytes] | None = None
    """What it prints while somebody listens for an answer; bounded."""

    @property
    def alive(self) -> bool:
        return self.code is None

    @property
    def pid(self) -> int | None:
        """The process while it is alive and not reaped, so that its number is surely its own."""
        return self.process.pid if self.process is not None and self.alive else None

    @property
    def true_code(self) -> int | None:
        """The code of the rank itself where a launcher hid it behind its own."""
        if self.code is not None and self.code > 0 and self.cause.code:
            return self.cause.code
        return self.code


class Ranks:
    """All processes of one round on this node."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sink: Sink) -> None:
        self._loop = loop
        self._sink = sink
        self.all: list[Rank] = []
        self.first_failed: Rank | None = None

    @property
    def alive(self) -> list[Rank]:
        return [rank for rank in self.all if rank.alive]

    @property
    def started(self) -> bool:
        return bool(self.all)

    def start(self, launches: Sequence[Launch], now: float, fork: Fork | None = None) -> None:
        """Start every process, by `fork` if it can.

        One that cannot be started counts as ended with 126 or 127, as in a shell.
        """
        added = [
            Rank(launch, Tail(LOG_LINES if launch.error_file is None else LAUNCHER_LINES))
            for launch in launches
        ]
        self.all += added
        if fork is not None and self._fork(added, fork):
            return
        for rank in added:
            try:
                self._spawn(rank)
            except OSError as error:
                reason = f"cannot start {rank.launch.command[0]!r}: {error.strerror or error}"
                self._print(rank, [reason.encode("utf-8", "replace")])
                code = NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_EXECUTE
                self._end(rank, code, now, ordered=False)

    def ended(self, pid: int, code: int, now: float, ordered: bool) -> Rank | None:
        """Note the end of a reaped process; None when it is no rank of ours."""
        for rank in self.all:
            if rank.process is not None and rank.process.pid == pid and rank.alive:
                # Popen must not wait for this pid again: the number may be another process by then
                rank.process.returncode = code
                self._drain(rank, now)
                if code and rank.launch.error_file is not None:
                    rank.cause = find_cause(rank.launch.error_file, rank.tail.lines())
                self._end(rank, code, now, ordered)
                return rank
        return None

    def flush(self, now: float) -> None:
        """Print unfinished lines that have waited long enough."""
        for rank in self.all:
            self._print(rank, rank.lines.flush(now))

    def close(self) -> None:
        """Stop listening; what still holds a pipe is no longer heard."""
        for rank in self.all:
            self._hang_up(rank)

    def _fork(self, ranks: Sequence[Rank], fork: Fork) -> bool:
        pipes: list[tuple[int, int]] = []
        pids = None
        try:
            pipes += (os.pipe() for _ in ranks)
            pids = fork([rank.launch.env for rank in ranks], [writing for _, writing in pipes])
        except OSError:
            pids = None
        finally:
            for reading, writing in pipes:
                os.close(writing)
                if pids is None:
                    os.close(reading)
        if pids is None:
            return False
        for rank, pid, (reading, _) in zip(ranks, pids, pipes):
            rank.process = Forked(pid)
            self._listen(rank, reading)
        return True

    def _spawn(self, rank: Rank) -> None:
        reading, writing = os.pipe()
        try:
            rank.process = subprocess.Popen(
                list(rank.launch.command),
                env=dict(rank.launch.env),
                stdin=subprocess.DEVNULL,
                stdout=writing,
                # one pipe for both, so that the last lines stay in the order in which they were written
                stderr=writing,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            os.close(reading)
            raise error if isinstance(error, OSError) else OSError(str(error)) from error
        finally:
            os.close(writing)
        self._listen(rank, reading)

    def _listen(self, rank: Rank, reading: int) -> None:
        os.set_blocking(reading, False)
        rank.pipe = reading
        self._loop.add_reader(reading, self._readable, rank)

    def _end(self, rank: Rank, code: int, now: float, ordered: bool) -> None:
        rank.code, rank.ended_at, rank.ordered = code, now, ordered
        if code and self.first_failed is None:
            self.first_failed = rank

    def _readable(self, rank: Rank) -> None:
        self._read(rank, self._loop.time())

    def _read(self, rank: Rank, now: float) -> bool:
        """One read; false when there is nothing more for now, or ever."""
        if rank.pipe is None:
            return False
        try:
            data = os.read(rank.pipe, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._hang_up(rank)
            return False
        self._print(rank, rank.lines.feed(data, now))
        return True

    def _drain(self, rank: Rank, now: float) -> None:
        """The last words of a rank that has ended; a grandchild may go on talking into the same pipe."""
        for _ in range(DRAIN_READS):
            if not self._read(rank, now):
                break
        self._print(rank, rank.lines.flush(now, waited=0.0))

    def _print(self, rank: Rank, lines: list[bytes]) -> None:
        if not lines:
            return
        if rank.alive:
            # what a grandchild says after the end of its rank is no evidence of that end
            for line in lines:
                rank.tail.add(line)
        if rank.overheard is not None and len(rank.overheard) < OVERHEARD_LINES:
            rank.overheard += lines
        prefix = f"[{rank.launch.label}] ".encode()
        self._sink.write(b"".join(prefix + overwritten(line) + b"\n" for line in lines))

    def _hang_up(self, rank: Rank) -> None:
        if rank.pipe is not None:
            self._loop.remove_reader(rank.pipe)
            os.close(rank.pipe)
            rank.pipe = None

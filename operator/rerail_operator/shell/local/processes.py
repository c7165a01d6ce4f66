"""The process table of this machine: who descends from whom, who carries a mark, and how to end them all.

Every process of a pod carries the pod's UID in its environment from its birth, and so do all its descendants,
wherever they fled to (own sessions, re-parented). That mark is what makes "nothing left running" checkable.
Linux only: it reads /proc.
"""

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PROC = Path("/proc")
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.01


def supported() -> bool:
    """Whether this machine has a process table that we can read."""
    return (PROC / "self" / "environ").exists()


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends (child subreaper)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty where it is gone, a zombie or not ours."""
    try:
        raw = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if entry)
    return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def parent(pid: int) -> int | None:
    """The parent's pid; None where the process is gone."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command name stands in parentheses and may hold anything, a closing parenthesis too.
    return int(stat.rpartition(")")[2].split()[1])


def marked(name: str, value: str) -> list[int]:
    """All living processes whose environment holds `name=value`, this one aside."""
    mark = f"{name}={value}".encode()
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            raw = (entry / "environ").read_bytes()
        except OSError:
            continue  # gone meanwhile, or somebody else's
        if mark in raw.split(b"\0"):
            found.append(int(entry.name))
    return sorted(found)


def rank_process(pids: Iterable[int], rank: int) -> int | None:
    """The topmost of these processes that carries RANK=`rank`: the rank itself, not what it started."""
    carriers = {pid for pid in pids if environment(pid).get("RANK") == str(rank)}
    return next((pid for pid in sorted(carriers) if parent(pid) not in carriers), None)


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal each process; one that has just ended is fine."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


async def kill_all(find: Callable[[], list[int]], seconds: float = 10.0) -> list[int]:
    """SIGKILL what `find` finds until it finds nothing; what is still there after `seconds`."""
    deadline = time.monotonic() + seconds
    while left := find():
        send(left, signal.SIGKILL)
        if time.monotonic() > deadline:
            return left
        await asyncio.sleep(POLL_SECONDS)
    return []

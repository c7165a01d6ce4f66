"""Processes below the agent, also those that left their session or lost their parent."""

from __future__ import annotations

import os
import signal

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Orphans below this process become its children; false where the system cannot do it."""
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def descendants(root: int, aside: int | None = None) -> list[int]:
    """All processes below `root`, zombies too: one that cannot be reaped has threads stuck in the kernel.

    Without the process `aside` and all below it.
    """
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        if pid != aside:
            children.setdefault(parent, []).append(pid)
    found: list[int] = []
    level = children.get(root, [])
    while level:
        found += level
        level = [child for pid in level for child in children.get(pid, [])]
    return found


def ended_children() -> list[tuple[int, int]]:
    """(pid, exit code or minus the signal) of every child that has ended since the last call."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        ended.append((pid, code))


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal; a process that is gone already is no error, nor is one that changed its user."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def kill_session(leader: int) -> None:
    """KILL to the process group that a not yet reaped child of ours leads."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _parents() -> list[tuple[int, int]]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    pairs = []
    for name in names:
        if name.isdigit():
            parent = _parent(name)
            if parent is not None:
                pairs.append((int(name), parent))
    return pairs


def _parent(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
        # the command in parentheses may itself hold spaces and parentheses
        return int(stat[stat.rindex(b")") + 2 :].split()[1])
    except (OSError, ValueError, IndexError):
        return None

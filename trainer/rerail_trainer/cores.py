"""How many CPU cores a rank may call its own. Torch-free."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cores_per_rank(local_world_size: int, cgroup: Path = _CGROUP) -> int:
    """The cores this container may use, shared evenly by the ranks on it; at least 1.

    A container's CPU limit counts: threads beyond it would only be throttled, all at once.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(int(min(allowed, _limit(cgroup))) // max(local_world_size, 1), 1)


def _limit(cgroup: Path) -> float:
    """Cores that the CPU limit grants, by cgroup v2 or v1; infinite without one."""
    try:
        quota, _, period = (cgroup / "cpu.max").read_text(encoding="utf-8").partition(" ")
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        amount = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        every = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="utf-8"))
        return amount / every if amount > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf

"""Since when this process runs. Torch-free."""

import os
import time

_IMPORTED = time.monotonic()


def seconds_since_start() -> float:
    """Seconds since the kernel started this process; without Linux since this module was imported."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            # The name in parentheses may hold anything; the start time is field 22 of all.
            ticks = float(file.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED

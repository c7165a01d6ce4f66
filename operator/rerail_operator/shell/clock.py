"""The one place where the shell asks for the time; tests hand in a clock of their own."""

import time
from datetime import UTC, datetime
from typing import Protocol

# Counts while the machine sleeps or its virtual machine is paused: a lease runs out then, too. Linux only.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    def now(self) -> datetime:
        """Wall clock, aware, UTC: for records that people and other processes read."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards: for durations and deadlines within this process."""
        ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.clock_gettime(_STEADY)

"""A rank that makes no step says where it stands, and ends.

Collectives wait in native code and with them the main thread, so a thread of its own watches. When the time
of a phase is over it writes all Python stacks to standard error, leaves a report beside the checkpoints
(`<checkpoint.dir>/.hang/<round>/`), tells which ranks stand elsewhere or nowhere, and ends the process with
exit code 84. SIGUSR1 writes the stacks at any time, SIGUSR2 where this rank stands and in which collectives
it waits; neither changes anything. Torch-free.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rerail_api.contract import ExitCode, ProgressPhase

from .config import WatchdogConfig
from .failures import tell
from .hang import Hang, HangReport

_WAKE_SECONDS = 1.0
_REPORT_SECONDS = 8.0
"""A report may take so long: the storage it goes to may be what hangs."""
_DEAF_SECONDS = 60.0
"""So much later the process ends even if native code holds the interpreter's lock and no thread can run."""


class Watchdog:
    """Barks once, when the current phase lasts longer than its limit. Starts in phase INIT, which the first
    finished step ends.
    """

    def __init__(self, config: WatchdogConfig, report: HangReport | None = None) -> None:
        self._limits = {
            ProgressPhase.INIT: config.init_seconds,
            ProgressPhase.TRAIN: config.step_seconds,
            ProgressPhase.SAVE: config.save_seconds,
            ProgressPhase.EVAL: config.eval_seconds,
        }
        self._report = report or HangReport()
        self._phase, self._since = ProgressPhase.INIT, time.monotonic()
        self._step: int | None = None
        self._closed = threading.Event()

    def start(self) -> None:
        """Main thread only. From here on a fatal signal shows all stacks too."""
        with suppress(OSError, ValueError):  # standard error that is no file: then there is nowhere to write
            faulthandler.enable(all_threads=True)
            faulthandler.register(signal.SIGUSR1, all_threads=True)
        if any(self._limits.values()):
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def step(self, step: int) -> None:
        """`step` is finished; the time of the next one begins."""
        self._phase, self._since, self._step = ProgressPhase.TRAIN, time.monotonic(), step

    @contextmanager
    def during(self, phase: ProgressPhase) -> Iterator[None]:
        """Another phase inside of training; afterwards the time of the step begins anew."""
        before = self._phase
        self._phase, self._since = phase, time.monotonic()
        yield
        self._phase, self._since = before, time.monotonic()

    def close(self) -> None:
        """Nothing is watched any more."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(_WAKE_SECONDS):
            limit = self._limits[self._phase]
            # By the clock of the system, so that time in which the machine slept does not count.
            lasted = time.monotonic() - self._since
            if limit and lasted >= limit:
                self._bark(lasted)
            elif limit:
                self._arm(limit - lasted)
        faulthandler.cancel_dump_traceback_later()

    def _arm(self, left: float) -> None:
        """Leaves word with the C library, in case that this thread never runs again."""
        with suppress(OSError, ValueError):
            faulthandler.dump_traceback_later(left + _DEAF_SECONDS, exit=True)

    def _bark(self, lasted: float) -> None:
        hang = Hang(self._phase.value, self._step, lasted)
        sys.stderr.write(f"rerail_trainer: rank {self._report.rank}: {hang}; all stacks:\n")
        dump_stacks(sys.stderr)
        report = threading.Thread(target=self._report.write, args=(hang,), name="hang report", daemon=True)
        report.start()
        report.join(_REPORT_SECONDS)
        tell(str(hang), int(ExitCode.HANG))
        # The main thread sits in native code: nothing gentler than this ends the process.
        os._exit(int(ExitCode.HANG))


def dump_stacks(file: TextIO) -> None:
    """The Python stacks of all threads, into a file with a descriptor."""
    file.flush()
    with suppress(OSError, ValueError):
        faulthandler.dump_traceback(file=file, all_threads=True)

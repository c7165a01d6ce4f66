"""SIGTERM and SIGINT: the first asks for a save at the next step boundary, a second ends the process at once.

Python runs its own handlers only between bytecodes of the main thread, which may sit in a collective that
never returns. So a thread reads the wake-up descriptor, which the C handler writes: it can always act.
Torch-free.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from rerail_api.contract import ExitCode

SIGNALS = (signal.SIGTERM, signal.SIGINT)
MARGIN_SECONDS = 3.0
"""Leave so long before the grace period ends: SIGKILL tells nobody what happened."""


class StopRequest:
    """`requested` turns true with the first signal; the rest is done by the listening thread.

    grace_seconds: time between the signal and SIGKILL; 0 means unknown, then only a second signal gives up.
    """

    def __init__(self, grace_seconds: float = 0.0) -> None:
        self.requested = False
        self._grace_seconds = grace_seconds
        self._training = False
        self._counts: Counter[int] = Counter()
        self._answers: dict[int, Callable[[], None]] = {}

    def listen(self) -> None:
        """Installs the handlers; main thread only."""
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(
                number, lambda *_: None
            )  # a Python handler must exist for the descriptor to be written
        threading.Thread(target=self._watch, name="stop", daemon=True).start()

    def answer(self, number: signal.Signals, tell: Callable[[], None]) -> None:
        """Calls `tell` in a thread of its own when that signal comes; after `listen`, main thread only."""
        self._answers[number] = tell
        signal.signal(number, lambda *_: None)
        # A question must not break off what native code waits for.
        signal.siginterrupt(number, False)

    def training_begins(self) -> None:
        """From here on there may be unsaved steps: the first signal waits for a step boundary."""
        self._training = True
        if self.requested:
            self._leave(ExitCode.PREEMPTED_SAVED, "asked to stop before the first step: nothing to save")

    def _watch(self) -> None:
        while True:
            for number in self._reader.recv(64):
                if number in SIGNALS:
                    self._arrived(number)
                elif number in self._answers:
                    threading.Thread(target=self._answers[number], name="answer", daemon=True).start()

    def _arrived(self, number: int) -> None:
        name = signal.Signals(number).name
        self._counts[number] += 1
        # torchrun and shells may send SIGINT and SIGTERM for one wish: only the same one twice is a second
        # wish.
        if self._counts[number] > 1:
            self._leave(ExitCode.PREEMPTED_NOT_SAVED, f"second {name}: leaving without a save")
        if not self._training:
            self._leave(ExitCode.PREEMPTED_SAVED, f"{name} before the first step: nothing to save")
        if not self.requested:
            self.requested = True
            threading.Thread(target=self._give_up_in_time, name="grace", daemon=True).start()

    def _give_up_in_time(self) -> None:
        if self._grace_seconds <= 0:
            return
        time.sleep(max(self._grace_seconds - MARGIN_SECONDS, self._grace_seconds / 2))
        self._leave(ExitCode.PREEMPTED_NOT_SAVED, "the grace period is nearly over: leaving without a save")

    def _leave(self, code: ExitCode, why: str) -> None:
        sys.stderr.write(f"rerail_trainer: {why} (exit {int(code)})\n")
        sys.stderr.flush()
        # The main thread may be stuck in native code, so nothing gentler than this would end the process.
        os._exit(int(code))

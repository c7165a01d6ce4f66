"""What the operator would have this run do, read now and then while it runs. Torch-free."""

import json
import os
import time
from collections.abc import Mapping

from rerail_api.contract import ADVICE_CHECKPOINT_SECONDS, Env

LOOK_EVERY_SECONDS = 0.5


class Advice:
    """The interval between checkpoints that the operator asks for: of the start, then of the file.

    A file that cannot be read or makes no sense leaves what was known: advice must never stop training.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._path = env.get(Env.ADVICE, "")
        text = env.get(Env.CHECKPOINT_SECONDS, "")
        self._seconds = int(text) if text.isdecimal() else 0
        self._looked_at = float("-inf")
        self._seen: tuple[int, int] | None = None

    def checkpoint_seconds(self) -> int:
        """Seconds of training between checkpoints; 0 means as the configuration says."""
        now = time.monotonic()
        if self._path and now - self._looked_at >= LOOK_EVERY_SECONDS:
            self._looked_at = now
            self._look()
        return self._seconds

    def _look(self) -> None:
        try:
            stat = os.stat(self._path)
            seen = (stat.st_ino, stat.st_mtime_ns)
            if seen == self._seen:
                return
            with open(self._path, encoding="utf-8") as file:
                told = json.load(file)[ADVICE_CHECKPOINT_SECONDS]
        except (OSError, ValueError, LookupError, TypeError):
            return
        self._seen = seen
        if told is None:
            self._seconds = 0
        elif isinstance(told, int) and not isinstance(told, bool) and told >= 0:
            self._seconds = told

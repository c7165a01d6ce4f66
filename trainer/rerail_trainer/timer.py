"""When a save is due by the clock. Only rank 0's clock counts; the others learn of it by agreement."""

import time


class SaveTimer:
    """Due once `seconds` have passed since the start or the last save; never for 0."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = time.monotonic()

    def due(self) -> bool:
        return 0 < self._seconds <= time.monotonic() - self._since

    def restart(self) -> None:
        self._since = time.monotonic()

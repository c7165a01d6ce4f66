"""When a save is due by the clock. Only rank 0's clock counts; the others learn of it by agreement."""

import time


class SaveTimer:
    """Knows when training began or the last save did."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def due(self, seconds: float) -> bool:
        """Whether so many seconds have passed since; never for 0."""
        return 0 < seconds <= time.monotonic() - self._since

    def restart(self) -> None:
        self._since = time.monotonic()

"""When a report is due: at every change, at most so often for mere progress, and as a heartbeat."""

from __future__ import annotations

from typing import Any

from rerail_agent.settings import Timing

_AGES = ("progress", "progress_age", "moved_age", "step_seconds_p99", "busy")


class Publisher:
    """Compares reports and says which have to be sent."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._sent_at = float("-inf")
        self._progress_at = float("-inf")
        self._sent: dict[str, Any] | None = None
        self._progress: dict[str, Any] | None = None

    def due(self, report: dict[str, Any], now: float) -> bool:
        """True when this report tells something new, or when it is time for a sign of life."""
        if (
            self._sent is None
            or _facts(report) != self._sent
            or now - self._sent_at >= self._timing.heartbeat
        ):
            return True
        progress = report["progress"]
        if progress == self._progress:
            return False
        return _phase(progress) != _phase(self._progress) or now - self._progress_at >= self._timing.progress

    def sent(self, report: dict[str, Any], now: float) -> None:
        """The coordinator has been sent this report."""
        if report["progress"] != self._progress:
            self._progress_at = now
        self._sent_at, self._sent, self._progress = now, _facts(report), report["progress"]

    def again(self) -> None:
        """Whoever listens now has seen nothing yet."""
        self._sent = None


def _facts(report: dict[str, Any]) -> dict[str, Any]:
    """The report without what changes by itself."""
    facts = {key: value for key, value in report.items() if key not in _AGES}
    if facts["exit"] is not None:
        facts["exit"] = {key: value for key, value in facts["exit"].items() if key != "age"}
    return facts


def _phase(progress: dict[str, Any] | None) -> Any:
    return progress.get("phase") if progress else None

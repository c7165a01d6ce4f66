"""How far a long piece of work is: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from typing import TextIO

_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 10.0
_CELLS = 24


class Bar:
    """Counts bytes, or whatever `unit` says, up to `total`."""

    def __init__(self, label: str, total: int, unit: str, stream: TextIO | None = None) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._stream = sys.stdout if stream is None else stream
        self._terminal = self._stream.isatty()
        self._done = self._before = 0
        self._began = self._told = time.monotonic()

    def found(self, amount: int) -> None:
        """`amount` was done before this start: no work of ours, so no part of the speed."""
        self._before += amount
        self.add(amount)

    def add(self, amount: int) -> None:
        """`amount` more is done."""
        self._done += amount
        now = time.monotonic()
        if now - self._told >= (_REDRAW_SECONDS if self._terminal else _LINE_SECONDS):
            self._told = now
            self._write(now)

    def say(self, text: str) -> None:
        """A line of its own."""
        self._stream.write(f"{text}\n")

    def close(self) -> None:
        """Draws it for the last time."""
        self._write(time.monotonic())
        if self._terminal:
            self._stream.write("\n")
        self._stream.flush()

    def _write(self, now: float) -> None:
        share = self._done / self._total if self._total else 1.0
        rate = (self._done - self._before) / max(1e-9, now - self._began)
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        times = f"{_clock(left)} left" if self._done < self._total else f"in {_clock(now - self._began)}"
        text = (
            f"{share:4.0%}  {_short(self._done)} of {_short(self._total)} {self._unit}"
            f"  {_short(rate)}/s  {times}"
        )
        if self._terminal:
            full = round(share * _CELLS)
            self._stream.write(f"\r{self._label:<9} [{'#' * full}{'.' * (_CELLS - full)}] {text}\033[K")
        else:
            self._stream.write(f"{self._label}: {text.strip()}\n")
        self._stream.flush()


def _short(amount: float) -> str:
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= limit:
            return f"{amount / limit:.1f}{letter}"
    return f"{amount:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

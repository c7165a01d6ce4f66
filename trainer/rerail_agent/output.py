"""What a rank prints: cut into lines, prefixed, and remembered as evidence."""

from __future__ import annotations

import re
from collections import deque

from rerail_api.contract import LOG_BYTES, LOG_LINES

LINE_BYTES = 8192
PARTIAL_SECONDS = 1.0
EVIDENCE_LINE_BYTES = 512
FORGET_EXCEPTION_LINES = 200

_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")
# torch puts the rank before every line of a traceback in a process group
_RANK_TAG = re.compile(rb"^\[rank\d+\]:\s?")
_TRACEBACK = b"Traceback (most recent call last):"
_EXCEPTION = re.compile(rb"^([A-Za-z_][\w.]*)(?::\s|:$|$)")
# a SyntaxError, or a traceback that another thread tore apart, has no header of its own
_BARE_EXCEPTION = re.compile(rb"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit))(?::\s|:$|$)")
_CONTROLS = bytes(set(range(32)) - {9}) + b"\x7f"
# how torchrun ends when a rank failed: says nothing about the cause
_NOT_A_CAUSE = (b"ChildFailedError", b"SignalException")


class Lines:
    """Bytes in, whole lines out; a line without end is flushed after a while, a boundless one is cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._since = 0.0
        self._flushed = False

    def feed(self, data: bytes, now: float) -> list[bytes]:
        """The lines completed by `data`, without their ends."""
        if not self._rest:
            self._since = now
        *lines, rest = (self._rest + data).split(b"\n")
        if lines:
            self._since = now
            if self._flushed and not lines[0]:
                # the end of a line that was already flushed
                del lines[0]
            self._flushed = False
        out = [piece for line in lines for piece in _pieces(line)]
        while len(rest) > LINE_BYTES:
            out.append(rest[:LINE_BYTES])
            rest = rest[LINE_BYTES:]
        self._rest = rest
        return out

    def flush(self, now: float, waited: float = PARTIAL_SECONDS) -> list[bytes]:
        """The unfinished line once it is older than `waited` seconds."""
        if not self._rest or now - self._since < waited:
            return []
        line, self._rest, self._flushed = self._rest, b"", True
        return [line]


class Tail:
    """The last lines of one rank and the exception that ended it."""

    def __init__(self, keep: int = LOG_LINES) -> None:
        self._lines: deque[bytes] = deque(maxlen=keep)
        self._in_traceback = False
        self._exception: tuple[str, bytes] | None = None
        self._exception_age = 0

    def add(self, line: bytes) -> None:
        """One line as printed, without its end."""
        line = clean_line(line)
        if not line.strip():
            return
        self._lines.append(line)
        self._exception_age += 1
        self._follow_traceback(_RANK_TAG.sub(b"", line))

    def lines(self) -> list[str]:
        return [line.decode("utf-8", "replace") for line in self._lines]

    def exception(self) -> tuple[str, str] | None:
        """(type, its line) of the last exception seen, unless that is long past."""
        found = self._exception
        if found is None or self._exception_age > FORGET_EXCEPTION_LINES:
            found = self._bare_exception()
        return (found[0], found[1].decode("utf-8", "replace")) if found else None

    def last_line(self) -> str:
        """The last line that says something; torch's rank tag left out, so that ranks compare."""
        last = _RANK_TAG.sub(b"", self._lines[-1]) if self._lines else b""
        return last.decode("utf-8", "replace")

    def _follow_traceback(self, line: bytes) -> None:
        if line.endswith(_TRACEBACK):
            self._in_traceback = True
        elif self._in_traceback and not line[:1].isspace():
            self._in_traceback = False
            self._remember(_EXCEPTION.match(line), line)

    def _remember(self, match: re.Match[bytes] | None, line: bytes) -> None:
        if match is not None and (name := _type_name(match)) is not None:
            self._exception, self._exception_age = (name, line), 0

    def _bare_exception(self) -> tuple[str, bytes] | None:
        for raw in reversed(self._lines):
            line = _RANK_TAG.sub(b"", raw)
            match = _BARE_EXCEPTION.match(line)
            if match is not None and (name := _type_name(match)) is not None:
                return name, line
        return None


def clean_line(line: bytes) -> bytes:
    """A line as a terminal would leave it, without colours and controls."""
    return _ANSI.sub(b"", overwritten(line)).translate(None, _CONTROLS).rstrip()


def overwritten(line: bytes) -> bytes:
    """What is left of a line that a progress bar wrote over and over with carriage returns."""
    line = line.rstrip(b"\r\n")
    return line[line.rfind(b"\r") + 1 :]


def bounded(lines: list[str], budget: int = LOG_BYTES) -> list[str]:
    """The last lines, at most LOG_LINES, that together take at most `budget` bytes of UTF-8."""
    kept: list[str] = []
    for line in reversed(lines[-LOG_LINES:]):
        line = cut(line, EVIDENCE_LINE_BYTES)
        budget -= len(line.encode("utf-8", "replace")) + 1
        if budget < 0:
            break
        kept.append(line)
    return kept[::-1]


def cut(text: str, size: int) -> str:
    """`text` in at most `size` bytes of UTF-8."""
    raw = text.encode("utf-8", "replace")
    return text if len(raw) <= size else raw[: size - 3].decode("utf-8", "ignore") + "..."


def _pieces(line: bytes) -> list[bytes]:
    if len(line) <= LINE_BYTES:
        return [line]
    return [line[i : i + LINE_BYTES] for i in range(0, len(line), LINE_BYTES)]


def _type_name(match: re.Match[bytes]) -> str | None:
    name = match.group(1).rpartition(b".")[2]
    return None if not name or name in _NOT_A_CAUSE else name.decode("ascii", "replace")

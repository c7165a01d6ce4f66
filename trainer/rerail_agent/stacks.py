"""Where the ranks of this node stand: asked when no step is made, told in words, nothing is stopped.

A rank that catches SIGUSR1 is taken to print its stacks then (faulthandler), one that catches SIGUSR2 too to
say which collectives it waits in, as our trainer does. Of every other process the kernel is asked.
"""

from __future__ import annotations

import os
import re
import signal
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rerail_agent import proctree
from rerail_agent.output import clean_line, cut
from rerail_agent.ranks import Rank
from rerail_api.contract import STACK_PLACES

ANSWER_SECONDS = 4.0
"""How long ranks may take to print; storage and locks may be what hangs."""
QUIET_SECONDS = 0.3
"""So long after the last line an answer counts as complete."""
WHERE_BYTES = 240
MAX_PROCESSES = 64
NO_COLLECTIVE = b"no collective"

_HEAD = re.compile(rb"^(Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):")
_FRAME = re.compile(rb'^\s+File "([^"]*)", line (\d+) in (.*)$')
_WAITS = re.compile(rb": rank \d+: waits in (.+)$")
_STANDS = re.compile(rb": rank \d+: stands in (.+)$")
_NOT_OURS = (b"/site-packages/", b"/dist-packages/", b"/lib/python", b"<frozen ")
_REMARKABLE = {"T": "T", "t": "T", "D": "D"}


@dataclass
class Look:
    """One rank that is being looked at."""

    rank: int
    pids: list[int]
    listening: Rank | None = None
    speaks: bool = False
    """It will say itself where it stands."""
    lines: int = 0
    heard_at: float = 0.0


@dataclass
class Inquiry:
    """One look at all ranks of a node; stepped until `places` is there."""

    step: int | None
    began: float
    looks: list[Look] = field(default_factory=list)
    places: list[dict[str, Any]] | None = None

    def advance(self, now: float) -> None:
        """Carry on; when all have said what they say, or time is over, put it together."""
        if self.places is not None:
            return
        for look in self.looks:
            heard = len(look.listening.overheard or ()) if look.listening is not None else 0
            if heard != look.lines:
                look.lines, look.heard_at = heard, now
        if now - self.began < ANSWER_SECONDS and any(_still_talks(look, now) for look in self.looks):
            return
        self.places = _together([_place(look) for look in self.looks])
        self.close()

    def close(self) -> None:
        """Nobody listens any more."""
        for look in self.looks:
            if look.listening is not None:
                look.listening.overheard = None
                look.listening = None


class Lookout:
    """The one inquiry of a round; dropped when a step is made, for then nobody stands still."""

    def __init__(self) -> None:
        self._inquiry: Inquiry | None = None

    @property
    def busy(self) -> bool:
        """An answer is under way."""
        return self._inquiry is not None and self._inquiry.places is None

    @property
    def answer(self) -> dict[str, Any] | None:
        """STACKS of the contract, once it is there."""
        if self._inquiry is None or self._inquiry.places is None:
            return None
        return {"step": self._inquiry.step, "places": self._inquiry.places}

    def ask(self, ranks: list[Rank], step: int | None, now: float) -> bool:
        """False: that was asked before, the answer is under way or there."""
        if self._inquiry is not None and self._inquiry.step == step:
            return False
        self.drop()
        self._inquiry = ask(ranks, step, now)
        return True

    def step(self, moved_at: float | None, now: float) -> None:
        """Carry on; `moved_at`: when a step was last made."""
        if self._inquiry is None:
            return
        if moved_at is not None and moved_at > self._inquiry.began:
            self.drop()
        else:
            self._inquiry.advance(now)

    def drop(self) -> None:
        """Nothing was asked."""
        if self._inquiry is not None:
            self._inquiry.close()
            self._inquiry = None


def ask(ranks: list[Rank], step: int | None, now: float) -> Inquiry:
    """Ask every living rank; the answer comes with `advance`."""
    inquiry = Inquiry(step, now)
    for rank in ranks:
        if rank.pid is None:
            continue
        if rank.launch.rank is None:
            inquiry.looks += [Look(number, pids) for number, pids in _numbered(rank.pid)]
        else:
            inquiry.looks.append(Look(rank.launch.rank, [rank.pid, *proctree.descendants(rank.pid)], rank))
    for look in inquiry.looks:
        look.pids = look.pids[:MAX_PROCESSES]
        look.heard_at = now
        asked, look.speaks = _signal(look.pids)
        if look.listening is not None:
            look.listening.overheard = [] if asked else None
            look.listening = look.listening if asked else None
    return inquiry


def _still_talks(look: Look, now: float) -> bool:
    """Whether a rank that was asked may have more to say; a stopped one says nothing."""
    if look.listening is None or not look.listening.alive or _state(look.pids) == "T":
        return False
    if look.speaks and not any(_WAITS.search(line) for line in look.listening.overheard or ()):
        return True
    return look.lines == 0 or now - look.heard_at < QUIET_SECONDS


def _numbered(launcher: int) -> list[tuple[int, list[int]]]:
    """The processes that a launcher has started, by the rank in their environment."""
    found: dict[int, list[int]] = {}
    for pid in proctree.descendants(launcher):
        number = _environment(pid).get(b"RANK", b"")
        if number.isdigit():
            found.setdefault(int(number), []).append(pid)
    return sorted(found.items())


def _signal(pids: list[int]) -> tuple[bool, bool]:
    """SIGUSR1 and SIGUSR2 to the first process, from the rank on down, that catches them; which it got."""
    for pid in pids:
        status = _status(pid)
        if _holds(status.get(b"SigCgt"), signal.SIGUSR1):
            proctree.kill(pid, signal.SIGUSR1)
            speaks = _holds(status.get(b"SigCgt"), signal.SIGUSR2)
            if speaks:
                proctree.kill(pid, signal.SIGUSR2)
            return True, speaks
    return False, False


def _place(look: Look) -> dict[str, Any]:
    lines = [] if look.listening is None else [clean_line(line) for line in look.listening.overheard or ()]
    waits = next((found.group(1) for line in lines if (found := _WAITS.search(line))), b"")
    stands = next((found.group(1) for line in lines if (found := _STANDS.search(line))), b"")
    told, waits = bool(waits), b"" if waits == NO_COLLECTIVE else waits
    where = stands or innermost(lines) or _in_kernel(look.pids[0])
    return {
        "rank": look.rank,
        "state": _state(look.pids),
        "where": cut(where.decode("utf-8", "replace"), WHERE_BYTES),
        "waits": cut(waits.decode("utf-8", "replace"), WHERE_BYTES),
        "told": told,
    }


def innermost(lines: list[bytes]) -> bytes:
    """Of printed stacks: the thread that took the signal, its innermost line outside of libraries and its
    innermost line; b"" where there is no stack.
    """
    stacks: list[list[tuple[bytes, bytes, bytes]]] = []
    chosen = -1
    for line in lines:
        if head := _HEAD.match(line):
            stacks.append([])
            if head.group(1) == b"Current thread":
                chosen = len(stacks) - 1
        elif stacks and (frame := _FRAME.match(line)):
            stacks[-1].append((frame.group(1), frame.group(2), frame.group(3)))
    if not stacks or not stacks[chosen]:
        return b""
    last = stacks[chosen][0]
    own = next((one for one in stacks[chosen] if not any(part in one[0] for part in _NOT_OURS)), last)
    return _spoken(last) if own == last else _spoken(own) + b" > " + _spoken(last)


def _spoken(frame: tuple[bytes, bytes, bytes]) -> bytes:
    path, line, function = frame
    return b"/".join(path.split(b"/")[-2:]) + b":" + line + b" " + function


def _together(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ranks that stand alike share a place; the places of the fewest ranks are the ones that are kept."""
    places: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in found:
        rank = one.pop("rank")
        places.setdefault(tuple(one.values()), {"ranks": [], **one})["ranks"].append(rank)
    return sorted(places.values(), key=lambda place: len(place["ranks"]))[:STACK_PLACES]


# ---------------------------------------------------------------------- the kernel's word


def _state(pids: list[int]) -> str:
    """The first remarkable state of a rank and what it has started."""
    for pid in pids:
        letter = _REMARKABLE.get(_letter(pid))
        if letter is not None:
            return letter
    return ""


def _letter(pid: int) -> str:
    stat = _read(f"/proc/{pid}/stat")
    return stat[stat.rfind(b")") + 2 :][:1].decode("ascii", "replace")


def _in_kernel(pid: int) -> bytes:
    """What the kernel says of a silent process: its stack where that may be read, else one word."""
    stack = deque(re.findall(rb"\] ([\w.]+)\+0x", _read(f"/proc/{pid}/stack")), maxlen=64)
    if stack:
        return b"kernel: " + b" < ".join(list(stack)[:4])
    word = _read(f"/proc/{pid}/wchan").strip()
    return b"kernel: " + word if word not in (b"", b"0") else b""


def _status(pid: int) -> dict[bytes, bytes]:
    pairs = (line.partition(b":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _holds(mask: bytes | None, number: int) -> bool:
    return mask is not None and bool(int(mask, 16) >> (number - 1) & 1)


def _environment(pid: int) -> dict[bytes, bytes]:
    pairs = (entry.partition(b"=") for entry in _read(f"/proc/{pid}/environ").split(b"\0"))
    return {key: value for key, _, value in pairs}


def _read(path: str) -> bytes:
    """A file of /proc; b"" where the process is gone or it is not for us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 64 * 1024)
    except OSError:
        return b""
    finally:
        os.close(fd)

"""Many stand-in agents in one process: the agent's protocol over TLS, and no ranks behind it.

They obey at once: join -> Ready, run -> Running, ping -> the same report again. No asyncio, and no JSON where
comparing bytes will do: real agents have nodes of their own, these share two cores with what is measured.

The first line on stdin says whom to play (`Cast`), later lines what to do (`Wish`); the answers on stdout are
lines of JSON with times of the machine's monotonic clock, which all processes here share.
"""

import os
import select
import socket
import ssl
import sys
import time
from collections import Counter, deque
from enum import Enum
from typing import Any, Literal

import msgspec

READ_BYTES = 16 * 1024
RETRY_SECONDS = 0.5
MAX_OPENING = 4
ADDRESS = "10.0.0.1"


class Played(msgspec.Struct, frozen=True):
    """One agent to play."""

    node_rank: int
    pod: str
    pod_uid: str


class Cast(msgspec.Struct, frozen=True):
    """Whom this process plays, and where the coordinator is."""

    port: int
    ca: str
    server_name: str
    token: str
    job: str
    job_uid: str
    agents: list[Played]


class Wish(msgspec.Struct, frozen=True):
    """`fail`: a rank of this node rank ends with an error (`everybody`: a rank of every agent here).
    `step`: the first agent tells of this step. `leave`: the agent of this node rank hangs up for good."""

    do: Literal["fail", "step", "leave"]
    node_rank: int = -1
    everybody: bool = False
    step: int = 0


class _Order(msgspec.Struct, frozen=True):
    kind: str
    term: int = 0
    do: str = ""
    round: int = 0
    release: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Order).decode
_encode = msgspec.json.Encoder().encode


class Stage(Enum):
    """How far a connection is."""

    HANDSHAKE = 0
    HELLO = 1
    WELCOME = 2


class StandIn:
    """One agent. What it says last is kept ready to be said again."""

    __slots__ = ("facts", "missed", "pending", "played", "rest", "saying", "sock", "stage", "stepped_at")

    def __init__(self, played: Played) -> None:
        self.played = played
        self.sock: ssl.SSLSocket
        self.stage = Stage.HANDSHAKE
        self.missed = False  # its connection was lost, and it is not back
        self.facts: dict[str, Any] = {
            "state": "Idle", "round": 0, "term": 0, "release": None, "address": ADDRESS, "port": None,
            "exit": None, "ranks_alive": 0, "progress": None, "progress_age": None,
        }  # fmt: skip
        self.becomes()
        self.rest = self.pending = b""
        self.stepped_at = 0.0  # 0.0: it has told of no step in this round

    def hello(self, cast: Cast) -> bytes:
        played = self.played
        names = {"job": cast.job, "job_uid": cast.job_uid, "pod": played.pod, "pod_uid": played.pod_uid}
        return _encode({"kind": "hello", "v": 1, "token": cast.token, **names, "report": self.facts}) + b"\n"

    def becomes(self, **changes: Any) -> None:
        """Change the report."""
        self.facts.update(changes)
        self.saying = _encode({"kind": "report", "report": self.facts}) + b"\n"


class Crowd:
    """All stand-ins of this process, served by one epoll."""

    def __init__(self, cast: Cast) -> None:
        self._cast = cast
        self._tls = ssl.create_default_context(cadata=cast.ca)
        self._poll = select.epoll()
        self._by_fd: dict[int, StandIn] = {}
        self._by_rank = {played.node_rank: StandIn(played) for played in cast.agents}
        self._to_open = deque(self._by_rank.values())
        self._opening = 0
        self._welcomed = 0
        self._joined: Counter[int] = Counter()
        self._released: Counter[int] = Counter()
        self._commands = b""

    def run(self) -> None:
        """Connect, and serve until stdin ends."""
        os.set_blocking(0, False)
        self._poll.register(0, select.EPOLLIN)
        while True:
            while self._to_open and self._opening < MAX_OPENING:
                self._open(self._to_open.popleft())
            for fd, _ in self._poll.poll(RETRY_SECONDS):
                if fd == 0:
                    if not self._command():
                        return
                elif (one := self._by_fd.get(fd)) is not None:
                    try:
                        self._hear(fd, one)
                    except OSError:
                        self._lose(fd, one)

    def _open(self, one: StandIn) -> None:
        self._opening += 1
        raw = socket.create_connection(("127.0.0.1", self._cast.port), timeout=60)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setblocking(False)
        name = self._cast.server_name
        one.sock = self._tls.wrap_socket(raw, server_hostname=name, do_handshake_on_connect=False)
        one.stage, one.rest, one.pending = Stage.HANDSHAKE, b"", b""
        fd = one.sock.fileno()
        self._by_fd[fd] = one
        self._poll.register(fd, select.EPOLLIN | select.EPOLLOUT)

    def _lose(self, fd: int, one: StandIn) -> None:
        """Hung up on: an agent connects again, as the real one does."""
        if one.stage is Stage.WELCOME:
            self._welcomed -= 1
            one.missed = True
            say(lost=one.played.node_rank)
        else:
            self._opening -= 1
        self._poll.unregister(fd)
        del self._by_fd[fd]
        one.sock.close()
        self._to_open.appendleft(one)  # before those that were never there: nobody has missed them

    def _hear(self, fd: int, one: StandIn) -> None:
        """Raises OSError when the connection is over."""
        try:
            if one.stage is Stage.HANDSHAKE:
                one.sock.do_handshake()
                one.stage = Stage.HELLO
                one.pending = one.hello(self._cast)
            if one.pending:
                self._send(fd, one, b"")
            data = one.sock.recv(READ_BYTES)
        except ssl.SSLWantReadError:
            if one.stage is Stage.HANDSHAKE:
                self._poll.modify(fd, select.EPOLLIN)
            return
        except ssl.SSLWantWriteError:
            return
        if not data:
            raise ConnectionResetError
        *frames, one.rest = (one.rest + data).split(b"\n")
        for frame in frames:
            if frame.startswith(b'{"kind":"ping"'):
                if one.stepped_at:
                    one.becomes(progress_age=round(time.monotonic() - one.stepped_at, 3))
                self._send(fd, one, one.saying)
            else:
                self._obey(fd, one, _decode(frame))

    def _obey(self, fd: int, one: StandIn, frame: _Order) -> None:
        if frame.kind == "order":
            self._order(fd, one, frame)
        elif frame.kind == "welcome":
            one.stage = Stage.WELCOME
            self._opening -= 1
            self._welcomed += 1
            if one.missed:
                one.missed = False
                say(back=one.played.node_rank)
            if self._welcomed == len(self._by_rank):
                say(connected=time.monotonic())

    def _order(self, fd: int, one: StandIn, order: _Order) -> None:
        facts, round_ = one.facts, order.round
        if order.do == "join" and round_ > facts["round"]:
            offer = {"address": ADDRESS, "port": 20000 + round_ % 10000}
            fresh = {"exit": None, "progress": None, "progress_age": None, "release": None, "ranks_alive": 0}
            one.stepped_at = 0.0
            one.becomes(state="Ready", round=round_, term=order.term, **offer, **fresh)
            self._count("joined", self._joined, round_)
        elif order.do == "run" and facts["state"] == "Ready" and order.release is not None:
            one.becomes(state="Running", release=order.release, ranks_alive=order.release["nproc"])
            self._count("released", self._released, round_)
        self._send(fd, one, one.saying)

    def _count(self, what: str, counts: Counter[int], round_: int) -> None:
        counts[round_] += 1
        if counts[round_] in (1, len(self._by_rank)):
            which = "last" if counts[round_] == len(self._by_rank) else "first"
            say(what=what, which=which, round=round_, at=time.monotonic())

    def _send(self, fd: int, one: StandIn, frame: bytes) -> None:
        waited = one.pending
        data = waited + frame
        try:
            sent = one.sock.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        one.pending = data[sent:]
        if waited or one.pending:
            self._poll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if one.pending else 0))

    def _command(self) -> bool:
        data = os.read(0, 65536)
        if not data:
            return False
        *lines, self._commands = (self._commands + data).split(b"\n")
        for line in lines:
            self._grant(msgspec.json.decode(line, type=Wish))
        return True

    def _grant(self, wish: Wish) -> None:
        if wish.do == "step":
            one = next(iter(self._by_rank.values()))
            told = {"step": wish.step, "phase": "train", "checkpoint_step": wish.step}
            one.becomes(progress=told, progress_age=0.0)
            one.stepped_at = time.monotonic()
            self._send(one.sock.fileno(), one, one.saying)
            return
        if wish.do == "leave":
            if (gone := self._by_rank.get(wish.node_rank)) is not None:
                self._lose(gone.sock.fileno(), gone)
                self._to_open.remove(gone)
            return
        say(failed=time.monotonic())
        for rank, one in self._by_rank.items():
            if wish.everybody or rank == wish.node_rank:
                root = rank == wish.node_rank
                one.becomes(state="Failed", exit=_exit(rank, root), ranks_alive=0)
                self._send(one.sock.fileno(), one, one.saying)


def _exit(node_rank: int, root: bool) -> dict[str, Any]:
    """A rank killed by a signal, and what its peers say then."""
    last = "" if root else "RuntimeError: Connection closed by peer"
    lines = [f"step {number} took 1.00 s" for number in range(19)] + ([last] if last else [])
    return {
        "rank": node_rank * 8, "local_rank": 0, "exit_code": None if root else 1,
        "signal": 9 if root else None, "ordered": False, "exception": None if root else "RuntimeError",
        "last_line": last, "lines": lines, "age": 0.0 if root else 0.01, "contract": True,
        "codes": {"0": -9 if root else 1}, "same_on_all": False,
    }  # fmt: skip


def say(**words: Any) -> None:
    """One line for whoever started this process."""
    sys.stdout.buffer.write(_encode(words) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1 << 20)
    Crowd(msgspec.json.decode(line, type=Cast)).run()


if __name__ == "__main__":
    main()

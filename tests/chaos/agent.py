"""A stand-in for the agent in virtual time: the real one's fences, states and reports, without processes and sockets.

Its wire ends in the operator's own connection class: frames are encoded, decoded and judged as on a socket.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rerail_api.contract import CANNOT_STOP_SECONDS
from rerail_operator.shell.connection import AgentConnection

Frame = dict[str, Any]
PROBE_PORT = 40_000
STOPPING_SECONDS = 0.3
"""Between an order to stop and the end of the last process."""


class Wire(asyncio.Transport):
    """The coordinator's end of a connection; what it writes is with the agent in the loop's next turn."""

    def __init__(self, agent: "StandIn") -> None:
        super().__init__()
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self.connection: AgentConnection | None = None
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._loop.call_soon(self._agent.hears, self, bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        """The connection itself keeps what comes before the hello is judged."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._loop.call_soon(self._cut)

    abort = close

    def _cut(self) -> None:
        if self.connection is not None:
            self.connection.connection_lost(None)
        self._agent.cut(self)


@dataclass
class StandIn:
    """One agent of one pod. `on_change` is called whenever what it is or runs has changed."""

    job: str
    job_uid: str
    pod: str
    pod_uid: str
    node: str
    address: str
    on_change: Callable[[], None]
    on_finish: Callable[["StandIn", int], None]
    state: str = "Idle"
    round: int = 0
    term: int = 0
    release: Frame | None = None
    exit: Frame | None = None
    exit_at: float = 0.0
    port: int | None = None
    ranks_alive: int = 0
    progress: Frame | None = None
    told_at: float = 0.0
    goal: int = 0
    wire: Wire | None = None
    refused: list[str] = field(default_factory=list)
    frozen: bool = False  # its processes are stopped, as by SIGSTOP
    muted: bool = False  # nothing that it says or is told arrives
    can_probe: bool = True  # False: an agent of the version before
    probes: Callable[[str], str] = lambda address: "unknown"
    unkillable: bool = False  # something below it survives SIGKILL
    dawdles: bool = False  # told to stop, it is at it for ever
    gone: bool = False
    _port_of_next_round: int = 20_000

    @property
    def hears_and_speaks(self) -> bool:
        return not (self.gone or self.frozen or self.muted)

    # -- the wire

    def connect(self, wire: Wire) -> None:
        """Say hello on a fresh connection."""
        self.wire = wire
        self._send(wire, {
            "kind": "hello", "v": 1, "token": "", "job": self.job, "job_uid": self.job_uid, "pod": self.pod,
            "pod_uid": self.pod_uid, "report": self._report(), "can": ["probe"] if self.can_probe else [],
        })  # fmt: skip

    def hears(self, wire: Wire, data: bytes) -> None:
        """A frame of the coordinator; of a connection that is no longer ours nobody takes note."""
        if wire is not self.wire or not self.hears_and_speaks:
            return
        frame = json.loads(data)
        if frame["kind"] == "refuse":
            self.refused.append(frame["reason"])
            return
        if frame.get("term", 0) < self.term:
            wire.close()
            return
        self.term = max(self.term, frame.get("term", 0))
        if frame["kind"] == "order":
            self._obey(frame)
        elif frame["kind"] == "probe":
            outcome = self.probes(frame["address"])
            self._send(wire, {"kind": "probed", "id": frame["id"], "outcome": outcome})
        self.tell()

    def cut(self, wire: Wire) -> None:
        """The connection has ended."""
        if wire is self.wire:
            self.wire = None
            self.on_change()

    def tell(self) -> None:
        """A report, if anybody listens."""
        if self.wire is not None and not self.frozen:
            self._send(self.wire, {"kind": "report", "report": self._report()})

    def _send(self, wire: Wire, frame: Frame) -> None:
        data = json.dumps(frame).encode() + b"\n"

        def arrive() -> None:
            if wire.connection is not None and not wire.is_closing() and self.hears_and_speaks:
                wire.connection.data_received(data)

        asyncio.get_running_loop().call_soon(arrive)

    def _report(self) -> Frame:
        now = asyncio.get_running_loop().time()
        exit_ = None if self.exit is None else {**self.exit, "age": round(now - self.exit_at, 3)}
        return {
            "state": self.state, "round": self.round, "term": self.term, "release": self.release,
            "address": self.address, "port": self.port, "exit": exit_, "ranks_alive": self.ranks_alive,
            "step_seconds_p99": None if self.progress is None else 0.5,
            "progress": self.progress, "probe_port": PROBE_PORT if self.can_probe else None,
            "progress_age": None if self.progress is None else round(now - self.told_at, 3),
        }  # fmt: skip

    # -- orders: an older round or an older leader is not for us

    def _obey(self, order: Frame) -> None:
        match order["do"]:
            case "join" if order["round"] > max(self.round, self.goal):
                self.goal = order["round"]
                self.state = "Stopping" if self.ranks_alive else self.state
                seconds = CANNOT_STOP_SECONDS if self.unkillable else STOPPING_SECONDS
                asyncio.get_running_loop().call_later(seconds, self._stopped, self.goal)
            case "run" if self.state == "Ready" and order["round"] == self.round:
                self.release, self.state, self.ranks_alive = (
                    order["release"],
                    "Running",
                    order["release"]["nproc"],
                )
            case "finish":
                self.on_finish(self, order["code"] or 0)
        self.on_change()

    def _stopped(self, goal: int) -> None:
        if self.gone or self.dawdles or goal != self.goal:
            return
        if self.frozen:  # a stopped process cannot stop anything
            asyncio.get_running_loop().call_later(STOPPING_SECONDS, self._stopped, goal)
            return
        if self.unkillable:
            self.state = "Stuck"
            self.tell()
            return
        self._port_of_next_round += 7
        self.round, self.state, self.port = goal, "Ready", self._port_of_next_round
        self.release = self.exit = self.progress = None
        self.ranks_alive = 0
        self.on_change()
        self.tell()

    # -- what happens to its ranks

    def rank_ends(self, **told: Any) -> None:
        """A rank of this node ends by itself; the others of this node live on."""
        if self.state != "Running":
            return
        self.state, self.exit_at = "Failed", asyncio.get_running_loop().time()
        self.ranks_alive = 0 if told.get("same_on_all") else max(0, self.ranks_alive - 1)
        first = self.release["node_rank"] * self.release["nproc"] if self.release else 0
        self.exit = {"rank": first, "local_rank": 0, "exit_code": None, "signal": None, "ordered": False,
                     "lines": ["last words"], "last_line": "last words", **told}  # fmt: skip
        self.on_change()
        self.tell()

    def done(self) -> None:
        """All ranks of this node have ended with 0."""
        self.state, self.ranks_alive = "Done", 0
        self.tell()

    def stepped(self, progress: Frame) -> None:
        """A line of progress of a rank of this node."""
        self.progress, self.told_at = progress, asyncio.get_running_loop().time()
        self.tell()

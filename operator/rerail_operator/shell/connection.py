"""One agent's connection: hello, then reports; everything it says goes to the coordinator that holds it.

A plain asyncio protocol without a task of its own: 18,750 of them have to be cheap.
"""

import asyncio
from typing import Any, Protocol, cast

from .frames import BadFrame, FrameBuffer, Hello, Message, Probed, Report, ReportFrame, decode, encode

# An agent that no longer reads is cut off before its unread pings add up.
MAX_UNREAD_BYTES = 256 * 1024


class Desk(Protocol):
    """What a connection needs of the coordinator."""

    def hello(self, connection: "AgentConnection", hello: Hello) -> None:
        """Decides, now or later, by `accept`, `refuse` or `redirect`."""
        ...

    def report(self, connection: "AgentConnection", report: ReportFrame) -> None: ...

    def probed(self, connection: "AgentConnection", probed: Probed) -> None: ...

    def again(self, connection: "AgentConnection") -> None:
        """The last report, which no time has made older, was sent once more."""
        ...

    def lost(self, connection: "AgentConnection") -> None: ...


class AgentConnection(asyncio.Protocol):
    """`settled` ends when the peer is accepted or gone."""

    __slots__ = (
        "_buffer",
        "_desk",
        "_hello_seen",
        "_said",
        "_transport",
        "_waiting",
        "pod_uid",
        "settled",
    )

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._buffer = FrameBuffer()
        self._transport: asyncio.Transport | None = None
        self._hello_seen = False
        self._waiting: list[bytes] = []
        self._said: bytes | None = None  # the last report's frame, if nothing in it is told by its age
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pod_uid = ""

    @property
    def accepted(self) -> bool:
        return self.pod_uid != ""

    @property
    def connected(self) -> bool:
        return self._transport is not None

    @property
    def closing(self) -> bool:
        """Closed on our side; what the peer still says counts no more."""
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._settle()
        self._desk.lost(self)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._buffer.feed(data):
                self._frame(frame)
        except BadFrame as error:
            self.refuse(str(error))

    def accept(self, pod_uid: str) -> None:
        """The peer is who it says; what it sent meanwhile is read now."""
        self.pod_uid = pod_uid
        self._settle()
        waiting, self._waiting = self._waiting, []
        if self._transport is not None and not self.closing:
            self._transport.resume_reading()
        try:
            for frame in waiting:
                self._frame(frame)
        except BadFrame as error:
            self.refuse(str(error))

    def refuse(self, reason: str) -> None:
        self.write({"kind": "refuse", "reason": reason})
        self.close()

    def redirect(self, address: str) -> None:
        self.write({"kind": "redirect", "address": address})
        self.close()

    def write(self, message: dict[str, Any]) -> None:
        """Raises BadFrame when the message is too long; writing to a closed connection does nothing."""
        self.write_frame(encode(message))

    def write_frame(self, frame: bytes) -> None:
        if self._transport is None or self.closing:
            return
        if self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.abort()
            return
        self._transport.write(frame)

    def close(self) -> None:
        """After what is written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _frame(self, frame: bytes) -> None:
        if self.closing:
            return
        if self._hello_seen and not self.accepted:
            self._waiting.append(frame)  # bounded: reading is paused until the hello is judged
            return
        if frame == self._said:
            self._desk.again(self)
            return
        message = decode(frame)
        self._message(message)
        self._said = frame if isinstance(message, Report) and _is_timeless(message.report) else None

    def _message(self, message: Message) -> None:
        if isinstance(message, Hello):
            if self._hello_seen:
                raise BadFrame("a second hello on one connection")
            self._hello_seen = True
            if self._transport is not None:
                self._transport.pause_reading()
            self._desk.hello(self, message)
        elif not self.accepted:
            raise BadFrame("the first message has to be a hello")
        elif isinstance(message, Probed):
            self._desk.probed(self, message)
        else:
            self._desk.report(self, message.report)

    def _settle(self) -> None:
        if not self.settled.done():
            self.settled.set_result(None)


def _is_timeless(report: ReportFrame) -> bool:
    return report.exit is None and report.progress is None

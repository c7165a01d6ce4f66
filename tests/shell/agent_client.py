"""A stand-in for the agent: speaks its protocol and obeys orders at once, or as scripted. For tests and bench.

`AgentClient.obey()` is the whole agent without processes: join -> Ready, run -> Running, stop -> Stopped.
"""

import asyncio
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Frame = dict[str, Any]


@dataclass
class AgentClient:
    """One agent of one pod. `report` is what it says; change it with `say`."""

    job: str
    job_uid: str
    pod: str
    pod_uid: str
    token: str = ""
    address: str = "127.0.0.1"
    report: Frame = field(default_factory=lambda: {"state": "Idle", "round": 0, "term": 0})
    on_order: Callable[["AgentClient", Frame], None] | None = None
    received: list[Frame] = field(default_factory=list)
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def connect(self, host: str, port: int, tls: ssl.SSLContext | None = None, name: str = "") -> None:
        """Open the connection and say hello; answers come through `receive` or `obey`."""
        self.reader, self.writer = await asyncio.open_connection(
            host, port, ssl=tls, server_hostname=(name or host) if tls else None, limit=128 * 1024
        )
        await self.send_frame(self.hello())

    def hello(self, **changes: Any) -> Frame:
        names = {"job": self.job, "job_uid": self.job_uid, "pod": self.pod, "pod_uid": self.pod_uid}
        return {"kind": "hello", "v": 1, "token": self.token, **names, "report": self.report, **changes}

    async def send_frame(self, frame: Frame) -> None:
        await self.send_bytes(json.dumps(frame).encode() + b"\n")

    async def send_bytes(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)
        await self.writer.drain()

    async def say(self, **changes: Any) -> None:
        """Change the report and send it."""
        self.report = {**self.report, **changes}
        await self.send_frame({"kind": "report", "report": self.report})

    async def receive(self, kind: str = "", seconds: float = 10.0) -> Frame:
        """The next frame, or the next of that kind; fails at the end of the connection."""
        assert self.reader is not None
        async with asyncio.timeout(seconds):
            while line := await self.reader.readline():
                frame: Frame = json.loads(line)
                self.received.append(frame)
                if not kind or frame["kind"] == kind:
                    return frame
        raise AssertionError(f"the connection ended without a frame {kind!r}; received: {self.received}")

    async def ended(self, seconds: float = 10.0) -> bool:
        """Reads until the coordinator closes the connection."""
        assert self.reader is not None
        async with asyncio.timeout(seconds):
            try:
                while line := await self.reader.readline():
                    self.received.append(json.loads(line))
            except ConnectionError:
                return True
        return True

    async def obey(self) -> None:
        """Follow orders until told to finish or until the connection ends; answers every ping with a report."""
        assert self.reader is not None
        while line := await self.reader.readline():
            frame: Frame = json.loads(line)
            self.received.append(frame)
            self.report["term"] = max(self.report.get("term", 0), frame.get("term", 0))
            if frame["kind"] == "ping":
                await self.say()
            elif frame["kind"] == "order" and not await self._follow(frame):
                return

    async def _follow(self, order: Frame) -> bool:
        if self.on_order is not None:
            self.on_order(self, order)
        match order["do"]:
            case "join":
                offer = {"address": self.address, "port": 29500 + order["round"] % 1000}
                await self.say(state="Ready", round=order["round"], release=None, exit=None, **offer)
            case "run":
                ranks = order["release"]["nproc"]
                await self.say(state="Running", release=order["release"], ranks_alive=ranks)
            case "stop":
                await self.say(state="Stopped", ranks_alive=0)
            case "finish":
                await self.close()
                return False
        return True

    async def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            try:
                await self.writer.wait_closed()
            except (ConnectionError, ssl.SSLError):
                return

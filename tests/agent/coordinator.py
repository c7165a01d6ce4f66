"""A coordinator of a few lines that speaks the agent's protocol and does what a test says."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

DEADLINE_SECONDS = 30.0
PING_SECONDS = 0.2

Report = dict[str, Any]


class Coordinator:
    """Listens on loopback; keeps every hello and report; sends orders to whoever is connected."""

    def __init__(self, term: int = 7, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.term = term
        self.answer: dict[str, Any] | None = None
        """What a hello is answered with instead of a welcome, if anything; the connection then ends."""
        self.pinging = True
        self.welcoming = True
        self.hellos: list[dict[str, Any]] = []
        self.reports: list[Report] = []
        self.port = port
        self.patience = DEADLINE_SECONDS
        """How long a test waits for what it wants, in seconds."""
        self._tls = tls
        self._writers: list[asyncio.StreamWriter] = []
        self._news = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._pinger: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Coordinator:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls, limit=65536
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._pinger = asyncio.create_task(self._ping())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None and self._pinger is not None
        self._server.close()
        self._pinger.cancel()
        self.hang_up()
        with suppress(asyncio.CancelledError):
            await self._pinger
        await asyncio.sleep(0)

    # ------------------------------------------------------------------ what a test says

    def hang_up(self) -> None:
        """Drop every connection without a word."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def send(self, **frame: Any) -> None:
        """A frame to every agent that is connected."""
        data = json.dumps(frame).encode() + b"\n"
        for writer in self._writers:
            writer.write(data)

    def order(self, do: str, **fields: Any) -> None:
        self.send(**{"kind": "order", "term": self.term, "do": do, **fields})

    def join(self, number: int) -> None:
        self.order("join", round=number)

    def run(self, number: int, **release: Any) -> Report:
        """Order the release; what is not named is that of one node with one rank."""
        whole = {
            "round": number,
            "node_rank": 0,
            "num_nodes": 1,
            "nproc": 1,
            "master_addr": "127.0.0.1",
            "master_port": 29500,
            "min_step": 0,
            **release,
        }
        self.order("run", round=number, release=whole)
        return whole

    def stop(self, number: int, mode: str, grace: float = 20.0) -> None:
        self.order("stop", round=number, mode=mode, grace=grace)

    def finish(self, code: int, message: str = "") -> None:
        self.order("finish", code=code, message=message)

    # ------------------------------------------------------------------ what a test waits for

    @property
    def report(self) -> Report:
        return self.reports[-1]

    async def until(self, wanted: Callable[[Report], Any], what: str = "the wanted report") -> Report:
        """The first report, from the newest on, that is as wanted; fails after a deadline with the newest one."""
        async with self._news:
            try:
                await asyncio.wait_for(
                    self._news.wait_for(lambda: self.reports and wanted(self.report)), self.patience
                )
            except TimeoutError:
                raise AssertionError(f"no {what}; newest: {self.reports[-1:]}") from None
            return self.report

    async def state(self, state: str, number: int | None = None) -> Report:
        """The report of this state, in this round if one is given."""
        return await self.until(
            lambda r: r["state"] == state and number in (None, r["round"]), f"{state} in round {number}"
        )

    async def hello(self, count: int = 1) -> dict[str, Any]:
        """The hello with that number, counted from 1."""
        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait_for(lambda: len(self.hellos) >= count), self.patience)
            except TimeoutError:
                raise AssertionError(f"only {len(self.hellos)} hellos") from None
        return self.hellos[count - 1]

    # ------------------------------------------------------------------ the protocol

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._session(reader, writer)
        except (OSError, ValueError):
            return
        finally:
            if writer in self._writers:
                self._writers.remove(writer)
            writer.transport.abort()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not (line := await reader.readline()):
            return
        hello = json.loads(line)
        assert hello["kind"] == "hello" and hello["v"] == 1
        if self.answer is not None:
            writer.write(json.dumps(self.answer).encode() + b"\n")
            await writer.drain()
        elif self.welcoming:
            writer.write(json.dumps({"kind": "welcome", "v": 1, "term": self.term}).encode() + b"\n")
            self._writers.append(writer)
        await self._note(hello["report"], hello)
        if self.answer is not None:
            writer.close()
            return
        while line := await reader.readline():
            frame = json.loads(line)
            assert frame["kind"] == "report"
            await self._note(frame["report"])

    async def _note(self, report: Report, hello: dict[str, Any] | None = None) -> None:
        async with self._news:
            if hello is not None:
                self.hellos.append(hello)
            self.reports.append(report)
            self._news.notify_all()

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            if self.pinging:
                self.send(kind="ping", term=self.term)

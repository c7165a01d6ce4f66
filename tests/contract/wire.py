"""A wire between us and the API server that can be cut: a TCP relay in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Wire:
    """Relays connections to a port of 127.0.0.1. `cut_next_reply` breaks the next answer off."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._cut = False
        self._pumps: set[asyncio.Task[None]] = set()
        self.port = 0

    def cut_next_reply(self) -> None:
        self._cut = True

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Wire"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        writers = (writer, far_writer)
        for source, sink, is_reply in ((reader, far_writer, False), (far_reader, writer, True)):
            pump = asyncio.create_task(self._pump(source, sink, writers, is_reply))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        writers: tuple[asyncio.StreamWriter, ...],
        is_reply: bool,
    ) -> None:
        try:
            while data := await source.read(65536):
                if is_reply and self._cut:
                    self._cut = False
                    break
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass  # the other side is gone: so is this one
        finally:
            for writer in writers:
                writer.close()

"""The bare client: one aiohttp session as the administrator, who is exempt from priority and fairness."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from tests.cluster.rig import ControlPlane

CONCURRENCY = 64


class Client:
    """Open it with `async with`. Any error status is a RuntimeError with the server's words."""

    def __init__(self, cluster: ControlPlane) -> None:
        self._url, self._tls = cluster.url, cluster.api.context
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, path: str) -> Any:
        return msgspec.json.decode(await self.send("GET", path))

    async def post(self, path: str, body: bytes | dict[str, Any]) -> Any:
        return msgspec.json.decode(await self.send("POST", path, body))

    async def patch(self, path: str, body: dict[str, Any]) -> None:
        """A JSON merge patch."""
        await self.send("PATCH", path, body, "application/merge-patch+json")

    async def delete(self, path: str) -> None:
        await self.send("DELETE", path)

    async def create_all(self, path: str, bodies: Iterable[bytes]) -> None:
        """POST all, 64 at a time; the replies are read and dropped."""
        await asyncio.gather(*(self.send("POST", path, body) for body in bodies))

    @asynccontextmanager
    async def stream(self, path: str) -> AsyncIterator[aiohttp.StreamReader]:
        """The body of a watch as it comes."""
        async with self._session.get(self._url + path) as reply:
            reply.raise_for_status()
            yield reply.content

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        kind: str = "application/json",
    ) -> bytes:
        """One request, one of at most 64 at a time; the reply's body."""
        data = msgspec.json.encode(body) if isinstance(body, dict) else body
        async with (
            self._slots,
            self._session.request(
                method, self._url + path, data=data, headers={"Content-Type": kind}
            ) as reply,
        ):
            text = await reply.read()
            if reply.status >= 300:
                raise RuntimeError(f"{method} {path}: {reply.status} {text[:500].decode(errors='replace')}")
            return text

"""One HTTP session to the API server: credentials, concurrency, timeouts, Retry-After, and errors by type.

Ordinary requests share the adaptive limiter. The Lease has a connection of its own, no queue and little
patience: it must get through, or fail, while thousands of pods are being created.
"""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Self

import aiohttp

from rerail_operator.shell.cluster import Unavailable
from rerail_operator.shell.informer import SILENCE_SECONDS
from rerail_operator.shell.kube.credentials import Credentials
from rerail_operator.shell.kube.errors import Call, error_of, unreachable
from rerail_operator.shell.kube.limiter import Limiter

THROTTLE_PATIENCE_SECONDS = 10.0
DEFAULT_RETRY_AFTER_SECONDS = 1.0
CONNECT_SECONDS = 10.0
WATCH_READ_SECONDS = SILENCE_SECONDS + 10.0
"""An informer gives a silent stream up first; this is for readers without such a watch of their own."""

# The cluster's published keys come as a type of their own, and as nothing else (406).
_ACCEPT = "application/json, application/jwk-set+json"
_HEADERS = {"Accept": _ACCEPT, "User-Agent": "rerail", "Accept-Encoding": "identity"}
# Compression of lists would cost the API server and us more CPU than it saves on the wire.


class Lane(Enum):
    """How a request is treated."""

    BULK = auto()  # shares the limiter, its latency steers it
    SLOW = auto()  # shares the limiter; long by nature: lists, collection deletes
    LEASE = auto()  # its own connection; fails within 4 s


_TIMEOUTS = {Lane.BULK: 30.0, Lane.SLOW: 90.0, Lane.LEASE: 4.0}
_FAILURES = (aiohttp.ClientError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: what it is called (verb and resource), and where and how it goes."""

    call: Call
    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"
    lane: Lane = Lane.BULK
    wants_reply: bool = True  # False: the body is left unread (a collection delete may carry every object)


class Session:
    """Open it with `async with`. Every failure is a ClusterError."""

    def __init__(self, credentials: Credentials, limiter: Limiter | None = None) -> None:
        self._credentials = credentials
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self.limiter = limiter or Limiter()

    async def __aenter__(self) -> Self:
        await self._credentials.load()
        # The limiter bounds the requests; watches come on top and must never wait for a connection.
        for lease, limit in ((False, 0), (True, 2)):
            connector = aiohttp.TCPConnector(limit=limit, keepalive_timeout=60.0)
            self._sessions[lease] = aiohttp.ClientSession(connector=connector, headers=_HEADERS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for session in self._sessions.values():
            await session.close()

    async def request(self, request: Request) -> bytes:
        """The reply's body. A 429 is waited out as the server asks, for a while; nothing else is repeated."""
        began = time.monotonic()
        while True:
            try:
                return await self._within_limits(request)
            except Unavailable as error:
                waited = time.monotonic() - began
                patience = 0.0 if request.lane is Lane.LEASE else THROTTLE_PATIENCE_SECONDS
                # Only a 429 says for certain that nothing has happened.
                if not isinstance(error, Throttled) or waited + (error.retry_after or 0.0) > patience:
                    raise

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncIterator[aiohttp.StreamReader]:
        """The body of a watch as it comes. Silence for `WATCH_READ_SECONDS` is a dropped stream."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=WATCH_READ_SECONDS
        )
        try:
            async with self._send(request, timeout) as response:
                try:
                    yield response.content
                finally:
                    _abort(response)
        except _FAILURES as error:
            raise unreachable(request.call, error) from error

    async def _within_limits(self, request: Request) -> bytes:
        lease = request.lane is Lane.LEASE
        async with nullcontext() if lease else self.limiter.slot():
            began = time.monotonic()
            try:
                body = await self._read(request)
            except Throttled as error:
                if not lease:
                    self.limiter.throttled(error.retry_after or DEFAULT_RETRY_AFTER_SECONDS)
                raise
            if request.lane is Lane.BULK:
                self.limiter.replied(time.monotonic() - began)
            return body

    async def _read(self, request: Request) -> bytes:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUTS[request.lane], sock_connect=CONNECT_SECONDS)
        try:
            async with self._send(request, timeout) as response:
                if not request.wants_reply:
                    _abort(response)
                    return b""
                return await response.read()
        except _FAILURES as error:
            raise unreachable(request.call, error) from error

    @asynccontextmanager
    async def _send(
        self, request: Request, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A reply with a good status. After a 401 the credentials are read anew and tried once more."""
        for last in (False, True):
            headers = await self._credentials.headers()
            async with self._start(request, headers, timeout) as response:
                if response.status < 400:
                    yield response
                    return
                body = await response.read()
                if response.status != 401 or last or not await self._credentials.reload(headers):
                    raise _error(request.call, response, body)

    def _start(
        self, request: Request, headers: dict[str, str], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.client._RequestContextManager:
        access = self._credentials.access
        if request.body is not None:
            headers = headers | {"Content-Type": request.content_type}
        return self._sessions[request.lane is Lane.LEASE].request(
            request.method,
            access.url + request.path,
            params=request.query,
            data=request.body,
            headers=headers,
            timeout=timeout,
            ssl=access.tls,
            server_hostname=access.server_name,
            proxy=access.proxy,
        )


class Throttled(Unavailable):
    """429: it has certainly not happened."""


def _abort(response: aiohttp.ClientResponse) -> None:
    """Leave the rest unread. A polite TLS farewell would outlive the session and wait for the server."""
    if response.connection is not None and (transport := response.connection.transport) is not None:
        transport.abort()
    response.close()


def _error(call: Call, response: aiohttp.ClientResponse, body: bytes) -> Exception:
    error = error_of(call, response.status, body, response.headers.get("Retry-After", ""))
    if response.status == 429 and isinstance(error, Unavailable):
        return Throttled(str(error), error.retry_after)
    return error

"""The one connection to the coordinator: found, kept, dropped when silent, and found again."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rerail_agent.console import Console
from rerail_agent.orders import (
    Advice,
    BadFrame,
    Order,
    Question,
    parse_advice,
    parse_frame,
    parse_order,
    parse_question,
    whole,
)
from rerail_agent.probing import Prober
from rerail_agent.settings import Address, Settings, Timing, parse_address
from rerail_api.contract import MAX_FRAME_BYTES, PROTOCOL_VERSION, RECONNECT_JITTER_SECONDS

if TYPE_CHECKING:
    import ssl

FIRST_JITTER_SECONDS = 0.2
MAX_REDIRECTS = 3
UNREAD_BYTES = 128 * 1024
DISTINCT_COMPLAINTS = 6
CAN = ("probe",)
"""What the hello announces: frames that agents of the first form of this version do not understand."""


class Listener(Protocol):
    """Who acts on what the coordinator says."""

    def saw_term(self, term: int) -> bool: ...

    def obey(self, order: Order, now: float) -> None: ...

    def heed(self, advice: Advice) -> None: ...

    def look(self, question: Question, now: float) -> None: ...


@dataclass(frozen=True)
class Wiring:
    """What a link needs of the process around it."""

    settings: Settings
    timing: Timing
    console: Console
    listener: Listener
    report: Callable[[], dict[str, Any]]
    woken: Callable[[], None]


class Redirected(Exception):
    """A standby has named the leader; the address is empty where it knows none."""

    def __init__(self, address: str) -> None:
        super().__init__(f"a standby answered; the leader is {address or 'not known yet'}")
        self.address = address


class Refused(Exception):
    """The coordinator does not want this agent, and said why."""


class Lost(Exception):
    """No connection, or one that broke; the message says how."""


class Link:
    """Keeps one welcomed connection as far as the world allows."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._writer: asyncio.StreamWriter | None = None
        self._failures = 0
        self._said: dict[str, float] = {}
        self._complained = False
        self._closing = False
        self._heard_at = 0.0
        self._prober = Prober(wiring.timing.probe, wiring.console)
        self.sessions = 0
        """Welcomes so far: who sends reports starts anew with each."""

    @property
    def connected(self) -> bool:
        """A leader has welcomed this agent and is connected."""
        return self._writer is not None

    @property
    def led_at(self) -> float:
        """When a leader was last heard, on the loop's clock."""
        return self._heard_at

    def send(self, report: dict[str, Any]) -> bool:
        """Send a report; false where nobody listens or reads: the next one says it all."""
        writer = self._writer
        if writer is None or writer.transport.get_write_buffer_size() > UNREAD_BYTES:
            return False
        writer.write(_frame({"kind": "report", "report": report}))
        return True

    async def run(self) -> None:
        """Connect, listen, connect again; for ever."""
        while True:
            try:
                await self._attempt_all()
            except Refused as error:
                self._wiring.console.say(f"the coordinator refused this agent: {error}; trying again")
                await asyncio.sleep(self._wiring.timing.refused + _jitter(self._failures))
            except Lost as error:
                self._complain(str(error))
                await asyncio.sleep(_jitter(self._failures))
            self._failures += 1

    async def close(self, seconds: float) -> None:
        """Let the last report out, then hang up."""
        writer, self._writer = self._writer, None
        self._closing = True
        if writer is None:
            return
        try:
            await asyncio.wait_for(writer.drain(), seconds)
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), seconds)
        except (OSError, asyncio.TimeoutError):
            writer.transport.abort()

    # ------------------------------------------------------------------ finding the leader

    async def _attempt_all(self) -> None:
        """Every address of the coordinator in turn; raises Lost with the last reason, or Refused."""
        target = self._wiring.settings.coordinator
        reason = "its name has no address"
        for address in await self._resolve(target):
            before = self.sessions
            try:
                await self._follow(address)
            except Lost as error:
                reason = f"{address}: {error}"
                if self.sessions != before:
                    # A leader was there and is gone: its agents must not all rush to the next replica.
                    break
        raise Lost(reason)

    async def _follow(self, address: Address) -> None:
        """A session there, or where it redirects to; raises Lost or Refused."""
        for _ in range(MAX_REDIRECTS):
            try:
                await self._session(address)
            except Redirected as error:
                try:
                    address = parse_address(error.address)
                except ValueError:
                    raise Lost(str(error)) from error
        raise Lost("standbys redirect in a circle")

    async def _resolve(self, target: Address) -> list[Address]:
        try:
            found = await _look_up(target)
        except (OSError, UnicodeError) as error:
            raise Lost(
                f"cannot resolve {target.host}: {error}; check the operator's Service and DNS"
            ) from error
        addresses = list(dict.fromkeys(Address(host, target.port) for host in found))
        # every agent would else knock at the same replica first
        random.shuffle(addresses)
        return addresses

    # ------------------------------------------------------------------ one session

    async def _session(self, address: Address) -> None:
        """Hello, then listen until the end; always raises Lost, Refused or Redirected."""
        token = self._token()
        reader, writer = await self._open(address)
        try:
            writer.write(_frame(self._hello(token)))
            while True:
                self._handle(await self._next(reader), writer)
        except BadFrame as error:
            raise Lost(f"not our protocol: {error}") from error
        finally:
            self._writer = None
            writer.transport.abort()

    def _token(self) -> str:
        """Read anew for every connection: the kubelet rotates it."""
        path = Path(self._wiring.settings.token_file)
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            raise Lost(f"cannot read the token of this pod: {error}") from error

    def _hello(self, token: str) -> dict[str, Any]:
        settings = self._wiring.settings
        return {
            "kind": "hello",
            "v": PROTOCOL_VERSION,
            "token": token,
            "job": settings.job,
            "job_uid": settings.job_uid,
            "pod": settings.pod,
            "pod_uid": settings.pod_uid,
            "report": self._wiring.report(),
            "can": list(CAN),
        }

    async def _open(self, address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        settings = self._wiring.settings
        context = tls_context(settings.ca_file) if settings.tls else None
        opening = asyncio.open_connection(
            address.host,
            address.port,
            limit=MAX_FRAME_BYTES,
            ssl=context,
            server_hostname=settings.server_name if settings.tls else None,
        )
        try:
            return await asyncio.wait_for(opening, self._wiring.timing.connect)
        except asyncio.TimeoutError as error:
            raise Lost(
                "no answer; check NetworkPolicies and firewalls between this pod and the operator"
            ) from error
        except OSError as error:
            raise Lost(_explain(error)) from error

    async def _next(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            line = await _within(reader.readline, self._wiring.timing.silent)
        except asyncio.TimeoutError as error:
            raise Lost(f"silent for {self._wiring.timing.silent:g} s") from error
        except ValueError as error:
            raise Lost(f"a frame is longer than {MAX_FRAME_BYTES} bytes") from error
        except OSError as error:
            raise Lost(_explain(error)) from error
        if not line.endswith(b"\n"):
            raise Lost("the coordinator hung up")
        return parse_frame(line)

    def _handle(self, frame: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        kind = frame["kind"]
        if kind == "redirect":
            raise Redirected(str(frame.get("address") or ""))
        if kind == "refuse":
            raise Refused(str(frame.get("reason") or "no reason given"))
        if kind == "welcome":
            self._welcomed(frame, writer)
        elif self._writer is None:
            raise BadFrame(f"{kind!r} before the welcome")
        elif kind == "ping":
            self._heed_term(frame)
        elif kind in ("order", "advice"):
            self._order(frame)
        elif kind == "probe":
            self._prober.look_after(frame, partial(self._answer, writer))
        elif kind == "stacks":
            self._wiring.listener.look(parse_question(frame), asyncio.get_running_loop().time())
            self._wiring.woken()
        # a kind that this version does not know is for a later one

    def _welcomed(self, frame: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self._heed_term(frame)
        self._writer = writer
        self.sessions += 1
        self._failures = 0
        if self._complained:
            self._complained = False
            self._wiring.console.say("connected to the coordinator")
        self._wiring.woken()

    def _heed_term(self, frame: dict[str, Any]) -> None:
        term = whole(frame, "term")
        if not self._wiring.listener.saw_term(term):
            raise Lost(f"it leads with term {term}, which is over")
        self._heard_at = asyncio.get_running_loop().time()

    def _order(self, frame: dict[str, Any]) -> None:
        listener = self._wiring.listener
        try:
            if frame["kind"] == "advice":
                listener.heed(parse_advice(frame))
            else:
                listener.obey(parse_order(frame), asyncio.get_running_loop().time())
        except BadFrame as error:
            # The connection is sound and the rest of the orders may be: a newer leader knows more than we do.
            self._wiring.console.say(f"ignored an order: {error}")
            return
        self._wiring.woken()

    def _answer(self, writer: asyncio.StreamWriter, frame: dict[str, Any]) -> None:
        """To whoever asked, if it still leads."""
        if writer is self._writer:
            writer.write(_frame(frame))

    # ------------------------------------------------------------------ telling people

    def _complain(self, reason: str) -> None:
        """One line for every new reason, then one a minute: a leader that is away is no news every second."""
        now = asyncio.get_running_loop().time()
        self._said = {text: until for text, until in self._said.items() if until > now}
        if self._closing or reason in self._said or len(self._said) >= DISTINCT_COMPLAINTS:
            return
        self._said[reason] = now + self._wiring.timing.complaint
        self._complained = True
        address = self._wiring.settings.coordinator
        self._wiring.console.say(
            f"no connection to the coordinator {address} ({reason}). "
            "Trying again; what runs is left running. Check that the operator runs and this pod may reach it"
        )


def tls_context(ca_file: str) -> ssl.SSLContext:
    """Trust in exactly this CA; raises Lost where it cannot be read or Python has no TLS.

    Not `create_default_context`: newer Pythons make it strict about extensions that a small CA may lack.
    """
    try:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cafile=ca_file)
    except ImportError as error:
        raise Lost("this image's Python has no ssl module; install a Python with TLS") from error
    except OSError as error:
        raise Lost(f"cannot read the CA certificate {ca_file}: {error}") from error
    return context


async def _look_up(target: Address) -> list[str]:
    """IP addresses of a name. In a thread of our own that nobody joins: the loop's would hold up the exit."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(found: list[str], error: Exception | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(found)
        else:
            answer.set_exception(error)

    def ask() -> None:
        found: list[str] = []
        problem: Exception | None = None
        try:
            entries = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            found = [str(entry[4][0]) for entry in entries]
        except (OSError, UnicodeError) as error:
            problem = error
        # the loop may be closed by now: then nobody wants the answer
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, found, problem)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    return await answer


async def _within(read: Callable[[], Awaitable[bytes]], seconds: float) -> bytes:
    return await asyncio.wait_for(read(), seconds)


def _frame(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n"


def _jitter(failures: int) -> float:
    """Full jitter: fast after a connection was lost, spread over 3 s while there is no leader."""
    most = min(RECONNECT_JITTER_SECONDS, FIRST_JITTER_SECONDS * 2.0 ** min(failures, 16))
    return random.uniform(0.0, most)  # noqa: S311 - spreads a fleet, keeps no secret


def _explain(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; nothing listens there"
    if type(error).__name__ == "SSLCertVerificationError":
        return f"its certificate is not trusted ({error}); check the CA file and the server name"
    return str(error) or type(error).__name__

"""The endpoint to which every agent keeps one connection: hears reports, passes orders, keeps the beat.

It decides nothing: what it hears becomes `core.world.Agent`, what it is told becomes an order on the wire.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rerail_api.contract import (
    AUTHENTICATE_SECONDS,
    HEARTBEAT_SECONDS,
    PROBE_SECONDS,
    PROTOCOL_VERSION,
    SILENT_SECONDS,
)
from rerail_operator.core.world import Agent

from .clock import Clock
from .connection import AgentConnection
from .frames import Hello, Probed, ReportFrame, encode
from .leader import Leading
from .roster import Order, Record, Roster, is_fault, is_reflected, is_transition, observe_report
from .suspicion import Inquiries, Patience
from .tokens import Identity, TokenRefused, Verifier

log = logging.getLogger(__name__)

SPOKEN_VERSIONS = (PROTOCOL_VERSION,)  # grows to (N-1, N) with the second version
BACKLOG = 4096
BEAT_SLICES = 20
LOOK_SLICES = 5
"""A look at who is silent in every so many slices: a dead node is not found out a whole beat late."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds."""

    heartbeat: float = HEARTBEAT_SECONDS
    missed_beats: int = 3
    silent: float = SILENT_SECONDS
    authenticate: float = AUTHENTICATE_SECONDS
    unauthenticated: int = 256
    resend: float = 3.0
    progress: float = 0.5
    probe: float = PROBE_SECONDS

    @property
    def suspect(self) -> float:
        return self.heartbeat * self.missed_beats

    @property
    def patience(self) -> Patience:
        return Patience(self.suspect, self.heartbeat * 1.25, self.probe)


class Coordinator:
    """Calls `on_change(job_uid)` at every transition of an agent; for mere progress every 0.5 s at most.

    Instead `on_fault(job_uid)`, where somebody set that, when a rank has failed or an agent is not heard.
    """

    def __init__(
        self,
        verifier: Verifier,
        clock: Clock,
        on_change: Callable[[str], None],
        leadership: Leading,
        limits: Limits | None = None,
    ) -> None:
        self._verifier = verifier
        self._clock = clock
        self._on_change = self.on_fault = on_change
        self._leadership = leadership
        self._limits = limits or Limits()
        self._roster = Roster()
        self._inquiries = Inquiries(self._roster, self._limits.patience, clock, self._tell_fault)
        self._connections: set[AgentConnection] = set()
        self._told_later: dict[str, asyncio.TimerHandle] = {}
        self._framed: tuple[Order, int, bytes] | None = None  # the last order put on the wire, its term
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._ssl: ssl.SSLContext | None = None

    # -- life ---------------------------------------------------------------------------------------------

    async def start(self, host: str, port: int, ssl_context: ssl.SSLContext | None = None) -> None:
        """Listen on `host` ("" = every address, IPv4 and IPv6) and `port` (0 = any). Raises OSError."""
        self._ssl = ssl_context
        self._listener = _listen(host, port)
        self._spawn(self._accept(self._listener))
        self._spawn(self._beat())

    @property
    def port(self) -> int:
        if self._listener is None:
            raise RuntimeError("the coordinator has not been started")
        return int(self._listener.getsockname()[1])

    @property
    def connections(self) -> int:
        """Agents whose connection is open now."""
        return sum(record.link is not None for record in self._roster)

    async def stop(self) -> None:
        """Close everything; agents train on and look for the next leader."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for timer in self._told_later.values():
            timer.cancel()
        self._told_later.clear()
        for connection in list(self._connections):
            connection.abort()
        while self._connections:  # connection_lost comes in the loop's next turn
            await asyncio.sleep(0)

    # -- the reconciler's side ----------------------------------------------------------------------------

    def agents(self, job_uid: str) -> Mapping[str, Agent]:
        """By pod UID. Agents that fell silent or lost their connection stay, with connected=False."""
        return self._roster.agents(job_uid)

    def busy(self, job_uid: str, round_: int) -> Mapping[int, tuple[float, ...]]:
        """By rank, as far as ranks tell: own seconds per step in the last windows, oldest first."""
        return self._roster.busy(job_uid, round_)

    def send(self, pod_uid: str, order: Order) -> bool:
        """Make this the agent's order: {"do": ..., "round": ...}; the term is filled in here.

        True: the agent has been told, now or before. False: it is not connected (or never said hello);
        an order to a known agent is kept and sent when it comes back. Repeating an order costs nothing: it
        goes out again only when the agent does not show it after 3 s. An order given here is not changed any
        more; one object given for a whole gang is encoded once. Raises BadFrame when it is too long.
        """
        record = self._roster.get(pod_uid)
        if record is None:
            return False
        if record.order is not order and record.order != order:
            self._frame(order)  # refuse here, not at the agent's next hello
            record.order = order
            record.order_sent = float("-inf")
            self._roster.told(record)
        if record.link is None:
            return False
        overdue = self._clock.monotonic() - record.order_sent >= self._limits.resend
        if overdue and not is_reflected(order, record.said):
            self._send_order(record)
        return True

    def mention(self, pod_uid: str, frame: Order) -> None:
        """Say something besides the order: {"kind": ...}; the term is filled in here. Not kept: what was
        meant for an agent that is away is said again.
        """
        record = self._roster.get(pod_uid)
        if record is not None and record.link is not None:
            record.link.write({**frame, "term": self._leadership.term})

    def forget(self, pod_uid: str) -> None:
        """The pod is gone for good: drop what is known of it and its connection."""
        record = self._roster.forget(pod_uid)
        if record is not None and record.link is not None:
            record.link.close()

    # -- the connections' side (Desk) ---------------------------------------------------------------------

    def hello(self, connection: AgentConnection, hello: Hello) -> None:
        if not self._leadership.is_leader:
            connection.redirect(self._leadership.leader_address)
        elif hello.v not in SPOKEN_VERSIONS:
            spoken = ", ".join(map(str, SPOKEN_VERSIONS))
            connection.refuse(f"protocol version {hello.v} is not spoken here; spoken: {spoken}")
        else:
            self._spawn(self._authenticate(connection, hello))

    def report(self, connection: AgentConnection, report: ReportFrame) -> None:
        record = self._roster.get(connection.pod_uid)
        if record is None or record.link is not connection:
            connection.abort()  # forgotten, or replaced by a newer connection of the same pod
            return
        before = record.agent()
        record.hear(self._clock.now(), self._clock.monotonic())
        record.probe_port = report.probe_port or 0
        record.note_busy(report.busy, fresh=report.round != before.round)
        record.said = observe_report(connection.pod_uid, report, record.last_seen, before)
        if is_fault(before, record.said):
            self._tell_fault(record.job_uid)
        elif is_transition(before, record.said):
            # Thousands do as they were told within a second: a pass looks when the last one has, or soon.
            others = self._roster.heard(record, before)
            (self._tell_soon if others else self._tell)(record.job_uid)
        elif before.progress != record.said.progress:
            self._tell_soon(record.job_uid)

    def again(self, connection: AgentConnection) -> None:
        """The agent repeats, byte for byte, a report without ages in it: a sign of life and nothing else."""
        record = self._roster.get(connection.pod_uid)
        if record is None or record.link is not connection:
            connection.abort()
            return
        was_doubted = record.silent or record.probe is not None
        record.hear(self._clock.now(), self._clock.monotonic())
        if was_doubted:
            self._tell(record.job_uid)

    def probed(self, connection: AgentConnection, probed: Probed) -> None:
        record = self._roster.get(connection.pod_uid)
        if record is not None and record.link is connection:
            self._inquiries.answered(record, probed)

    def lost(self, connection: AgentConnection) -> None:
        self._connections.discard(connection)
        record = self._roster.get(connection.pod_uid) if connection.accepted else None
        if record is not None and record.link is connection:
            record.link = None
            self._roster.gone(record)
            self._tell_fault(record.job_uid)

    # -- inside -------------------------------------------------------------------------------------------

    async def _authenticate(self, connection: AgentConnection, hello: Hello) -> None:
        try:
            identity = await self._verifier.verify(hello.token)
        except TokenRefused as error:
            log.warning("agent of pod %s (%s) refused: %s", hello.pod, hello.job, error)
            connection.refuse(str(error))
            return
        if (why := _mismatch(identity, hello) or self._newer_term(hello)) != "":
            log.warning("agent of pod %s (%s) refused: %s", hello.pod, hello.job, why)
            connection.refuse(why)
            return
        if not connection.closing:  # else it hung up, or its time was over
            self._admit(connection, hello)

    def _newer_term(self, hello: Hello) -> str:
        if hello.report.term <= self._leadership.term:
            return ""
        return f"the agent has seen term {hello.report.term}, this leader's is {self._leadership.term}"

    def _admit(self, connection: AgentConnection, hello: Hello) -> None:
        known = self._roster.get(hello.pod_uid)
        agent = observe_report(hello.pod_uid, hello.report, self._clock.now(), known.said if known else None)
        old_link = known.link if known else None
        record = self._roster.put(hello.job_uid, agent, connection, self._clock.monotonic())
        record.probe_port, record.can_probe = hello.report.probe_port or 0, "probe" in hello.can
        if old_link is not None:
            old_link.close()
        connection.write({"kind": "welcome", "v": hello.v, "term": self._leadership.term})
        connection.accept(hello.pod_uid)
        if record.order is not None and not is_reflected(record.order, record.said):
            self._send_order(record)
        self._tell(record.job_uid)

    def _send_order(self, record: Record) -> None:
        if record.link is not None and record.order is not None:
            record.link.write_frame(self._frame(record.order))
            record.order_sent = self._clock.monotonic()

    def _frame(self, order: Order) -> bytes:
        """The order on the wire. Raises BadFrame when it is too long."""
        term, last = self._leadership.term, self._framed
        if last is None or last[0] is not order or last[1] != term:
            last = self._framed = (order, term, encode({"kind": "order", "term": term, **order}))
        return last[2]

    def _tell(self, job_uid: str, fault: bool = False) -> None:
        if (timer := self._told_later.pop(job_uid, None)) is not None:
            timer.cancel()
        (self.on_fault if fault else self._on_change)(job_uid)

    def _tell_fault(self, job_uid: str) -> None:
        self._tell(job_uid, fault=True)

    def _tell_soon(self, job_uid: str) -> None:
        if job_uid not in self._told_later:
            loop = asyncio.get_running_loop()
            self._told_later[job_uid] = loop.call_later(self._limits.progress, self._tell, job_uid)

    async def _accept(self, listener: socket.socket) -> None:
        """At most `unauthenticated` peers at a time; the rest wait in the kernel's backlog."""
        loop = asyncio.get_running_loop()
        slots = asyncio.Semaphore(self._limits.unauthenticated)
        while True:
            await slots.acquire()
            try:
                peer, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or a peer that left in the backlog
                slots.release()
                log.warning("cannot accept an agent: %s", error)
                await asyncio.sleep(0.5)
                continue
            self._spawn(self._serve(peer)).add_done_callback(lambda _: slots.release())

    async def _serve(self, peer: socket.socket) -> None:
        """Hold a slot until the peer has said who it is, or the time for that is over."""
        connection = AgentConnection(self)
        self._connections.add(connection)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(self._limits.authenticate):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection, peer, ssl=self._ssl, ssl_shutdown_timeout=1.0 if self._ssl else None
                )
                await connection.settled
        except TimeoutError:
            log.info("a peer has not authenticated within %g s and is dropped", self._limits.authenticate)
            connection.refuse(f"not authenticated within {self._limits.authenticate:g} s")
        except OSError as error:  # includes ssl.SSLError: not our protocol, or a peer that left
            log.debug("an agent's connection failed before its hello: %s", error)
            connection.abort()
        finally:
            if not connection.connected:
                self._connections.discard(connection)

    async def _beat(self) -> None:
        """Ping everybody once per heartbeat, in slices; notice who has fallen silent.

        When this loop itself comes late, silence is not judged for one beat: the reports are still unread.
        """
        pause = self._limits.heartbeat / BEAT_SLICES
        judge_from = self._clock.monotonic()
        while True:
            everybody = [record for record in self._roster if record.link is not None]
            for index in range(BEAT_SLICES):
                before = self._clock.monotonic()
                judge = before >= judge_from
                self._beat_slice(everybody[index::BEAT_SLICES], judge)
                if judge and index % LOOK_SLICES == 0:
                    self._look(before)
                await asyncio.sleep(pause)
                if self._clock.monotonic() - before > pause + self._limits.heartbeat / 2:
                    judge_from = self._clock.monotonic() + self._limits.heartbeat

    def _beat_slice(self, records: Iterable[Record], judge: bool) -> None:
        ping = encode({"kind": "ping", "term": self._leadership.term})
        now = self._clock.monotonic()
        for record in records:
            connection = record.link
            if not isinstance(connection, AgentConnection):
                continue  # gone since the beat began
            if judge and now - record.heard > self._limits.silent:
                connection.abort()
                continue
            connection.write_frame(ping)

    def _look(self, now: float) -> None:
        """Notice who has missed his beats, and ask others about him."""
        for record in self._roster:
            if record.link is not None and not record.silent and now - record.heard > self._limits.suspect:
                record.silent = True
                self._tell_fault(record.job_uid)
        self._inquiries.look(now, self._leadership.term)

    def _spawn(self, coroutine: "asyncio._CoroutineLike[None]") -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the coordinator failed", exc_info=error)


def _mismatch(identity: Identity, hello: Hello) -> str:
    """What the agent claims beyond what its token proves; "" when all fits."""
    namespace = hello.job.partition("/")[0]
    claims = (
        ("pod UID", identity.pod_uid, hello.pod_uid),
        ("pod", identity.pod_name, hello.pod),
        ("namespace", identity.namespace, namespace),
    )
    for what, proven, claimed in claims:
        if proven and proven != claimed:
            return f"the token is for {what} {proven}, the hello says {claimed}"
    return "" if hello.pod_uid and hello.job_uid else "the hello names no pod UID or no job UID"


def _listen(host: str, port: int) -> socket.socket:
    if host:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    elif socket.has_dualstack_ipv6():
        family = socket.AF_INET6
        listener = socket.create_server(("", port), family=family, backlog=BACKLOG, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", port), backlog=BACKLOG)
    listener.setblocking(False)
    return listener

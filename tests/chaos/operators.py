"""The operators of the village: as many replicas as wanted, each the real parts over a hold that may end at a write.

A replica that has died, or that ended itself because its Lease was lost, is started again after a moment, with an
empty memory, as the kubelet does.
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from rerail_operator.core.manifests import Endpoint
from rerail_operator.shell.apply import Making
from rerail_operator.shell.connection import AgentConnection
from rerail_operator.shell.coordinator import Coordinator
from rerail_operator.shell.engine import Engine, EngineSettings
from rerail_operator.shell.events import EventRecorder
from rerail_operator.shell.leader import Candidate, Leadership
from rerail_operator.shell.roster import Order
from rerail_operator.shell.strikes.keeper import StrikeKeeper
from rerail_operator.shell.tokens import Identity
from tests.shell.hamlet import GPU

from .agent import StandIn, Wire
from .mortal import MortalCluster, Write

if TYPE_CHECKING:
    from .village import Village

SYSTEM = "rerail-system"
START_SECONDS = 1.0
"""From the end of a process to the next."""


class Trusting:
    """Who is who is no question here."""

    async def verify(self, token: str) -> Identity:
        return Identity()


class WirelessCoordinator(Coordinator):
    """The real one without a listening socket; its orders go through the life that may end with them."""

    life: MortalCluster

    async def begin(self) -> None:
        """`start` but for the socket."""
        self._spawn(self._beat())

    def reached_by(self, agent: StandIn) -> None:
        """What accepting a connection does."""
        connection, wire = AgentConnection(self), Wire(agent)
        wire.connection = connection
        self._connections.add(connection)
        connection.connection_made(wire)
        agent.connect(wire)

    def send(self, pod_uid: str, order: Order) -> bool:
        record = self._roster.get(pod_uid)
        if record is not None and record.order == order and not self.life.dead:
            return super().send(pod_uid, order)  # said before: nothing new in the world
        write = Write(f"order {order['do']}", "agent", {"pod": pod_uid, **order})
        return self.life.ordered(write, lambda: super(WirelessCoordinator, self).send(pod_uid, order))

    def mention(self, pod_uid: str, frame: Order) -> None:
        if not self.life.dead:
            super().mention(pod_uid, frame)


class Operator:
    """One process, from its start to its death. The order of its parts is that of the real one."""

    def __init__(self, village: "Village", name: str) -> None:
        self.name = name
        self.life = MortalCluster(village.cluster, village.fate, village.outage)
        clock = village.clock
        self.leadership = Leadership(
            self.life,
            clock,
            Candidate.of_pod(SYSTEM, "rerail", name, name),
            lambda why: self.life.die(),
        )
        self.coordinator = WirelessCoordinator(Trusting(), clock, self._agent_changed, self.leadership)
        self.coordinator.life = self.life
        making = Making(Endpoint("coordinator:1", tls=False), (GPU,), b"agent")
        self.engine = Engine(
            self.life, self.coordinator, self.leadership, EngineSettings(making, workers=1), clock
        )
        self._recorder = EventRecorder(self.life, clock, name)
        self.engine.record_with(self._recorder.record)
        self._strikes = StrikeKeeper(self.life, SYSTEM, self.engine.fleet, self.leadership, clock)
        self.engine.on_pass.append(self._strikes.passed)
        self._tasks: list[asyncio.Task[None]] = []

    def _agent_changed(self, job_uid: str) -> None:
        self.engine.agent_changed(job_uid)

    @property
    def leads(self) -> bool:
        return not self.life.dead and self.leadership.is_leader

    async def live(self) -> None:
        """Until it dies; nothing of it is left when this returns."""
        try:
            await self.coordinator.begin()
            await self.engine.start()
            self._tasks.append(asyncio.create_task(self._lead()))
            await self.life.death.wait()
        finally:
            await self._bury()
        assert self.engine.failures == 0, "a pass ended in an unexpected exception"

    async def _lead(self) -> None:
        await self.engine.fleet.wait_synced()
        self._tasks.append(asyncio.create_task(self.leadership.run()))
        await self.leadership.wait_elected()
        self._tasks.append(asyncio.create_task(self._recorder.run()))
        await self._strikes.step()
        self._tasks.append(asyncio.create_task(self._strikes.run()))
        await self.engine.lead()

    async def _bury(self) -> None:
        self.life.die()
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
        await self.engine.stop()
        await self.coordinator.stop()


class Replicas:
    """Keeps replicas running; counts their lives."""

    def __init__(self, village: "Village", count: int) -> None:
        self._village = village
        self._running: dict[int, Operator] = {}
        self._tasks = [asyncio.create_task(self._keep(number)) for number in range(count)]
        self._next = 0
        self.lives = 0

    async def _keep(self, number: int) -> None:
        while True:
            self.lives += 1
            operator = self._running[number] = Operator(self._village, f"operator-{number}")
            await operator.live()
            await asyncio.sleep(START_SECONDS)

    @property
    def alive(self) -> list[Operator]:
        return [operator for operator in self._running.values() if not operator.life.dead]

    def leader(self) -> Operator | None:
        """Who leads, if anybody does."""
        return next((operator for operator in self.alive if operator.leads), None)

    def any_for(self, agent: StandIn) -> None:
        """Connect an agent to some replica: a standby sends it away, and the next attempt meets another."""
        if alive := self.alive:
            self._next += 1
            alive[self._next % len(alive)].coordinator.reached_by(agent)

    def check(self) -> None:
        """Raises what ended a replica for good: a bug, not a death."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """All end; nothing is written any more."""
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            with suppress(asyncio.CancelledError):
                if isinstance(result, BaseException):
                    raise result

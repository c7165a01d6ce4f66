"""A whole Rerail in virtual time: real core, reconciler, coordinator and events over the in-memory cluster.

Kubelets, nodes and agents are stand-ins. The operator is one of a row of lives: it may die at any write, and the
next one begins with an empty memory.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

from rerail_api.base import rfc3339
from rerail_operator.core.manifests import Endpoint
from rerail_operator.shell.apply import Making
from rerail_operator.shell.cluster import Kind, NotFound, Object
from rerail_operator.shell.connection import AgentConnection
from rerail_operator.shell.coordinator import Coordinator
from rerail_operator.shell.engine import Engine, EngineSettings
from rerail_operator.shell.events import EventRecorder
from rerail_operator.shell.memory import MemoryCluster, MemoryOptions
from rerail_operator.shell.roster import Order
from rerail_operator.shell.tokens import Identity
from tests.shell.hamlet import GPU, node

from .agent import StandIn, Wire
from .mortal import Fate, MortalCluster, Write
from .program import Program
from .virtual import VirtualClock

START_SECONDS = 0.5  # of a container
TAKEOVER_SECONDS = 9.0
"""From the death of a leader to the next: the Lease has to run out."""
RECONNECT_SECONDS = 0.5
NOT_READY_SECONDS = 40.0


class Trusting:
    """Who is who is no question here."""

    async def verify(self, token: str) -> Identity:
        return Identity()


class Leader:
    """The leader of one life; terms rise from life to life."""

    is_leader = True
    leader_address = ""

    def __init__(self, term: int) -> None:
        self.term = term


class WirelessCoordinator(Coordinator):
    """The real one without a listening socket; its orders go through the life that may end with them."""

    life: MortalCluster

    async def begin(self) -> None:
        """`start` but for the socket."""
        self._spawn(self._beat())

    def reached_by(self, agent: StandIn) -> None:
        """What accepting a connection does."""
        connection, wire = AgentConnection(self, self._clock.monotonic()), Wire(agent)
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


@dataclass
class Operator:
    """One life."""

    cluster: MortalCluster
    coordinator: WirelessCoordinator
    engine: Engine
    events: asyncio.Task[None]


@dataclass
class Village:
    """Everything there is. All times are virtual."""

    fate: Fate = field(default_factory=Fate)
    nodes: int = 4
    agents: dict[str, StandIn] = field(default_factory=dict)  # by pod UID, as long as the process lives
    operator: Operator | None = None
    lives: int = 0
    pods_made: list[str] = field(default_factory=list)
    cut_off: set[str] = field(default_factory=set)  # nodes that reach nobody
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _restarting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Village":
        self.clock = VirtualClock()
        serial = count(1)
        options = MemoryOptions(new_uid=lambda: f"{next(serial):05x}000-0000-4000-8000-000000000000")
        self.cluster = MemoryCluster(self.clock, options)
        self.program = Program(self)
        self.fate.on_death = self._operator_died
        for number in range(self.nodes):
            await self.cluster.create(Kind.NODE, "", node(f"node-{number}"))
        self._tasks += [asyncio.create_task(self._kubelets()), asyncio.create_task(self.program.run())]
        await self.start_operator()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._restarting is not None:
            self._restarting.cancel()
        await self.stop_operator()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- the operator

    async def start_operator(self) -> None:
        self.lives += 1
        life = MortalCluster(self.cluster, self.fate)
        leader = Leader(self.lives)
        engine: Engine | None = None

        def changed(job_uid: str) -> None:
            if engine is not None:
                engine.agent_changed(job_uid)

        coordinator = WirelessCoordinator(Trusting(), self.clock, changed, leader)
        coordinator.life = life
        await coordinator.begin()
        making = Making(Endpoint("coordinator:1", tls=False), (GPU,), b"agent")
        engine = Engine(life, coordinator, leader, EngineSettings(making, workers=1), self.clock)
        recorder = EventRecorder(life, self.clock, f"operator-{self.lives}")
        engine.record_with(recorder.record)
        self.operator = Operator(life, coordinator, engine, asyncio.create_task(recorder.run()))
        await engine.start()
        await engine.lead()
        for agent in list(self.agents.values()):
            self._reconnect(agent)

    async def stop_operator(self) -> None:
        """Nothing is written any more, connections drop."""
        operator, self.operator = self.operator, None
        if operator is None:
            return
        operator.cluster.dead = True
        operator.events.cancel()
        await asyncio.gather(operator.events, return_exceptions=True)
        await operator.engine.stop()
        await operator.coordinator.stop()
        assert operator.engine.failures == 0, "a pass ended in an unexpected exception"

    def _operator_died(self) -> None:
        self._restarting = asyncio.create_task(self._next_life())

    async def _next_life(self) -> None:
        await self.stop_operator()
        await asyncio.sleep(TAKEOVER_SECONDS)
        await self.start_operator()

    # -- nodes, kubelets, agents

    async def _kubelets(self) -> None:
        async for event in self.cluster.watch(Kind.POD, ""):
            pod = event.object
            uid = pod["metadata"].get("uid", "")
            if event.change == "ADDED":
                self.pods_made.append(pod["metadata"]["name"])
            if event.change in ("BOOKMARK", "DELETED") or pod["spec"].get("nodeName") in self.cut_off:
                continue
            phase = (pod.get("status") or {}).get("phase", "Pending")
            if "deletionTimestamp" in pod["metadata"]:
                self._later(0.3, self.end_pod, uid)
            elif pod["spec"].get("nodeName") and phase == "Pending" and uid not in self.agents:
                self._later(START_SECONDS, self._start, pod)

    def _later(self, seconds: float, do: Any, *given: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, do, *given)

    def _start(self, pod: Object) -> None:
        meta, labels = pod["metadata"], pod["metadata"]["labels"]
        if meta["uid"] in self.agents:
            return
        with suppress(NotFound):
            self.cluster.set_pod_status(meta["uid"], {"phase": "Running", "podIP": "10.0.0.1"})
            agent = StandIn(
                job=f"{meta['namespace']}/{labels['rerail.dev/job-name']}", job_uid=labels["rerail.dev/job-uid"],
                pod=meta["name"], pod_uid=meta["uid"], node=pod["spec"]["nodeName"],
                address=f"10.0.0.{len(self.pods_made)}", on_change=self.program.look, on_finish=self._finished,
            )  # fmt: skip
            self.agents[meta["uid"]] = agent
            self._reconnect(agent)
            self._tasks.append(asyncio.create_task(self._keep_connected(agent)))

    async def _keep_connected(self, agent: StandIn) -> None:
        while not agent.gone:
            await asyncio.sleep(RECONNECT_SECONDS)
            self._reconnect(agent)

    def _reconnect(self, agent: StandIn) -> None:
        reachable = (
            self.operator is not None and not self.operator.cluster.dead and agent.node not in self.cut_off
        )
        if reachable and agent.wire is None and not agent.gone and not agent.frozen:
            assert self.operator is not None
            self.operator.coordinator.reached_by(agent)

    def _kill(self, agent: StandIn) -> None:
        """The container with all its processes is gone."""
        agent.gone = True
        self.agents.pop(agent.pod_uid, None)
        if agent.wire is not None:
            agent.wire.close()
        self.program.look()

    def end_pod(self, uid: str) -> None:
        """A kubelet has ended what a deleted pod ran."""
        agent = self.agents.get(uid)
        if agent is not None:
            self._kill(agent)
        self.cluster.confirm_deleted(uid)

    def _finished(self, agent: StandIn, code: int) -> None:
        self.container_ends(agent, code)

    def container_ends(self, agent: StandIn, code: int, reason: str = "", message: str = "") -> None:
        """The container ends with `code`, as the kubelet writes it."""
        self._kill(agent)
        self._ended(agent.pod_uid, code, reason or ("Error" if code else "Completed"), message)

    def _ended(self, uid: str, code: int, reason: str, message: str) -> None:
        ended = {"exitCode": code, "reason": reason, "message": message}
        trainer = {"name": "trainer", "ready": False, "state": {"terminated": ended}}
        status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [trainer]}
        with suppress(NotFound):
            self.cluster.set_pod_status(uid, status)

    def lose_node(self, name: str) -> None:
        """Power off: its processes are gone at once; after a while the API server says NotReady."""
        self.cut_off.add(name)
        for agent in [a for a in self.agents.values() if a.node == name]:
            self._kill(agent)
        self._later(NOT_READY_SECONDS, self._node_ready, name, "Unknown")

    def node_returns(self, name: str) -> None:
        """It is switched on again; what ran there is gone."""
        self.cut_off.discard(name)
        self._node_ready(name, "True")
        self._tasks.append(asyncio.create_task(self._collect(name)))

    async def _collect(self, name: str) -> None:
        """A kubelet that comes back finds nothing of its pods."""
        for pod in (await self.cluster.list(Kind.POD)).items:
            if pod["spec"].get("nodeName") != name or pod["metadata"]["uid"] in self.agents:
                continue
            if "deletionTimestamp" in pod["metadata"]:
                self.cluster.confirm_deleted(pod["metadata"]["uid"])
            elif pod["status"]["phase"] == "Running":
                self._ended(pod["metadata"]["uid"], 137, "Error", "")
            elif pod["status"]["phase"] == "Pending":
                self._start(pod)

    def _node_ready(self, name: str, ready: str) -> None:
        if (ready == "True") == (name in self.cut_off):
            return
        condition = {"type": "Ready", "status": ready, "lastTransitionTime": rfc3339(self.clock.now())}
        self.cluster.set_node_status(name, {"conditions": [condition]})

    # -- looking

    async def status(self, name: str = "gpt") -> Object:
        return dict((await self.cluster.get(Kind.JOB, "default", name)).get("status") or {})

    async def until(self, what: str, wanted: Any, seconds: float = 400.0) -> Object:
        """The job's status once `wanted(status)` is true; looks four times a second."""
        deadline = self.clock.now() + timedelta(seconds=seconds)
        while True:
            seen = await self.status()
            if wanted(seen):
                return seen
            assert self.clock.now() < deadline, f"not within {seconds:g} s: {what}; {seen}"
            await asyncio.sleep(0.25)

    async def until_gone(self, seconds: float = 400.0) -> None:
        """Until the job's object is gone, and with it its pods."""
        deadline = self.clock.now() + timedelta(seconds=seconds)
        while (await self.cluster.list(Kind.JOB)).items or await self.pods():
            assert self.clock.now() < deadline, f"not gone within {seconds:g} s"
            await asyncio.sleep(0.25)

    def gang_agents(self) -> list[StandIn]:
        """Agents whose container runs, wherever they stand."""
        return list(self.agents.values())

    async def pods(self) -> list[Object]:
        return (await self.cluster.list(Kind.POD)).items

    def agent_of(self, node_rank: int) -> StandIn:
        """The agent whose ranks run as this node rank now."""
        return next(
            a
            for a in self.agents.values()
            if a.release and a.release["node_rank"] == node_rank and not a.gone
        )

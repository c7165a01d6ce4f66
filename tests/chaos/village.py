"""A whole Rerail in virtual time: real core, reconciler, coordinator and events over the in-memory cluster.

Kubelets, nodes and agents are stand-ins. The operator is one of a row of lives: it may die at any write, and the
next one begins with an empty memory.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

from rerail_api.base import rfc3339
from rerail_operator.shell.cluster import Change, Kind, NotFound, Object, Unavailable
from rerail_operator.shell.memory import MemoryCluster, MemoryOptions
from tests.shell.hamlet import node

from .agent import StandIn
from .mortal import Fate, Outage
from .operators import Replicas
from .program import Program
from .virtual import VirtualClock

START_SECONDS = 0.5  # of a container
ENDING_SECONDS = 1.5  # from SIGTERM to the end of the last process
RECONNECT_SECONDS = 0.5
NOT_READY_SECONDS = 40.0


@dataclass
class Village:
    """Everything there is. All times are virtual."""

    fate: Fate = field(default_factory=Fate)
    nodes: int = 4
    replicas: int = 1
    troubled: bool = False  # leaders come and go
    agents: dict[str, StandIn] = field(default_factory=dict)  # by pod UID, as long as the process lives
    kubelets_away: set[str] = field(default_factory=set)
    homes: dict[str, str] = field(default_factory=dict)  # address -> node
    probing: bool = True
    last_status: Object = field(default_factory=dict)
    ended_at: float | None = None
    pods_made: list[str] = field(default_factory=list)
    cut_off: set[str] = field(default_factory=set)  # nodes that reach nobody
    _failures: list[BaseException] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> "Village":
        self.clock = VirtualClock()
        serial = count(1)
        options = MemoryOptions(new_uid=lambda: f"{next(serial):05x}000-0000-4000-8000-000000000000")
        self.cluster = MemoryCluster(self.clock, options)
        asyncio.get_running_loop().set_exception_handler(self._failed)
        self.program = Program(self)
        self.outage = Outage(self.cluster)
        for number in range(self.nodes):
            await self.cluster.create(Kind.NODE, "", node(f"node-{number}"))
        self._tasks += [
            asyncio.create_task(self._kubelets()),
            asyncio.create_task(self._follow_job()),
            asyncio.create_task(self.program.run()),
        ]
        self.operators = Replicas(self, self.replicas)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.operators.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What a callback raised: nobody awaits it."""
        self._failures.append(context.get("exception") or AssertionError(context["message"]))

    # -- nodes, kubelets, agents

    async def _kubelets(self) -> None:
        """All kubelets in one; an API server that is away is asked again."""
        made: set[str] = set()
        while True:
            listing = await self.cluster.list(Kind.POD)
            for pod in listing.items:
                self._seen(pod, made)
            with suppress(Unavailable):
                async for event in self.cluster.watch(Kind.POD, listing.resource_version):
                    if event.change in (Change.ADDED, Change.MODIFIED):
                        self._seen(event.object, made)

    def _seen(self, pod: Object, made: set[str]) -> None:
        meta = pod["metadata"]
        if meta["uid"] not in made:
            made.add(meta["uid"])
            self.pods_made.append(meta["name"])
        if pod["spec"].get("nodeName") in self.cut_off | self.kubelets_away:
            return
        phase = (pod.get("status") or {}).get("phase", "Pending")
        if "deletionTimestamp" in meta:
            if (agent := self.agents.get(meta["uid"])) is not None:
                agent.rank_ends(exit_code=75, ordered=True)  # SIGTERM: saved, and stopped as ordered
            self.later(ENDING_SECONDS, self.end_pod, meta["uid"])
        elif pod["spec"].get("nodeName") and phase == "Pending" and meta["uid"] not in self.agents:
            self.later(START_SECONDS, self._start, pod)

    def later(self, seconds: float, do: Any, *given: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, do, *given)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Something that goes on beside the test; what it raises, `check` raises."""
        self._tasks.append(asyncio.create_task(work))

    def _start(self, pod: Object) -> None:
        meta, labels = pod["metadata"], pod["metadata"]["labels"]
        if meta["uid"] in self.agents:
            return
        with suppress(NotFound):
            self.cluster.set_pod_status(meta["uid"], {"phase": "Running", "podIP": "10.0.0.1"})
            agent = StandIn(
                job=f"{meta['namespace']}/{labels['rerail.dev/job-name']}", job_uid=labels["rerail.dev/job-uid"],
                pod=meta["name"], pod_uid=meta["uid"], node=pod["spec"]["nodeName"],
                address=f"10.0.0.{len(self.homes) + 1}", can_probe=self.probing, probes=self._probed, on_change=self.program.look, on_finish=self._finished,
            )  # fmt: skip
            self.agents[meta["uid"]], self.homes[agent.address] = agent, agent.node
            self._reconnect(agent)
            self._tasks.append(asyncio.create_task(self._keep_connected(agent)))

    async def _keep_connected(self, agent: StandIn) -> None:
        while not agent.gone:
            await asyncio.sleep(RECONNECT_SECONDS)
            self._reconnect(agent)

    def _reconnect(self, agent: StandIn) -> None:
        if agent.wire is None and agent.node not in self.cut_off and not agent.gone and not agent.frozen:
            self.operators.any_for(agent)

    def _kill(self, agent: StandIn, silently: bool = False) -> None:
        """The container with all its processes is gone; silently: nobody hangs up for it."""
        agent.gone = True
        self.agents.pop(agent.pod_uid, None)
        if agent.wire is not None and not silently:
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

    def lose_node(self, name: str, not_ready_after: float = NOT_READY_SECONDS) -> None:
        """Power off: its processes are gone at once; after a while the API server says NotReady."""
        self.cut_off.add(name)
        for agent in [a for a in self.agents.values() if a.node == name]:
            self._kill(agent, silently=True)
        self.later(not_ready_after, self._node_ready, name, "Unknown")

    def node_returns(self, name: str) -> None:
        """It is switched on again; what ran there is gone."""
        self.cut_off.discard(name)
        self._node_ready(name, "True")
        self._tasks.append(asyncio.create_task(self._collect(name)))

    async def _collect(self, name: str) -> None:
        """A kubelet that comes back does what it missed, and finds what has ended meanwhile."""
        for pod in (await self.cluster.list(Kind.POD)).items:
            uid = pod["metadata"]["uid"]
            if pod["spec"].get("nodeName") != name:
                continue
            if "deletionTimestamp" in pod["metadata"]:
                self.end_pod(uid)
            elif pod["status"]["phase"] == "Running" and uid not in self.agents:
                self._ended(uid, 137, "Error", "")
            elif pod["status"]["phase"] == "Pending" and uid not in self.agents:
                self._start(pod)
        known = {pod["metadata"]["uid"] for pod in (await self.cluster.list(Kind.POD)).items}
        for agent in [a for a in self.agents.values() if a.node == name and a.pod_uid not in known]:
            self._kill(agent)

    def kubelet_dies(self, agent: StandIn) -> None:
        """The container is gone and nobody says so; the machine lives."""
        self.kubelets_away.add(agent.node)
        self._kill(agent, silently=True)

    def kubelet_returns(self, name: str) -> None:
        self.kubelets_away.discard(name)
        self.spawn(self._collect(name))

    def _probed(self, address: str) -> str:
        """What a peer finds that connects to the probe port of this address."""
        agent = next((a for a in self.agents.values() if a.address == address), None)
        if agent is None:
            return "timeout" if self.homes.get(address) in self.cut_off else "refused"
        if agent.node in self.cut_off:
            return "timeout"
        return "mute" if agent.frozen else "reached"

    def partition(self, name: str) -> None:
        """The node reaches nobody, and nobody learns of it but by silence; its processes run on."""
        self.cut_off.add(name)
        for agent in self.agents.values():
            agent.muted = agent.muted or agent.node == name
        self.later(NOT_READY_SECONDS, self._node_ready, name, "Unknown")

    def heal(self, name: str) -> None:
        """Agents are heard again at once; the kubelet needs a moment to learn what it missed."""
        self.cut_off.discard(name)
        for agent in self.agents.values():
            agent.muted = agent.muted and agent.node != name
        self.later(2.0, self.node_returns, name)

    def _node_ready(self, name: str, ready: str) -> None:
        if (ready == "True") == (name in self.cut_off):
            return
        condition = {"type": "Ready", "status": ready, "lastTransitionTime": rfc3339(self.clock.now())}
        self.cluster.set_node_status(name, {"conditions": [condition]})

    # -- looking

    def check(self) -> None:
        """Raises what went wrong beside the test: a promise of the ranks that was broken, or a bug."""
        if self._failures:
            raise self._failures[0]
        self.operators.check()
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _follow_job(self) -> None:
        """Keeps the job's last word, for its object may be gone before anybody looks."""
        while True:
            listing = await self.cluster.list(Kind.JOB)
            for found in listing.items:
                self.last_status = found.get("status") or {}
            with suppress(Unavailable):
                async for event in self.cluster.watch(Kind.JOB, listing.resource_version):
                    if event.change != Change.BOOKMARK:
                        self.last_status = event.object.get("status") or {}
                        if self.last_status.get("completionTime") and self.ended_at is None:
                            self.ended_at = self.clock.monotonic()

    async def until(self, what: str, wanted: Any, seconds: float = 400.0) -> Object:
        """The job's status once `wanted(status)` is true; looks four times a second."""
        deadline = self.clock.now() + timedelta(seconds=seconds)
        while True:
            self.check()
            seen = self.last_status
            if wanted(seen):
                return seen
            assert self.clock.now() < deadline, f"not within {seconds:g} s: {what}; {seen}"
            await asyncio.sleep(0.25)

    async def until_gone(self, seconds: float = 400.0) -> None:
        """Until the job's object is gone, and with it its pods."""
        deadline = self.clock.now() + timedelta(seconds=seconds)
        while (await self.cluster.list(Kind.JOB)).items or await self.pods():
            self.check()
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

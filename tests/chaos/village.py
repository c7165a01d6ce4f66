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
from rerail_operator.shell.cluster import Change, Kind, NotFound, Object, Unavailable
from rerail_operator.shell.memory import MemoryCluster, MemoryOptions
from tests.shell.hamlet import node

from .agent import StandIn
from .mortal import Fate, Outage
from .operators import Replicas
from .program import Program
from .virtual import VirtualClock

START_SECONDS = 0.5  # of a container
RECONNECT_SECONDS = 0.5
NOT_READY_SECONDS = 40.0


@dataclass
class Village:
    """Everything there is. All times are virtual."""

    fate: Fate = field(default_factory=Fate)
    nodes: int = 4
    replicas: int = 1
    agents: dict[str, StandIn] = field(default_factory=dict)  # by pod UID, as long as the process lives
    pods_made: list[str] = field(default_factory=list)
    cut_off: set[str] = field(default_factory=set)  # nodes that reach nobody
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> "Village":
        self.clock = VirtualClock()
        serial = count(1)
        options = MemoryOptions(new_uid=lambda: f"{next(serial):05x}000-0000-4000-8000-000000000000")
        self.cluster = MemoryCluster(self.clock, options)
        self.program = Program(self)
        self.outage = Outage(self.cluster)
        for number in range(self.nodes):
            await self.cluster.create(Kind.NODE, "", node(f"node-{number}"))
        self._tasks += [asyncio.create_task(self._kubelets()), asyncio.create_task(self.program.run())]
        self.operators = Replicas(self, self.replicas)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.operators.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
        if pod["spec"].get("nodeName") in self.cut_off:
            return
        phase = (pod.get("status") or {}).get("phase", "Pending")
        if "deletionTimestamp" in meta:
            self._later(0.3, self.end_pod, meta["uid"])
        elif pod["spec"].get("nodeName") and phase == "Pending" and meta["uid"] not in self.agents:
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
        if agent.wire is None and agent.node not in self.cut_off and not agent.gone and not agent.frozen:
            self.operators.any_for(agent)

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

    def check(self) -> None:
        """Raises what went wrong beside the test: a promise of the ranks that was broken, or a bug."""
        self.operators.check()
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def status(self, name: str = "gpt") -> Object:
        return dict((await self.cluster.get(Kind.JOB, "default", name)).get("status") or {})

    async def until(self, what: str, wanted: Any, seconds: float = 400.0) -> Object:
        """The job's status once `wanted(status)` is true; looks four times a second."""
        deadline = self.clock.now() + timedelta(seconds=seconds)
        while True:
            self.check()
            seen = await self.status()
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

"""The operator over an in-memory API server, as one process: what restart-in-place measures.

Coordinator behind TLS, engine, reconciler, core, metrics and events are the real ones. The API server is the
in-memory cluster of `rerail run`, its calls counted; a stand-in kubelet brings bound pods to Running.

The first line on stdin is a `Setting`; every later line asks for an `Account`, given in one line on stdout.
"""

import asyncio
import gc
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from rerail_api.status import TrainingJobStatus
from rerail_operator.core.manifests import Endpoint
from rerail_operator.core.plan import Plan
from rerail_operator.core.world import World
from rerail_operator.shell.apply import Making
from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.cluster import Cluster, Kind, Listing, Object, WatchEvent
from rerail_operator.shell.coordinator import Coordinator
from rerail_operator.shell.engine import Engine, EngineSettings
from rerail_operator.shell.events import EventRecorder
from rerail_operator.shell.keys import JobKey
from rerail_operator.shell.leader import AlwaysLeader
from rerail_operator.shell.memory import MemoryCluster, MemoryOptions
from rerail_operator.shell.metrics import Metrics
from rerail_operator.shell.reconciler import Passed
from rerail_operator.shell.tls import make_authority, server_context
from rerail_operator.shell.tokens import FileTokenVerifier
from tests.shell.hamlet import GPU, job, node

from .crowd import say

CLOCK = SystemClock()
SERVICE = "rerail-coordinator.rerail-system.svc"
NAME = "gang"


class Setting(msgspec.Struct, frozen=True):
    """How many nodes, and the file with the agents' token."""

    nodes: int
    token_file: str


class Written(msgspec.Struct, frozen=True):
    """One status write: when (monotonic), and what it said."""

    begun: float
    ended: float
    round: int
    released_round: int
    phase: str
    reason: str


class Account(msgspec.Struct, frozen=True):
    """What was spent since the process began, and how the job stands."""

    cpu_seconds: float
    passes: int
    pass_cpu_seconds: float
    requests: dict[str, int]
    writes: list[Written]
    rss_bytes: int
    peak_rss_bytes: int
    connections: int
    phase: str
    round: int
    step: int


class CountedCluster:
    """The Cluster port; every call is counted, and status writes are written down."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.requests: Counter[str] = Counter()
        self.writes: list[Written] = []

    async def create(self, kind: Kind, namespace: str, obj: Object, *, dry_run: bool = False) -> Object:
        self.requests[f"create {kind}"] += 1
        return await self._cluster.create(kind, namespace, obj, dry_run=dry_run)

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        self.requests[f"get {kind}"] += 1
        return await self._cluster.get(kind, namespace, name)

    async def replace(self, kind: Kind, namespace: str, obj: Object, *, status: bool = False) -> Object:
        self.requests[f"replace {kind}"] += 1
        begun = time.monotonic()
        reply = await self._cluster.replace(kind, namespace, obj, status=status)
        if kind is Kind.JOB and status:
            told = reply["status"]
            numbers = int(told.get("round", 0)), int(told.get("releasedRound", 0))
            words = str(told.get("phase", "")), str(told.get("reason", ""))
            self.writes.append(Written(begun, time.monotonic(), *numbers, *words))
        return reply

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        self.requests[f"patch {kind}"] += 1
        return await self._cluster.patch(kind, namespace, name, patch)

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        self.requests[f"delete {kind}"] += 1
        await self._cluster.delete(kind, namespace, name, uid=uid, grace_seconds=grace_seconds)

    async def delete_collection(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], *, grace_seconds: int | None = None
    ) -> None:
        self.requests[f"deletecollection {kind}"] += 1
        await self._cluster.delete_collection(kind, namespace, labels, grace_seconds=grace_seconds)

    async def list(self, kind: Kind, labels: str = "", fields: str = "") -> Listing:
        self.requests[f"list {kind}"] += 1
        return await self._cluster.list(kind, labels, fields)

    def watch(
        self, kind: Kind, resource_version: str, labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        self.requests[f"watch {kind}"] += 1
        return self._cluster.watch(kind, resource_version, labels, fields)


class Stage:
    """The operator, its cluster, and the accounts of both."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._memory = MemoryCluster(CLOCK, MemoryOptions(ignore_resources=True, history=100_000))
        self._cluster = CountedCluster(self._memory)
        self._authority = make_authority(CLOCK.now())
        leader = AlwaysLeader()
        verifier = FileTokenVerifier(Path(setting.token_file))
        self._coordinator = Coordinator(verifier, CLOCK, self._agent_changed, leader)
        self._recorder = EventRecorder(self._cluster, CLOCK, "rerail-0")
        endpoint = Endpoint(f"{SERVICE}:7400", tls=True, server_name=SERVICE)
        making = Making(endpoint, (GPU,), b"agent", self._authority.certificate.decode())
        self._engine = Engine(self._cluster, self._coordinator, leader, EngineSettings(making), CLOCK)
        metrics = Metrics(lambda key: True, ())
        self._engine.on_pass.append(metrics.passed)
        self._engine.on_pass.append(self._passed)
        self._engine.record_with(self._recorder.record)
        self._tasks: list[asyncio.Task[None]] = []
        self._status = TrainingJobStatus()
        self._pass_cpu = 0.0
        self._pass = self._engine.reconciler.reconcile
        setattr(self._engine.reconciler, "reconcile", self._timed_pass)  # noqa: B010 - a method, on purpose

    async def run(self, commands: asyncio.StreamReader) -> None:
        """Bring a gang of all nodes to Running pods; then give accounts until stdin ends."""
        await self._coordinator.start("127.0.0.1", 0, server_context(self._authority, SERVICE, CLOCK.now()))
        for number in range(self._setting.nodes):
            await self._memory.create(Kind.NODE, "", node(f"node-{number}"))
        await self._engine.start()
        await self._engine.fleet.wait_synced()
        gc.collect()
        gc.freeze()  # as the operator does
        self._tasks = [asyncio.create_task(self._recorder.run()), asyncio.create_task(self._kubelets())]
        await self._engine.lead()
        made = await self._memory.create(
            Kind.JOB, "default", job(NAME, self._setting.nodes, startupDeadlineSeconds=3600)
        )
        uid = made["metadata"]["uid"]
        while sum(pod.phase == "Running" for pod in self._engine.fleet.pods(uid)) < self._setting.nodes:
            await asyncio.sleep(0.1)
        pods = [[pod.node_rank, pod.name, pod.uid] for pod in self._engine.fleet.pods(uid)]
        ca = self._authority.certificate.decode()
        say(port=self._coordinator.port, ca=ca, job_uid=uid, pods=sorted(pods))
        while await commands.readline():
            sys.stdout.buffer.write(msgspec.json.encode(self._account()) + b"\n")
            sys.stdout.buffer.flush()

    def _agent_changed(self, job_uid: str) -> None:
        self._engine.agent_changed(job_uid)

    def _passed(self, key: JobKey, world: World, plan: Plan) -> None:
        if world.job is not None:
            self._status = plan.status or world.job.status

    async def _timed_pass(self, key: JobKey) -> Passed:
        """A pass by its CPU time, with the orders that it sends and what its writes let run meanwhile."""
        begun = time.thread_time()
        try:
            return await self._pass(key)
        finally:
            self._pass_cpu += time.thread_time() - begun

    def _account(self) -> Account:
        return Account(
            cpu_seconds=time.process_time(),
            passes=self._engine.passes,
            pass_cpu_seconds=self._pass_cpu,
            requests=dict(self._cluster.requests),
            writes=self._cluster.writes,
            rss_bytes=_resident_bytes(),
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            connections=self._coordinator.connections,
            phase=str(self._status.phase or ""),
            round=self._status.round,
            step=self._status.progress.step or 0,
        )

    async def _kubelets(self) -> None:
        """Pods that are bound run at once."""
        running: dict[str, Any] = {
            "phase": "Running", "podIP": "10.0.0.1",
            "containerStatuses": [{"name": "trainer", "ready": True, "state": {"running": {}}}],
        }  # fmt: skip
        async for event in self._memory.watch(Kind.POD, "0"):
            pod = event.object
            if (pod.get("spec") or {}).get("nodeName") and pod["status"].get("phase", "Pending") == "Pending":
                self._memory.set_pod_status(pod["metadata"]["uid"], running)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def main() -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    setting = msgspec.json.decode(await commands.readline(), type=Setting)
    await Stage(setting).run(commands)


if __name__ == "__main__":
    asyncio.run(main())

"""A hamlet: the engine over an in-memory cluster whose pods are stand-in agents. For tests of the shell.

The core, the reconciler, the coordinator and its wire are the real ones; only processes are missing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerail_operator.core.manifests import Endpoint
from rerail_operator.shell.apply import Making
from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.cluster import Kind, NotFound, Object
from rerail_operator.shell.coordinator import Coordinator
from rerail_operator.shell.engine import Engine, EngineSettings
from rerail_operator.shell.leader import AlwaysLeader
from rerail_operator.shell.memory import MemoryCluster
from rerail_operator.shell.tokens import FileTokenVerifier
from tests.shell.agent_client import AgentClient, Frame

GPU = "nvidia.com/gpu"
CLOCK = SystemClock()


def node(name: str, gpus: int = 8) -> Object:
    amounts = {GPU: str(gpus), "cpu": "64", "memory": "512Gi", "pods": "110"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "allocatable": amounts,
            "capacity": amounts,
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    }


def job(name: str = "gpt", nodes: int = 2, **spec: Any) -> Object:
    container = {
        "name": "trainer",
        "image": "example.com/trainer:1",
        "command": ["python", "train.py"],
        "resources": {"limits": {GPU: 8}},
    }
    return {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"numNodes": nodes, "template": {"spec": {"containers": [container]}}, **spec},
    }


@dataclass
class Hamlet:
    """The cluster, its agents by pod name, and the engine of the moment."""

    cluster: MemoryCluster
    token: Path
    agents: dict[str, AgentClient] = field(default_factory=dict)
    engine: Engine | None = None
    coordinator: Coordinator | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    mute: set[str] = field(default_factory=set)  # pods whose agents never connect

    # -- the operator -------------------------------------------------------------------------------------

    async def start_operator(self) -> None:
        leader = AlwaysLeader()
        self.coordinator = Coordinator(FileTokenVerifier(self.token), CLOCK, self._agent_changed, leader)
        await self.coordinator.start("127.0.0.1", 0)
        endpoint = Endpoint(f"127.0.0.1:{self.coordinator.port}", tls=False)
        making = Making(endpoint, (GPU,), b"agent")
        self.engine = Engine(self.cluster, self.coordinator, leader, EngineSettings(making), CLOCK)
        await self.engine.start()
        await self.engine.lead()

    def _agent_changed(self, job_uid: str) -> None:
        if self.engine is not None:
            self.engine.agent_changed(job_uid)

    async def stop_operator(self) -> None:
        """As a crash does: nothing is written, connections drop."""
        assert self.engine is not None and self.coordinator is not None
        await self.engine.stop()
        await self.coordinator.stop()

    # -- the kubelets -------------------------------------------------------------------------------------

    async def kubelets(self) -> None:
        """Bring bound pods to Running with an agent, and let deleted ones go."""
        while True:
            for pod in (await self.cluster.list(Kind.POD)).items:
                await self._tend(pod)
            await asyncio.sleep(0.02)

    async def _tend(self, pod: Object) -> None:
        meta, name = pod["metadata"], pod["metadata"]["name"]
        phase = (pod.get("status") or {}).get("phase", "Pending")
        if "deletionTimestamp" in meta:
            agent = self.agents.pop(name, None)
            if agent is not None:
                await agent.close()
            self.cluster.confirm_deleted(meta["uid"])
        elif pod["spec"].get("nodeName") and phase == "Pending" and name not in self.agents:
            self._start(pod)

    def _start(self, pod: Object) -> None:
        meta = pod["metadata"]
        labels = meta["labels"]
        agent = AgentClient(
            job=f"{meta['namespace']}/{labels['rerail.dev/job-name']}",
            job_uid=labels["rerail.dev/job-uid"],
            pod=meta["name"],
            pod_uid=meta["uid"],
            token=self.token.read_text(),
        )
        self.agents[meta["name"]] = agent
        running = [{"name": "trainer", "ready": True, "state": {"running": {}}}]
        self.cluster.set_pod_status(
            meta["uid"], {"phase": "Running", "podIP": "127.0.0.1", "containerStatuses": running}
        )
        task = asyncio.create_task(self._serve(agent))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, agent: AgentClient) -> None:
        """Keep the agent connected to whatever coordinator there is, as the real one does."""
        while agent.pod in self.agents:
            if agent.pod in self.mute or self.coordinator is None:
                await asyncio.sleep(0.02)
                continue
            try:
                await agent.connect("127.0.0.1", self.coordinator.port)
                await agent.obey()
            except (OSError, RuntimeError):
                await asyncio.sleep(0.05)  # the coordinator is away
            finally:
                await agent.close()
            if agent.received and agent.received[-1].get("do") == "finish":
                return self.end_pod(agent.pod_uid, agent.received[-1]["code"])
            await asyncio.sleep(0.05)

    def end_pod(self, uid: str, code: int, reason: str = "", message: str = "") -> None:
        """The container ends with `code`, as the kubelet writes it."""
        ended = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "message": message}
        try:
            self.cluster.set_pod_status(
                uid,
                {
                    "phase": "Failed" if code else "Succeeded",
                    "containerStatuses": [
                        {"name": "trainer", "ready": False, "state": {"terminated": ended}}
                    ],
                },
            )
        except NotFound:
            return

    # -- looking ------------------------------------------------------------------------------------------

    async def status(self, name: str = "gpt") -> Frame:
        found = await self.cluster.get(Kind.JOB, "default", name)
        return dict(found.get("status") or {})

    async def until(self, name: str, seconds: float = 10.0, **wanted: Any) -> Frame:
        """The status once all `wanted` fields have their values."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            seen = await self.status(name)
            if all(seen.get(key) == value for key, value in wanted.items()):
                return seen
            assert loop.time() < deadline, f"not within {seconds:g} s: {wanted}; status is {seen}"
            await asyncio.sleep(0.02)

    async def pods(self) -> dict[str, Object]:
        return {p["metadata"]["name"]: p for p in (await self.cluster.list(Kind.POD)).items}

    async def until_no_pods(self, seconds: float = 10.0) -> None:
        """Until the last pod is gone."""
        async with asyncio.timeout(seconds):
            while await self.pods():
                await asyncio.sleep(0.02)

    async def rank_fails(self, pod: str, **exit_: Any) -> None:
        agent = self.agents[pod]
        evidence = {
            "rank": 0,
            "local_rank": 0,
            "exit_code": 1,
            "ordered": False,
            "age": 0.0,
            "lines": ["boom"],
        }
        await agent.say(state="Failed", exit={**evidence, "last_line": "boom", **exit_})

    async def all_done(self) -> None:
        for agent in list(self.agents.values()):
            await agent.say(state="Done", ranks_alive=0)

    async def progress(self, step: int, **more: Any) -> None:
        first = next(a for n, a in sorted(self.agents.items()) if n.endswith("-0"))
        await first.say(progress={"step": step, "phase": "train", **more}, progress_age=0.0)


@asynccontextmanager
async def hamlet(folder: Path, nodes: int = 3) -> AsyncIterator[Hamlet]:
    """A running hamlet with `nodes` nodes of 8 GPUs."""
    token = folder / "token"
    token.write_text("secret")
    there = Hamlet(MemoryCluster(CLOCK), token)
    for number in range(nodes):
        await there.cluster.create(Kind.NODE, "", node(f"node-{number}"))
    await there.start_operator()
    kubelets = asyncio.create_task(there.kubelets())
    try:
        yield there
    finally:
        kubelets.cancel()
        for task in list(there.tasks):
            task.cancel()
        await asyncio.gather(kubelets, *there.tasks, return_exceptions=True)
        for agent in there.agents.values():
            await agent.close()
        await there.stop_operator()

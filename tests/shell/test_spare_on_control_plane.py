"""A spare on a real control plane: kube-scheduler binds it, a dead node's rank is its own by one label patch."""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rig import ControlPlane, Options

from .agent_client import AgentClient
from .replicas import NAMESPACE, Operator, Replicas, agent_token, prepare

pytestmark = pytest.mark.controlplane

GPU = "nvidia.com/gpu"
SERVER_NAME = "rerail-coordinator.rerail-system.svc"
PODS = "/api/v1/namespaces/team/pods"
RANK = "rerail.dev/node-rank"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with ControlPlane(Options(audit=True)) as cluster:
        prepare(cluster)
        yield cluster


@pytest.fixture
def operator(cluster: ControlPlane, tmp_path: Path) -> Iterator[Operator]:
    replicas = Replicas(cluster, tmp_path)
    try:
        leader = replicas.start()
        leader.wait("leads")
        yield leader
    finally:
        for each in replicas.all:
            each.end()


class Workers:
    """Stand-in agents with real tokens, one for each running pod; those on dead nodes are gone."""

    def __init__(self, cluster: ControlPlane, operator: Operator) -> None:
        self.cluster, self.operator = cluster, operator
        secret = cluster.get("secret", "rerail-authority", "-n", NAMESPACE)
        authority = base64.b64decode(secret["data"]["ca.crt"]).decode()
        self.tls = ssl.create_default_context(cadata=authority)
        self.agents: dict[str, AgentClient] = {}
        self.dead: set[str] = set()
        self.tasks: list[asyncio.Task[None]] = []

    async def look(self) -> dict[str, dict[str, Any]]:
        """The pods by name; each that runs and has no agent yet gets one."""
        pods = {
            pod["metadata"]["name"]: pod
            for pod in (await asyncio.to_thread(self.cluster.api.get, PODS))["items"]
        }
        for name, pod in pods.items():
            running = pod["status"].get("phase") == "Running"
            if running and name not in self.agents and pod["spec"]["nodeName"] not in self.dead:
                await self._start(name, pod)
        return pods

    async def _start(self, name: str, pod: dict[str, Any]) -> None:
        token = await asyncio.to_thread(agent_token, self.cluster, pod, "rerail")
        labels = pod["metadata"]["labels"]
        agent = AgentClient("team/gpt", labels["rerail.dev/job-uid"], name, pod["metadata"]["uid"], token)
        agent.report |= {"address": "10.0.0.1", "port": 20_000 + len(self.agents)}
        await agent.connect("127.0.0.1", self.operator.port, self.tls, SERVER_NAME)
        self.agents[name] = agent
        self.tasks.append(asyncio.create_task(agent.obey()))

    async def node_dies(self, node: str, pods: dict[str, dict[str, Any]]) -> None:
        self.dead.add(node)
        for name, pod in pods.items():
            if pod["spec"].get("nodeName") == node:
                await self.agents[name].close()
        await asyncio.to_thread(
            self.cluster.kubectl, "annotate", f"node/{node}", "rerail.dev/kwok-not-ready=true"
        )

    async def until(self, what: str, seconds: float, **wanted: Any) -> dict[str, Any]:
        """The job's status once these fields have their values; pods are looked after meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            await self.look()
            job = await asyncio.to_thread(self.cluster.get, "tj", "gpt", "-n", "team")
            status: dict[str, Any] = job.get("status") or {}
            if all(status.get(key) == value for key, value in wanted.items()):
                return status
            assert time.monotonic() < deadline, f"{what}: not in {seconds} s: {status}"
            await asyncio.sleep(0.1)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        for agent in self.agents.values():
            with suppress(OSError):
                await agent.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def a_job() -> dict[str, Any]:
    container = {
        "name": "trainer",
        "image": "none.example/trainer",
        "command": ["python", "train.py"],
        "resources": {"limits": {GPU: 8}},
    }
    return {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "gpt", "namespace": "team"},
        "spec": {"numNodes": 2, "spares": 1, "template": {"spec": {"containers": [container]}}},
    }


def asked(cluster: ControlPlane, verb: str, name: str = "") -> list[str]:
    """The pods that the operator has asked the API server to `verb`, dry runs left out."""
    found = []
    for line in cluster.audit_log.read_text().splitlines():
        event = json.loads(line)
        about = event.get("objectRef") or {}
        ours = event["user"]["username"].endswith(":rerail") and event.get("stage") == "ResponseComplete"
        if (
            ours
            and event["verb"] == verb
            and about.get("resource") == "pods"
            and "dryRun" not in event["requestURI"]
        ):
            found.append(about.get("name", ""))
    return found


async def test_a_dead_nodes_rank_goes_to_the_spare_and_no_pod_is_created(
    cluster: ControlPlane, operator: Operator
) -> None:
    cluster.kwok(3)
    cluster.wait("the service account", lambda: "default" in cluster.kubectl("get", "sa", "-n", "team"), 30)
    cluster.apply(a_job())
    cluster.wait(
        "the coordinator's authority",
        lambda: "rerail-authority" in cluster.kubectl("get", "secrets", "-n", NAMESPACE),
        30,
    )
    workers = Workers(cluster, operator)
    try:
        ready = {"desired": 2, "ready": 2, "spares": 1, "summary": "2/2"}
        await workers.until("running with its spare", 60, phase="Running", nodes=ready)
        pods = await workers.look()
        by_rank = {pod["metadata"]["labels"].get(RANK, "spare"): name for name, pod in pods.items()}
        created = len(asked(cluster, "create"))
        assert created == 3 and set(by_rank) == {"0", "1", "spare"}

        lost = pods[by_rank["1"]]["spec"]["nodeName"]
        died = time.monotonic()
        await workers.node_dies(lost, pods)
        status = await workers.until("running again", 60, phase="Running", round=2)
        took = time.monotonic() - died

        after = await workers.look()
        assert after[by_rank["spare"]]["metadata"]["labels"][RANK] == "1"
        assert after[by_rank["spare"]]["metadata"]["labels"]["rerail.dev/since-round"] == "2"
        assert after[by_rank["0"]]["metadata"]["labels"][RANK] == "0"
        assert asked(cluster, "patch") == [by_rank["spare"]]
        assert len(asked(cluster, "create")) == created, "a pod was created"
        (incident,) = status["incidents"]
        assert (incident["class"], incident["nodeRank"], incident["charged"]) == ("NodeLoss", 1, False)
        assert (incident["rung"], status["restarts"]["total"]) == ("Swap", 1)
        assert status["nodes"] == {"desired": 2, "ready": 2, "spares": 0, "summary": "2/2"}
        assert operator.figure("rerail_pass_failures_total") == 0.0
        print(
            f"running again {took:.1f} s after the node died, of which it took "
            f"{incident['stageSeconds'].get('detection', 0):.1f} s to be sure; {incident['stageSeconds']}"
        )
    finally:
        await workers.end()

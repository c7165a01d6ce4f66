"""The operator as its users run it: real processes under the chart's role, against a real API server."""

import base64
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.rig import ControlPlane

from .agent_client import AgentClient
from .jobs import raw_job

pytestmark = pytest.mark.controlplane
NAMESPACE = "rerail-system"
TAKEOVER_SECONDS = 15.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with ControlPlane() as cluster:
        cluster.kubectl("apply", "--server-side", "-f", "crds/trainingjobs.yaml")
        cluster.kubectl("wait", "--for=condition=Established", "crd/trainingjobs.rerail.dev", "--timeout=30s")
        for namespace in (NAMESPACE, "team"):
            cluster.kubectl("create", "namespace", namespace)
        for obj in role_of_the_chart():
            cluster.apply(obj)
        yield cluster


def role_of_the_chart() -> Iterator[dict[str, Any]]:
    rules = yaml.safe_load(Path("helm/rerail/files/rbac-rules.yaml").read_text())
    group = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": "rerail", "namespace": NAMESPACE}
    meta: dict[str, Any] = {"name": "rerail", "namespace": NAMESPACE}
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    for prefix, scope, where in (("Cluster", "cluster", {"name": "rerail"}), ("", "namespace", meta)):
        role = f"{prefix}Role"
        base = {"apiVersion": f"{group}/v1", "metadata": where}
        yield {**base, "kind": role, "rules": rules[scope]}
        reference = {"apiGroup": group, "kind": role, "name": "rerail"}
        yield {**base, "kind": f"{role}Binding", "roleRef": reference, "subjects": [subject]}


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Operator:
    """One replica as a process."""

    def __init__(self, cluster: ControlPlane, folder: Path, name: str) -> None:
        self.port, self.probe_port, self.metrics_port = free_ports(3)
        self.log = folder / f"{name}.log"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RERAIL_", "KUBE"))},
            "KUBECONFIG": str(cluster.service_account_kubeconfig(NAMESPACE, "rerail")),
            "PYTHONPATH": "operator:trainer",
            "RERAIL_NAMESPACE": NAMESPACE,
            "RERAIL_POD_NAME": name,
            "RERAIL_POD_IP": "127.0.0.1",
            "RERAIL_COORDINATOR_SERVICE": "rerail-coordinator.rerail-system.svc:7400",
            "RERAIL_COORDINATOR_PORT": str(self.port),
            "RERAIL_PROBE_PORT": str(self.probe_port),
            "RERAIL_METRICS_PORT": str(self.metrics_port),
            "RERAIL_LOG_FORMAT": "json",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rerail_operator"], env=environment, stdout=log, stderr=log
            )

    def get(self, path: str) -> tuple[int, str]:
        port = self.metrics_port if path == "/metrics" else self.probe_port
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def figure(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else float("nan")

    @property
    def leads(self) -> bool:
        return self.figure("rerail_leader") == 1.0

    def wait(self, what: str, seconds: float = 60.0) -> None:
        """`what` is the name of one of our properties."""
        deadline = time.monotonic() + seconds
        while not getattr(self, what):
            assert self.process.poll() is None, f"{self.log.name}: {self.log.read_text()[-4000:]}"
            assert time.monotonic() < deadline, f"not {what} in {seconds} s: {self.log.read_text()[-4000:]}"
            time.sleep(0.05)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


class Replicas:
    def __init__(self, cluster: ControlPlane, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.all: list[Operator] = []

    def start(self) -> Operator:
        self.all.append(Operator(self.cluster, self.folder, f"rerail-{len(self.all)}"))
        return self.all[-1]

    def leader_and_standby(self) -> tuple[Operator, Operator]:
        first = self.start()
        first.wait("leads")
        second = self.start()
        second.wait("ready")
        assert not second.leads
        return first, second


@pytest.fixture
def replicas(cluster: ControlPlane, tmp_path: Path) -> Iterator[Replicas]:
    cluster.kubectl("delete", "lease", "rerail", "-n", NAMESPACE, "--ignore-not-found")
    replicas = Replicas(cluster, tmp_path)
    yield replicas
    for operator in replicas.all:
        operator.end()


def test_a_standby_is_ready_and_follows_a_killed_leader_within_15_seconds(replicas: Replicas) -> None:
    leader, standby = replicas.leader_and_standby()
    assert leader.ready, "leading is not what readiness is about, but a leader is ready, too"
    term = leader.figure("rerail_leader_term")
    leader.process.kill()
    killed = time.monotonic()
    standby.wait("leads", TAKEOVER_SECONDS)
    print(f"taken over {time.monotonic() - killed:.1f} s after the kill")
    assert standby.figure("rerail_leader_term") > term


def test_a_leader_that_is_told_to_end_hands_over_at_once(replicas: Replicas) -> None:
    leader, standby = replicas.leader_and_standby()
    leader.process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    standby.wait("leads", 8.0)
    print(f"handed over {time.monotonic() - told:.1f} s after SIGTERM")
    assert leader.process.wait(25) == 0, leader.log.read_text()
    lines = [json.loads(line) for line in leader.log.read_text().splitlines()]
    assert [line for line in lines if "exception" in line or line["level"] in ("error", "critical")] == []
    assert any(line["message"].startswith("leading with term") for line in lines)


def test_a_leader_that_stood_still_ends_without_a_write(replicas: Replicas) -> None:
    leader, standby = replicas.leader_and_standby()
    leader.process.send_signal(signal.SIGSTOP)
    standby.wait("leads", TAKEOVER_SECONDS)
    lease = replicas.cluster.get("lease", "rerail", "-n", NAMESPACE)
    leader.process.send_signal(signal.SIGCONT)
    assert leader.process.wait(10) == 1
    assert "leadership is lost, the process ends: not renewed for 6 s" in leader.log.read_text()
    holder = replicas.cluster.get("lease", "rerail", "-n", NAMESPACE)["spec"]["holderIdentity"]
    assert holder == lease["spec"]["holderIdentity"] and holder.startswith("rerail-1_")


def test_an_api_server_that_is_away_costs_the_lease_and_nothing_else(
    cluster: ControlPlane, replicas: Replicas
) -> None:
    leader, standby = replicas.leader_and_standby()
    cluster.pause_apiserver()
    try:
        assert leader.process.wait(12) == 1, "it may not lead on what it cannot renew"
        assert "not renewed for 6 s: Unavailable" in leader.log.read_text()
        assert not standby.leads
        assert standby.get("/healthz")[0] == 200
    finally:
        cluster.resume_apiserver()
    standby.wait("leads", TAKEOVER_SECONDS)
    again = replicas.start()
    again.wait("ready")
    assert not again.leads


def test_under_another_crd_it_leads_nothing_and_names_the_command(
    cluster: ControlPlane, replicas: Replicas
) -> None:
    annotation = "rerail.dev/schema-hash"
    crd = "crd/trainingjobs.rerail.dev"
    right = cluster.get(*crd.split("/"))["metadata"]["annotations"][annotation]
    cluster.kubectl("annotate", "--overwrite", crd, f"{annotation}=0000000000000000")
    try:
        operator = replicas.start()
        wanted = f"has schema 0000000000000000, this operator needs {right}"
        cluster.wait("the operator to say so", lambda: wanted in operator.get("/readyz")[1], 60)
        status, text = operator.get("/readyz")
        assert status == 503
        assert "kubectl apply --server-side --force-conflicts -f crds/trainingjobs.yaml" in text
        assert not operator.leads
        assert operator.get("/healthz")[0] == 200, "no reason to restart it"
        assert wanted in operator.log.read_text()
    finally:
        cluster.kubectl("annotate", "--overwrite", crd, f"{annotation}={right}")
    operator.wait("leads", 30)


def test_a_job_is_seen_told_of_and_counted_and_leaves_no_figures_behind(
    cluster: ControlPlane, replicas: Replicas
) -> None:
    cluster.kwok(2)
    operator = replicas.start()
    operator.wait("leads")
    raw = raw_job()
    job = {**raw, "metadata": {"name": "seen", "namespace": "team"}}
    del job["status"]
    cluster.apply(job)

    def events() -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = cluster.get("events", "-n", "team")["items"]
        return [event for event in listed if event["involvedObject"]["name"] == "seen"]

    cluster.wait("an event about the job", events, 30)
    event = events()[0]
    assert event["source"]["component"] == "rerail" and event["reportingInstance"] == "rerail-0"
    assert event["involvedObject"]["uid"] == cluster.get("tj", "seen", "-n", "team")["metadata"]["uid"]
    assert event["reason"] in cluster.kubectl("describe", "tj", "seen", "-n", "team")
    figure = 'rerail_job_nodes_desired{job="seen",namespace="team"}'
    cluster.wait("its size", lambda: f"{figure} 2.0" in operator.get("/metrics")[1], 30)
    cluster.kubectl("delete", "tj", "seen", "-n", "team")
    cluster.wait("its figures to go", lambda: 'job="seen"' not in operator.get("/metrics")[1], 30)
    assert operator.figure("rerail_pass_failures_total") == 0.0


def agent_token(cluster: ControlPlane, pod: dict[str, Any], audience: str) -> str:
    bound = {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": pod["metadata"]["name"],
        "uid": pod["metadata"]["uid"],
    }
    spec = {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    reply = cluster.api.post("/api/v1/namespaces/team/serviceaccounts/default/token", request)
    return str(reply["status"]["token"])


def a_pod(cluster: ControlPlane, name: str) -> dict[str, Any]:
    cluster.wait("the service account", lambda: "default" in cluster.kubectl("get", "sa", "-n", "team"), 30)
    container = {"name": "c", "image": "example.com/none:1"}
    spec = {"containers": [container], "nodeSelector": {"no": "where"}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "team"}, "spec": spec}
    cluster.apply(pod)
    return cluster.get("pod", name, "-n", "team")


async def test_an_agent_proves_its_pod_to_the_leader_and_is_sent_there_by_the_standby(
    cluster: ControlPlane, replicas: Replicas
) -> None:
    leader, standby = replicas.leader_and_standby()
    pod = a_pod(cluster, "job-0")
    secret = cluster.get("secret", "rerail-authority", "-n", NAMESPACE)
    authority = base64.b64decode(secret["data"]["ca.crt"]).decode()
    tls = ssl.create_default_context(cadata=authority)
    name = "rerail-coordinator.rerail-system.svc"

    async def say_hello(operator: Operator, audience: str = "rerail", **changes: Any) -> dict[str, Any]:
        token = agent_token(cluster, pod, audience)
        uid = pod["metadata"]["uid"]
        client = AgentClient("team/job", "uid-job", "job-0", changes.pop("pod_uid", uid), token, **changes)
        await client.connect("127.0.0.1", operator.port, tls, name)
        try:
            return await client.receive(seconds=20)
        finally:
            await client.close()

    welcome = await say_hello(leader)
    assert welcome["kind"] == "welcome", welcome
    assert await say_hello(standby) == {"kind": "redirect", "address": f"127.0.0.1:{leader.port}"}
    wrong = await say_hello(leader, audience="https://kubernetes.default.svc")
    assert "not made for audience 'rerail'" in wrong["reason"]
    stolen = await say_hello(leader, pod_uid="another")
    assert "the hello says another" in stolen["reason"]


def test_settings_that_cannot_be_used_end_it_with_all_problems() -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "operator:trainer", "RERAIL_WORKERS": "many"}
    ended = subprocess.run(
        [sys.executable, "-m", "rerail_operator"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    for name in (
        "RERAIL_NAMESPACE is not set",
        "RERAIL_COORDINATOR_SERVICE is not set",
        "RERAIL_WORKERS='many'",
    ):
        assert name in ended.stderr

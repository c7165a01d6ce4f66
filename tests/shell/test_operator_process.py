"""The operator as its users run it: real processes under the chart's role, against a real API server."""

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rig import ControlPlane

from .agent_client import AgentClient
from .jobs import raw_job
from .replicas import NAMESPACE, Operator, Replicas, agent_token, prepare

pytestmark = pytest.mark.controlplane
TAKEOVER_SECONDS = 15.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with ControlPlane() as cluster:
        prepare(cluster)
        yield cluster


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

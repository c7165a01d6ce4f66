"""The operator as a real process under the chart's own role: nothing it does is refused, and a missing right is named."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rig import ApiError, ControlPlane, Options

from .checkout import CHART, ROOT
from .rights import granted

pytestmark = pytest.mark.controlplane

NAMESPACE = "rerail-system"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:rerail"
JOBS = "/apis/rerail.dev/v1alpha1/namespaces/default/trainingjobs"
PODS = "/api/v1/namespaces/default/pods"


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with ControlPlane(Options(audit=True)) as cluster:
        cluster.kubectl("create", "namespace", NAMESPACE)
        cluster.helm(
            "install", "rerail", str(CHART), "-n", NAMESPACE, "--set", "image.repository=none.example/rerail"
        )
        cluster.kwok(3)
        yield cluster


@contextmanager
def operator(cluster: ControlPlane, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The operator's process, with the environment that its pod would have."""
    coordinator, probes, metrics = free_ports(3)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(log.parent),
        "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer'}",
        "KUBECONFIG": str(cluster.service_account_kubeconfig(NAMESPACE, "rerail")),
        "RERAIL_NAMESPACE": NAMESPACE,
        "RERAIL_COORDINATOR_SERVICE": f"127.0.0.1:{coordinator}",
        "RERAIL_COORDINATOR_PORT": str(coordinator),
        "RERAIL_PROBE_PORT": str(probes),
        "RERAIL_METRICS_PORT": str(metrics),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "rerail_operator"],
            env=environment,
            cwd=log.parent,
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


def a_job(name: str) -> dict[str, Any]:
    container = {
        "name": "trainer",
        "image": "none.example/trainer",
        "command": ["python", "-m", "rerail_trainer"],
        "resources": {"limits": {"nvidia.com/gpu": 8}},
    }
    return {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {"numNodes": 2, "template": {"spec": {"containers": [container]}}},
    }


def workers(cluster: ControlPlane, job: str, phase: str = "Running") -> list[str]:
    items = cluster.api.get(f"{PODS}?labelSelector=rerail.dev/job-name={job}")["items"]
    return [item["metadata"]["name"] for item in items if item["status"].get("phase") == phase]


def gone(cluster: ControlPlane, path: str) -> bool:
    try:
        cluster.api.get(path)
    except ApiError as error:
        return error.status == 404
    return False


def asked(cluster: ControlPlane) -> list[tuple[tuple[str, str, str], int, str]]:
    """What the operator's account has asked of the API server: right, answer, namespace."""
    found = []
    for line in cluster.audit_log.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] != ACCOUNT or "responseStatus" not in event:
            continue
        about = event.get("objectRef")
        if about is None:
            right = ("", event["requestURI"].partition("?")[0], event["verb"])
        else:
            below = f"/{about['subresource']}" if "subresource" in about else ""
            right = (about.get("apiGroup", ""), about["resource"] + below, event["verb"])
        found.append((right, event["responseStatus"]["code"], (about or {}).get("namespace", "")))
    return found


def test_a_job_comes_and_goes_and_nothing_is_refused(cluster: ControlPlane, tmp_path: Path) -> None:
    before = len(asked(cluster))
    with operator(cluster, tmp_path / "operator.log") as process:
        cluster.api.post(JOBS, a_job("gpt"))
        cluster.wait(
            "both workers run", lambda: len(workers(cluster, "gpt")) == 2 or process.poll() is not None, 60
        )
        assert process.poll() is None, (tmp_path / "operator.log").read_text()
        cluster.api.delete(f"{JOBS}/gpt")
        cluster.wait(
            "job and workers are gone",
            lambda: gone(cluster, f"{JOBS}/gpt") and not workers(cluster, "gpt"),
            60,
        )
    everywhere, own = granted()
    # Every client looks up what the server offers; any account may.
    questions = [one for one in asked(cluster)[before:] if not one[0][1].startswith(("/api", "/version"))]
    assert questions, "the audit log shows nothing of the operator"
    assert [one for one in questions if one[1] in (401, 403)] == []
    assert {right for right, _, namespace in questions if namespace != NAMESPACE} - everywhere == set()
    assert {right for right, _, _ in questions} - everywhere - own == set()


def test_a_right_that_is_taken_away_is_named_where_the_user_looks(
    cluster: ControlPlane, tmp_path: Path
) -> None:
    role = cluster.get("clusterrole", "rerail")
    rules = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if verb != "create"]}
        if rule.get("resources") == ["pods"]
        else rule
        for rule in role["rules"]
    ]
    path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/rerail"
    cluster.api.request("PATCH", path, {"rules": rules}, "application/merge-patch+json")
    try:
        with operator(cluster, tmp_path / "operator.log"):
            cluster.api.post(JOBS, a_job("poor"))
            message = cluster.wait("the job says what is missing", lambda: refusal(cluster, "poor"), 60)
    finally:
        cluster.api.request("PATCH", path, {"rules": role["rules"]}, "application/merge-patch+json")
        cluster.api.delete(f"{JOBS}/poor")
    assert "create" in message
    assert "pods" in message


def refusal(cluster: ControlPlane, job: str) -> str:
    message: str = cluster.api.get(f"{JOBS}/{job}").get("status", {}).get("message", "")
    return message if "forbidden" in message.lower() or "may not" in message.lower() else ""

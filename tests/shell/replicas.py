"""Replicas of the operator as real processes under the chart's role, for tests on a control plane."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.rig import ControlPlane

NAMESPACE = "rerail-system"


def prepare(cluster: ControlPlane) -> None:
    """The CRD, the namespaces rerail-system and team, and the chart's role."""
    cluster.kubectl("apply", "--server-side", "-f", "crds/trainingjobs.yaml")
    cluster.kubectl("wait", "--for=condition=Established", "crd/trainingjobs.rerail.dev", "--timeout=30s")
    for namespace in (NAMESPACE, "team"):
        cluster.kubectl("create", "namespace", namespace)
    for obj in role_of_the_chart():
        cluster.apply(obj)


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

"""Where the gang bench runs: a real control plane, pretended nodes, the chart's role, nothing in between."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.rig import ControlPlane, Options
from tests.cluster.rig.paths import CHECKOUT

SYSTEM = "rerail-system"
NAMESPACE = "default"
GPUS = 8


@dataclass(frozen=True)
class Ground:
    """A cluster with Rerail's CRD and roles in it and no operator yet."""

    cluster: ControlPlane
    nodes: list[str]
    operator_kubeconfig: Path

    def rig_pids(self) -> list[int]:
        """The processes of the cluster, for accounts of CPU time."""
        parts = list(self.cluster.processes.values())
        fakes = self.cluster._fakes
        if fakes is not None and fakes.process is not None:
            parts.append(fakes.process)
        return [part.pid for part in parts]


@contextmanager
def ground(nodes: int) -> Iterator[Ground]:
    """A fresh cluster of `nodes` pretended nodes with 8 GPUs; priority and fairness on, requests audited."""
    # The audit log must not be rotated in mid-run, and a crowded machine must not make nodes Unknown.
    flags = ("--audit-log-maxsize=8192",)
    with ControlPlane(Options(audit=True, node_grace_seconds=300, apiserver_flags=flags)) as cluster:
        cluster.helm(
            *("install", "rerail", str(CHECKOUT / "helm" / "rerail"), "--namespace", SYSTEM),
            *("--create-namespace", "--set", "image.repository=none.example/rerail"),
        )
        # The operator is a process of the bench; the chart's pods would only be pretended.
        cluster.kubectl("scale", "deployment/rerail", "--replicas=0", "-n", SYSTEM)
        kubeconfig = cluster.service_account_kubeconfig(SYSTEM, "rerail")
        yield Ground(cluster, cluster.kwok(nodes, GPUS), kubeconfig)


def load() -> float:
    """The machine's load average over the last minute."""
    return os.getloadavg()[0]

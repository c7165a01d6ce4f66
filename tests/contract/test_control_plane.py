"""The contract on a real API server with its scheduler and garbage collector; kwok plays the kubelets."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml

from rerail_operator.shell.cluster import Cluster, Kind, Object
from rerail_operator.shell.kube.client import KubeCluster
from tests.cluster.rig import ControlPlane
from tests.contract.fleet_suite import FleetContract
from tests.contract.stage import HANG, Stage
from tests.contract.suite import ClusterContract
from tests.contract.wire import Wire

pytestmark = pytest.mark.controlplane

CRD = Path(__file__).parents[2] / "crds" / "trainingjobs.yaml"
NAMESPACE = "contract"


class RealStage:
    namespace = NAMESPACE

    def __init__(self, cluster: Cluster, rig: ControlPlane, nodes: tuple[str, ...], wire: Wire) -> None:
        self.cluster = cluster
        self.nodes = nodes
        self._rig = rig
        self._wire = wire

    async def let_go(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        await self.cluster.patch(Kind.POD, self.namespace, name, {"metadata": {"annotations": {HANG: None}}})

    async def lose_next_reply(self) -> None:
        self._wire.cut_next_reply()

    async def forget_history(self) -> str:
        # A fresh API server's watch cache begins where etcd stands now.
        await asyncio.to_thread(self._rig.restart_apiserver)
        return "2"


@pytest.fixture(scope="module")
def rig() -> Iterator[tuple[ControlPlane, tuple[str, ...]]]:
    with ControlPlane() as cluster:
        nodes = tuple(cluster.kwok(2, gpus=8))
        cluster.kubectl("apply", "--server-side", "-f", str(CRD))
        cluster.kubectl("wait", "--for=condition=Established", "crd/trainingjobs.rerail.dev")
        cluster.kubectl("create", "namespace", NAMESPACE)
        cluster.wait(
            "the namespace is usable",
            lambda: "default" in cluster.kubectl("get", "serviceaccounts", "-n", NAMESPACE, "-o", "name"),
        )
        yield cluster, nodes


@pytest.fixture
async def stage(rig: tuple[ControlPlane, tuple[str, ...]], tmp_path: Path) -> AsyncIterator[Stage]:
    cluster, nodes = rig
    async with Wire(int(cluster.url.rpartition(":")[2])).open() as wire:
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{wire.port}"
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        async with KubeCluster.from_environment(str(path)) as adapter:
            yield RealStage(adapter, cluster, nodes, wire)


class TestControlPlane(ClusterContract, FleetContract):
    """Everything the port promises."""

"""The contract on the in-memory cluster."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.cluster import Kind, Object
from rerail_operator.shell.memory import MemoryCluster
from rerail_operator.shell.memory_faults import Fault, FaultKind
from tests.contract.fleet_suite import FleetContract
from tests.contract.stage import Stage, pod, unique
from tests.contract.suite import ClusterContract


class MemoryStage:
    namespace = "contract"
    nodes = ("node-0", "node-1")

    def __init__(self) -> None:
        self.cluster = MemoryCluster(SystemClock())

    async def let_go(self, pod: Object) -> None:
        self.cluster.confirm_deleted(pod["metadata"]["uid"])

    async def lose_next_reply(self) -> None:
        self.cluster.faults.add(Fault(FaultKind.LOST_REPLY))

    async def forget_history(self) -> str:
        old = (await self.cluster.list(Kind.POD)).resource_version
        await self.cluster.create(Kind.POD, self.namespace, pod(unique("p")))
        self.cluster.compact()
        return old


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = MemoryStage()
    for name in stage.nodes:
        status = {
            "allocatable": {"cpu": "128", "memory": "1Ti", "pods": "110", "nvidia.com/gpu": "8"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        await stage.cluster.create(Kind.NODE, "", {"metadata": {"name": name}, "status": status})
    yield stage
    await asyncio.sleep(0)


class TestMemory(ClusterContract, FleetContract):
    """Everything the port promises."""

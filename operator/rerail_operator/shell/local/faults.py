"""Does to a run what `--inject` says: signals to real processes, deletions and lost nodes in the cluster."""

import os
import signal
from dataclasses import dataclass

from rerail_operator.shell.cluster import Kind, NotFound, Object
from rerail_operator.shell.local import processes
from rerail_operator.shell.local.inject import Fault, FaultKind, Gang
from rerail_operator.shell.local.kubelet import ProcessKubelet
from rerail_operator.shell.memory import MemoryCluster


@dataclass(frozen=True, slots=True)
class Saboteur:
    """Carries out one fault at a time."""

    cluster: MemoryCluster
    kubelet: ProcessKubelet
    gang: Gang

    async def do(self, fault: Fault) -> str:
        """Carry it out; what was done, in words, or "" where its target does not run just now."""
        match fault.kind:
            case FaultKind.KILL:
                return self._signal(fault.target, signal.SIGKILL)
            case FaultKind.HANG:
                return self._signal(fault.target, signal.SIGSTOP)
            case FaultKind.STOP:
                return await self._stop(fault.target)
            case FaultKind.LOSE:
                return await self._lose(fault.target)

    def _signal(self, rank: int, number: signal.Signals) -> str:
        pod = self.kubelet.pod_of(rank // self.gang.nproc)
        pid = processes.rank_process(self.kubelet.processes_of(pod), rank) if pod else None
        if pid is None:
            return ""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return ""
        return f"{number.name} sent to rank {rank} (pid {pid})"

    async def _stop(self, node_rank: int) -> str:
        """A deletion, as `kubectl delete pod` asks for it: SIGTERM, then the pod's grace."""
        uid = self.kubelet.pod_of(node_rank)
        pod = await self._pod(uid) if uid else None
        if uid is None or pod is None:
            return ""
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        await self.cluster.delete(Kind.POD, namespace, name, uid=uid)
        return f"pod {name} of node rank {node_rank} deleted: SIGTERM, then its grace"

    async def _lose(self, node_rank: int) -> str:
        node = self.kubelet.node_of(node_rank)
        if node is None:
            return ""
        await self.kubelet.lose(node)
        return f"node {node} of node rank {node_rank} has vanished with all its processes"

    async def _pod(self, uid: str) -> Object | None:
        try:
            listing = await self.cluster.list(Kind.POD)
        except NotFound:
            return None
        return next((pod for pod in listing.items if pod["metadata"]["uid"] == uid), None)

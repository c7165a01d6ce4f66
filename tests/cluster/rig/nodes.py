"""Real nodes on one machine: for each a kubelet, a containerd, a bridge and a control group of its own.

They share the machine's kernel and the rig's network namespace. What a node cannot have to itself are the
ports of pods with hostNetwork, and the machine's CPU and memory, of which each node reports the whole.
"""

import os
import signal
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from . import archive, node_files, seeds, services
from .binaries import ensure
from .cgroups import NodeGroup
from .errors import RigError
from .ground import SHARED, IsolatedGround
from .node_files import PAUSE_IMAGE, NodePlan
from .process import Process, until
from .runtime import Image, Runtime
from .storage import StoredImage
from .versions import NODE

if TYPE_CHECKING:
    from .controlplane import ControlPlane

GPU = "nvidia.com/gpu"
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Container:
    """A running container and its processes, in the host's process numbers."""

    node: str
    namespace: str
    pod: str
    name: str
    pids: tuple[int, ...]


@dataclass
class Node:
    """One node and its two processes (which are replaced when it restarts)."""

    plan: NodePlan
    group: NodeGroup
    gpus: int
    runtime: Runtime
    processes: dict[str, Process]
    since: datetime = _NEVER


class RealNodes:
    """The nodes of one cluster."""

    shared = SHARED
    """This folder is one and the same inside all nodes (for hostPath volumes), empty at the start."""

    def __init__(self, cluster: "ControlPlane", ground: IsolatedGround) -> None:
        self._cluster, self._ground = cluster, ground
        self._nodes: dict[str, Node] = {}
        self._seed: IO[str] | None = None

    @property
    def names(self) -> list[str]:
        """The nodes' names in order."""
        return list(self._nodes)

    @property
    def shared_on_host(self) -> Path:
        """Where the host sees `shared`."""
        return self._cluster.disk / "shared"

    def start(self, count: int, gpus: int, images: Iterable[StoredImage] = ()) -> None:
        """Start `count` nodes that have these images, then Services and names; afterwards every node is Ready."""
        self._binaries = ensure(NODE)
        pause = self._cluster.disk / "pause.tar"
        archive.write(pause, PAUSE_IMAGE, {"/pause": self._binaries["pause"]}, ["/pause"])
        stored = list(images)
        for number in range(1, count + 1):
            self._prepare(f"node-{number}", number, gpus)
        if stored:
            plans = [node.plan for node in self._nodes.values()]
            self._seed = seeds.provide(self._ground, self._binaries, stored, plans)
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(self._start_runtime, self._nodes.values()))
        self.import_image(pause)
        for node in self._nodes.values():
            self._start_kubelet(node)
        for node in self._nodes.values():
            self._await_ready(node)
        services.start_proxy(self._cluster, self._ground, self._binaries["kube-proxy"])
        services.start_dns(self._cluster, self._ground, self._binaries["coredns"])

    def release(self) -> None:
        """After the last process has ended: let go of the images shared with other rigs."""
        if self._seed is not None:
            self._seed.close()

    # ---- images -----------------------------------------------------------------------------------

    def import_image(self, *images: Image, nodes: Iterable[str] = ()) -> None:
        """Give images to running nodes (all of them by default). Pods need imagePullPolicy IfNotPresent or Never."""
        for name in nodes or self._nodes:
            for image in images:
                self._find(name).runtime.load(image)

    def stacks(self, node: str) -> set[str]:
        """The stacks of layers that a node has unpacked (storage.Layer.chain)."""
        return self._find(node).runtime.stacks()

    def ctr(self, node: str, *args: str) -> str:
        """Run ctr against a node's containerd, in the kubelet's namespace of it."""
        return self._find(node).runtime.ctr(*args)

    # ---- looking ------------------------------------------------------------------------------------

    def containers(self, node: str) -> list[Container]:
        """The running containers of a node with their processes."""
        found = self._find(node)
        pods = self._cluster.api.get(f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")["items"]
        return [
            Container(node, pod["metadata"]["namespace"], pod["metadata"]["name"], status["name"], pids)
            for pod in pods
            for status in pod["status"].get("containerStatuses", ())
            if (identity := status.get("containerID", "").rpartition("/")[2])
            and (pids := tuple(found.group.pids(identity)))
        ]

    def pids(self, namespace: str, pod: str, container: str = "", matching: str = "") -> list[int]:
        """Host process numbers in a pod whose command line contains `matching`, oldest first.

        They can be signalled with os.kill."""
        node = self._cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["spec"]["nodeName"]
        return [
            pid
            for one in self.containers(node)
            if (one.namespace, one.pod) == (namespace, pod) and container in ("", one.name)
            for pid in one.pids
            if matching in command_line(pid)
        ]

    # ---- faults -------------------------------------------------------------------------------------

    def kill_node(self, name: str, network: bool = True) -> None:
        """The node is gone at once: no network first (so that no dying process says goodbye), then kubelet,
        containerd, shims and all containers by SIGKILL. network=False leaves its addresses reachable."""
        node = self._find(name)
        if network:
            self._ground.run(["ip", "link", "set", node.plan.bridge, "down"])
        node.processes["kubelet"].signal(signal.SIGKILL)
        node.processes["containerd"].signal(signal.SIGKILL)

        def gone() -> bool:
            pids = [*self._shims(node), *node.group.pids()]
            for pid in pids:
                _kill(pid)
            return not pids

        until(gone, 20, f"every process of {name} is dead")
        for process in node.processes.values():
            process.kill()

    def restart_node(self, name: str) -> None:
        """Bring a killed node back, with its old containers dead, and wait until it is Ready."""
        node = self._find(name)
        self._ground.run(["ip", "link", "set", node.plan.bridge, "up"])
        self._start_runtime(node)
        self._start_kubelet(node)
        self._await_ready(node)

    def cut_network(self, name: str) -> None:
        """No pod of the node reaches anybody or is reached; its kubelet is not touched."""
        self._ground.run(["ip", "link", "set", self._find(name).plan.bridge, "down"])

    def mend_network(self, name: str) -> None:
        """Undo `cut_network`."""
        self._ground.run(["ip", "link", "set", self._find(name).plan.bridge, "up"])

    def stop_kubelet(self, name: str) -> None:
        """Only the kubelet dies: its pods run on and the node becomes Unknown."""
        self._find(name).processes["kubelet"].kill()

    def start_kubelet(self, name: str) -> None:
        """Start it again and wait until the node is Ready."""
        self._start_kubelet(self._find(name))
        self._await_ready(self._find(name))

    # ---- steps --------------------------------------------------------------------------------------

    def _find(self, name: str) -> Node:
        if name not in self._nodes:
            raise RigError(f"no node {name}; there are {', '.join(self._nodes)}")
        return self._nodes[name]

    def _prepare(self, name: str, number: int, gpus: int) -> None:
        cluster = self._cluster
        plan = NodePlan(name, number, cluster.disk / name, self._ground.pod_range)
        group = NodeGroup(f"{cluster.folder.name}-{name}")
        for folder in group.folders:
            cluster.lifeline.watch_cgroup(folder)
        group.create()
        node_files.write(plan, self._binaries, cluster.authority.certificate, group.name)
        identity = cluster.authority.issue(name, f"/O=system:nodes/CN=system:node:{name}")
        cluster.authority.kubeconfig(plan.folder / "kubeconfig", cluster.url, identity)
        script = [
            "set -e",
            f"mkdir -p {plan.run} {plan.kubelet_root}",
            f"mount --bind {plan.folder / 'kubelet'} {plan.kubelet_root}",
            f"ip link add {plan.bridge} type bridge",
            f"ip address add {plan.address}/24 dev {plan.bridge}",
            f"ip link set {plan.bridge} up",
        ]
        self._ground.run(["sh", "-c", "\n".join(script)])
        runtime = Runtime(self._ground, plan, self._binaries["ctr"])
        self._nodes[name] = Node(plan, group, gpus, runtime, {})

    def _start_runtime(self, node: Node) -> None:
        node.processes["containerd"] = node.runtime.start()

    def _start_kubelet(self, node: Node) -> None:
        plan = node.plan
        argv = [
            str(self._binaries["kubelet"]),
            f"--config={plan.folder / 'kubelet.json'}",
            f"--kubeconfig={plan.folder / 'kubeconfig'}",
            f"--root-dir={plan.kubelet_root}",
            f"--hostname-override={plan.name}",
            f"--node-ip={plan.address}",
        ]
        node.since = datetime.now(UTC).replace(microsecond=0)
        node.processes["kubelet"] = self._ground.start(f"kubelet-{plan.name}", argv)

    def _await_ready(self, node: Node) -> None:
        """Ready means: says so, has forgiven taints, and offers its GPUs (which a restarted kubelet may forget)."""
        kubelet, path = node.processes["kubelet"], f"/api/v1/nodes/{node.plan.name}"

        def ready() -> bool:
            seen = self._cluster.api.get("/api/v1/nodes")["items"]
            mine = [one for one in seen if one["metadata"]["name"] == node.plan.name]
            return bool(mine) and self._offers(node, path, mine[0])

        until(ready, 90, f"node {node.plan.name} is Ready", lambda: not kubelet.alive)

    def _offers(self, node: Node, path: str, seen: dict[str, Any]) -> bool:
        fresh = [
            one
            for one in seen["status"].get("conditions", ())
            if (one["type"], one["status"]) == ("Ready", "True")
            # Said since this kubelet started: of a node that came back, its last word before may still stand.
            and datetime.fromisoformat(one["lastHeartbeatTime"]) >= node.since
        ]
        if not fresh or seen["spec"].get("taints"):
            return False
        if node.gpus and seen["status"]["allocatable"].get(GPU) != str(node.gpus):
            amount = {GPU: str(node.gpus)}
            self._cluster.api.patch(f"{path}/status", {"status": {"capacity": amount, "allocatable": amount}})
            return False
        return True

    def _shims(self, node: Node) -> list[int]:
        """The shims hold a node's containers; each names its containerd's socket."""
        return [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if f"-address {node.plan.socket} " in (line := command_line(int(folder.name))) + " "
            and "containerd-shim" in line
            and self._ground.holds(int(folder.name))
        ]


def command_line(pid: int) -> str:
    """A process's arguments with blanks between, "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return

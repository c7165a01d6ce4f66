"""The configuration files of one real node: containerd, CNI, kubelet."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .components import DNS_SERVICE
from .versions import CNI_PLUGINS

PAUSE_IMAGE = "rerail.dev/pause:1"


@dataclass(frozen=True)
class NodePlan:
    """Where one node keeps what. `run` exists inside the rig's namespaces only."""

    name: str
    number: int
    folder: Path
    pod_range: str  # the rig's range, a /16

    @property
    def run(self) -> Path:
        """Sockets and state of running containers."""
        return Path("/run") / self.name

    @property
    def kubelet_root(self) -> Path:
        """The kubelet's folder as it sees it: short, for it makes sockets there, whose paths end at 107 characters."""
        return Path("/var/lib") / self.name

    @property
    def socket(self) -> Path:
        """containerd's socket."""
        return self.run / "containerd.sock"

    @property
    def store(self) -> Path:
        """containerd's root: images and unpacked layers."""
        return self.folder / "containerd"

    @property
    def bridge(self) -> str:
        """The bridge that the node's pods hang on."""
        return f"pods{self.number}"

    @property
    def network(self) -> str:
        """The first three numbers of the node's pod addresses."""
        first, second, *_ = self.pod_range.split(".")
        return f"{first}.{second}.{self.number}"

    @property
    def address(self) -> str:
        """The node's own address: its bridge's."""
        return f"{self.network}.1"

    @property
    def kubelet_port(self) -> int:
        """The kubelets of one rig share a network, so each has its own port."""
        return 10250 + 100 * self.number


def write(plan: NodePlan, binaries: dict[str, Path], client_ca: Path, cgroup: str) -> None:
    """Write all files of a node below `plan.folder`."""
    write_runtime(plan, binaries)
    for part in ("kubelet", "pod-logs", "plugins"):
        (plan.folder / part).mkdir(exist_ok=True)
    (plan.folder / "resolv.conf").write_text("# nothing outside this machine is reachable\n")
    (plan.folder / "cni" / "10-pods.conflist").write_text(json.dumps(_network(plan), indent=1))
    (plan.folder / "kubelet.json").write_text(json.dumps(_kubelet(plan, client_ca, cgroup), indent=1))


def write_runtime(plan: NodePlan, binaries: dict[str, Path]) -> None:
    """Write what containerd alone needs."""
    for part in ("cni", "bin"):
        (plan.folder / part).mkdir(parents=True, exist_ok=True)
    for name in (*CNI_PLUGINS, "containerd", "containerd-shim-runc-v2"):
        link = plan.folder / "bin" / name  # containerd wants its plugins in one folder
        link.unlink(missing_ok=True)
        link.symlink_to(binaries[name])
    (plan.folder / "containerd.toml").write_text(_containerd(plan))


def _containerd(plan: NodePlan) -> str:
    """restrict_oom_score_adj: without CAP_SYS_RESOURCE runc dies when it tries to lower the score."""
    return f"""version = 3
root = "{plan.store}"
state = "{plan.run}/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs"]
[grpc]
  address = "{plan.socket}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{plan.folder}/bin"]
    conf_dir = "{plan.folder}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "runc"
      Root = "{plan.run}/runc"
      SystemdCgroup = false
"""


def _network(plan: NodePlan) -> dict[str, Any]:
    ipam = {
        "type": "host-local",
        "dataDir": f"/var/lib/cni/{plan.name}",
        "ranges": [
            [{"subnet": f"{plan.network}.0/24", "rangeStart": f"{plan.network}.10", "gateway": plan.address}]
        ],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": plan.bridge, "isGateway": True, "hairpinMode": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": plan.bridge, "plugins": [bridge, portmap]}


def _kubelet(plan: NodePlan, client_ca: Path, cgroup: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(client_ca)},
        },
        "authorization": {"mode": "Webhook"},
        "address": "0.0.0.0",
        "port": plan.kubelet_port,
        "healthzPort": plan.kubelet_port + 1,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": str(plan.folder / "resolv.conf"),
        "containerRuntimeEndpoint": f"unix://{plan.socket}",
        "podLogsDir": str(plan.folder / "pod-logs"),
        "volumePluginDir": str(plan.folder / "plugins"),
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        # The disk and memory are those of the machine; a full laptop is no reason to evict a test's pods.
        "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "memory.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": False,
        "registerNode": True,
    }

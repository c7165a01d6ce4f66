"""What is built from which Go module, at which version: the one table of the rig's binaries.

The versions are those of `tests/cluster/tools/*/go.mod`; a test compares the two.
"""

from dataclasses import dataclass

KUBERNETES = "v1.37.2"
ETCD = "v3.6.16"
KWOK = "v0.8.0"
CONTAINERD = "v2.4.2"
CNI = "v1.9.1"
HELM = "v4.3.1"
COREDNS = "v1.15.0"
KIND = "v0.33.0"
VERSITYGW = "v1.8.0"


@dataclass(frozen=True)
class Tool:
    """One binary: its name, the tool module that pins it, the package to build, the linker's stamps."""

    name: str
    module: str
    version: str
    package: str
    stamps: tuple[str, ...] = ()


def _kubernetes_stamps() -> tuple[str, ...]:
    """Unstamped, Kubernetes calls itself v0.0.0-master, and clients refuse it or guess wrong."""
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {
        "gitVersion": KUBERNETES,
        "gitMajor": major,
        "gitMinor": minor,
        "gitCommit": "0000000000000000000000000000000000000000",
        "gitTreeState": "archive",
        "buildDate": "2026-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return tuple(f"{package}.{key}={value}" for package in packages for key, value in values.items())


def _kube(name: str) -> Tool:
    return Tool(name, "kube", KUBERNETES, f"k8s.io/kubernetes/cmd/{name}", _kubernetes_stamps())


def _containerd(name: str) -> Tool:
    base = "github.com/containerd/containerd/v2"
    stamp = f"{base}/version.Version={CONTAINERD.removeprefix('v')}"
    return Tool(name, "containerd", CONTAINERD, f"{base}/cmd/{name}", (stamp,))


def _cni(kind: str, name: str) -> Tool:
    return Tool(name, "cni", CNI, f"github.com/containernetworking/plugins/plugins/{kind}/{name}")


CONTROL_PLANE = ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", "kubectl", "kwok")
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
NODE = (
    "kubelet",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    *CNI_PLUGINS,
    "pause",
    "kube-proxy",
    "coredns",
)

_TOOLS = (
    *(_kube(name) for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")),
    Tool("etcd", "etcd", ETCD, "."),
    Tool(
        "kwok",
        "kwok",
        KWOK,
        "sigs.k8s.io/kwok/cmd/kwok",
        (f"sigs.k8s.io/kwok/pkg/consts.Version={KWOK.removeprefix('v')}",),
    ),
    _kube("kubelet"),
    _kube("kube-proxy"),
    *(_containerd(name) for name in ("containerd", "containerd-shim-runc-v2", "ctr")),
    _cni("main", "bridge"),
    _cni("main", "loopback"),
    _cni("ipam", "host-local"),
    _cni("meta", "portmap"),
    Tool(
        "helm",
        "helm",
        HELM,
        "helm.sh/helm/v4/cmd/helm",
        (f"helm.sh/helm/v4/internal/version.version={HELM}",),
    ),
    Tool("coredns", "coredns", COREDNS, "github.com/coredns/coredns"),
    Tool("pause", "pause", "v1", "."),
    Tool("probe", "probe", "v1", "."),
    Tool("kindcheck", "kind", KIND, "."),
    # An S3 server over a folder, for the trainer's checkpoints in object storage.
    Tool("versitygw", "versitygw", VERSITYGW, "github.com/versity/versitygw/cmd/versitygw"),
)

TOOLS: dict[str, Tool] = {tool.name: tool for tool in _TOOLS}

"""The command lines of the control plane's components."""

from dataclasses import dataclass, field
from pathlib import Path

from .pki import Authority, Identity

SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
ISSUER = "https://kubernetes.default.svc.cluster.local"

# What a training job, the chart and the tests of node failure need; each one more costs memory and watches.
CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "disruption-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "resourcequota-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "taint-eviction-controller",
)


@dataclass(frozen=True)
class Options:
    """How a control plane is set up. The defaults are those of a usual cluster.

    isolated: in namespaces of its own, which real nodes need (root). in-flight limits: the API server's
    own defaults where None. priority_and_fairness=False and raised limits are for bench runs only.
    audit: every request is written to `ControlPlane.audit_log`, one JSON event a line, metadata level.
    node_grace_seconds: how long a node may be silent before it is Unknown.
    """

    isolated: bool = False
    priority_and_fairness: bool = True
    max_requests_inflight: int | None = None
    max_mutating_requests_inflight: int | None = None
    delete_collection_workers: int = 1
    node_grace_seconds: int = 50
    audit: bool = False
    apiserver_flags: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Wiring:
    """The addresses, ports and files that the components of one control plane share."""

    folder: Path
    authority: Authority
    address: str
    listen: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int

    @property
    def url(self) -> str:
        """Where the API server answers, from the host as well."""
        return f"https://{self.address}:{self.api_port}"

    @property
    def audit_log(self) -> Path:
        """Written when Options.audit is set."""
        return self.folder / "logs" / "audit.jsonl"


def etcd(binary: Path, wiring: Wiring) -> list[str]:
    """etcd without fsync: the data does not outlive the rig anyway."""
    client = f"http://127.0.0.1:{wiring.etcd_port}"
    peer = f"http://127.0.0.1:{wiring.etcd_peer_port}"
    return [
        str(binary),
        f"--data-dir={wiring.folder / 'etcd'}",
        *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
        *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--quota-backend-bytes=8589934592",
        *("--auto-compaction-mode=periodic", "--auto-compaction-retention=10m"),
        "--log-level=warn",
    ]


def apiserver(binary: Path, wiring: Wiring, options: Options) -> list[str]:
    """The API server with RBAC, service-account tokens and the usual admission plugins."""
    pki = wiring.authority.folder
    flags = [
        str(binary),
        f"--etcd-servers=http://127.0.0.1:{wiring.etcd_port}",
        *(f"--bind-address={wiring.listen}", f"--secure-port={wiring.api_port}"),
        *(f"--tls-cert-file={pki / 'apiserver.crt'}", f"--tls-private-key-file={pki / 'apiserver.key'}"),
        f"--client-ca-file={wiring.authority.certificate}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        f"--enable-priority-and-fairness={str(options.priority_and_fairness).lower()}",
        f"--delete-collection-workers={options.delete_collection_workers}",
        "--profiling=false",
    ]
    if options.isolated:
        flags += [f"--advertise-address={wiring.address}", "--endpoint-reconciler-type=lease"]
    else:
        flags.append("--endpoint-reconciler-type=none")  # loopback is no address for a Service
    if options.max_requests_inflight is not None:
        flags.append(f"--max-requests-inflight={options.max_requests_inflight}")
    if options.max_mutating_requests_inflight is not None:
        flags.append(f"--max-mutating-requests-inflight={options.max_mutating_requests_inflight}")
    if options.audit:
        policy = wiring.folder / "audit-policy.json"
        flags += [f"--audit-policy-file={policy}", f"--audit-log-path={wiring.audit_log}"]
    return [*flags, *options.apiserver_flags]


def controller_manager(binary: Path, wiring: Wiring, options: Options, port: int) -> list[str]:
    """The controllers we need, each under its own service account as in a real cluster."""
    return [
        str(binary),
        *_client(wiring, "kube-controller-manager", port),
        f"--controllers={','.join(CONTROLLERS)}",
        "--use-service-account-credentials=true",
        f"--root-ca-file={wiring.authority.certificate}",
        f"--service-account-private-key-file={wiring.authority.folder / 'sa.key'}",
        f"--node-monitor-grace-period={options.node_grace_seconds}s",
        "--node-monitor-period=2s",
        *("--kube-api-qps=5000", "--kube-api-burst=5000"),
    ]


def scheduler(binary: Path, wiring: Wiring, port: int) -> list[str]:
    """kube-scheduler with its client unthrottled, so that it is not what a bench measures."""
    config = wiring.folder / "scheduler.json"
    return [str(binary), f"--config={config}", f"--secure-port={port}", "--bind-address=127.0.0.1"]


def scheduler_config(kubeconfig: Path) -> dict[str, object]:
    """The scheduler's configuration file: qps is not a flag any more."""
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(kubeconfig), "qps": 5000, "burst": 5000},
    }


AUDIT_POLICY: dict[str, object] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


def identities(authority: Authority, address: str) -> dict[str, Identity]:
    """Every component's certificate, under the user name that RBAC's built-in roles expect."""
    local = ("DNS:localhost", "IP:127.0.0.1", f"IP:{API_SERVICE}")
    names = tuple(
        f"DNS:kubernetes{suffix}" for suffix in ("", ".default", ".default.svc", ".default.svc.cluster.local")
    )
    server = (*local, *names, *(() if address == "127.0.0.1" else (f"IP:{address}",)))
    return {
        "admin": authority.issue("admin", "/O=system:masters/CN=rig-admin"),
        "apiserver": authority.issue("apiserver", "/CN=kube-apiserver", server),
        "kubelet-client": authority.issue(
            "kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client"
        ),
        "kube-controller-manager": authority.issue(
            "kube-controller-manager", "/CN=system:kube-controller-manager"
        ),
        "kube-scheduler": authority.issue("kube-scheduler", "/CN=system:kube-scheduler"),
    }


def _client(wiring: Wiring, name: str, port: int) -> list[str]:
    return [
        f"--kubeconfig={wiring.folder / f'{name}.kubeconfig'}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
    ]

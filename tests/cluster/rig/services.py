"""kube-proxy and CoreDNS: Services and names, so that a chart installs with its defaults.

All nodes of a rig share one network, so one kube-proxy serves them all, and CoreDNS runs beside them
as a process behind the usual Service address.
"""

import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from .components import API_SERVICE, DNS_SERVICE
from .ground import IsolatedGround
from .process import until

if TYPE_CHECKING:
    from .controlplane import ControlPlane

_READY_PORT = 8181


def start_proxy(cluster: "ControlPlane", ground: IsolatedGround, binary: Path) -> None:
    """Start kube-proxy and wait until the API server's Service address works."""
    identity = cluster.authority.issue("kube-proxy", "/CN=system:kube-proxy")
    kubeconfig = cluster.authority.kubeconfig(cluster.folder / "kube-proxy.kubeconfig", cluster.url, identity)
    # The table of connections is sized for the whole machine: zero leaves it as it is.
    leave = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": ground.pod_range,
        "hostnameOverride": "node-1",  # it waits 30 s for its node's address; any node will do
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "conntrack": leave,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "iptables": {"syncPeriod": "30s", "minSyncPeriod": "0s"},
    }
    path = cluster.folder / "kube-proxy.json"
    path.write_text(json.dumps(config))
    process = ground.start("kube-proxy", [str(binary), f"--config={path}"])
    until(
        lambda: API_SERVICE in ground.run(["iptables-save", "-t", "nat"]),
        *(60, "kube-proxy writes the API server's Service", lambda: not process.alive),
    )


def start_dns(cluster: "ControlPlane", ground: IsolatedGround, binary: Path) -> None:
    """Start CoreDNS behind the Service kube-system/kube-dns."""
    user = "rig:coredns"
    identity = cluster.authority.issue("coredns", f"/CN={user}")
    kubeconfig = cluster.authority.kubeconfig(cluster.folder / "coredns.kubeconfig", cluster.url, identity)
    corefile = cluster.folder / "Corefile"
    address = ground.address
    # Every other name does not exist, at once: a pod never waits for an answer from outside.
    corefile.write_text(
        f"""cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {{
  bind {address}
  errors
  ready {address}:{_READY_PORT}
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig {kubeconfig}
    pods insecure
    ttl 5
  }}
}}
.:53 {{
  bind {address}
  template ANY ANY . {{
    rcode NXDOMAIN
  }}
}}
"""
    )
    cluster.apply(*_dns_objects(user, address))
    process = ground.start("coredns", [str(binary), f"-conf={corefile}"])

    def serves() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}:{_READY_PORT}/ready", timeout=2) as answer:
                ready = answer.status == 200
        except OSError:
            return False
        return ready and DNS_SERVICE in ground.run(["iptables-save", "-t", "nat"])

    until(serves, 60, "CoreDNS answers behind its Service", lambda: not process.alive)


def _dns_objects(user: str, address: str) -> list[dict[str, object]]:
    name = {"name": "kube-dns", "namespace": "kube-system"}
    reads = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    rbac = "rbac.authorization.k8s.io"
    ports = [("dns", "UDP"), ("dns-tcp", "TCP")]
    return [
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": user}, "rules": reads},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": user},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": user}],
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**name, "labels": {"k8s-app": "kube-dns"}},
            "spec": {
                "clusterIP": DNS_SERVICE,
                "ports": [{"name": label, "port": 53, "protocol": protocol} for label, protocol in ports],
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**name, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "ports": [{"name": label, "port": 53, "protocol": protocol} for label, protocol in ports],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        },
    ]

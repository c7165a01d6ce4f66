"""The rig itself: what it promises to every test that stands on it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rig import (
    ApiError,
    CommandFailed,
    ControlPlane,
    Options,
    RigError,
    archive,
    binaries,
    paths,
    until,
    versions,
)
from tests.cluster.rig.nodes import RealNodes, command_line

PROBE = "rerail.dev/probe:1"


def pod(name: str, node: str = "", **spec: Any) -> dict[str, Any]:
    container = {
        "name": "probe",
        "image": PROBE,
        "imagePullPolicy": "Never",
        "args": ["serve", ":8080"],
        "resources": {"limits": {"nvidia.com/gpu": "8"}},
        **spec.pop("container", {}),
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    body = {"containers": [container], "terminationGracePeriodSeconds": 0, "restartPolicy": "Never", **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": body}


def phase(cluster: ControlPlane, name: str) -> str:
    return str(cluster.get("pod", name)["status"].get("phase"))


def await_phase(cluster: ControlPlane, name: str, wanted: str, seconds: float = 60) -> None:
    cluster.wait(f"pod {name} is {wanted}", lambda: phase(cluster, name) == wanted, seconds)


# ---- without a cluster ---------------------------------------------------------------------------


def test_the_table_of_versions_is_what_the_modules_pin() -> None:
    pins = {
        "kube": ("k8s.io/kubernetes", versions.KUBERNETES),
        "etcd": ("go.etcd.io/etcd/server/v3", versions.ETCD),
        "kwok": ("sigs.k8s.io/kwok", versions.KWOK),
        "containerd": ("github.com/containerd/containerd/v2", versions.CONTAINERD),
        "cni": ("github.com/containernetworking/plugins", versions.CNI),
        "helm": ("helm.sh/helm/v4", versions.HELM),
        "coredns": ("github.com/coredns/coredns", versions.COREDNS),
        "kind": ("sigs.k8s.io/kind", versions.KIND),
    }
    for module, (required, version) in pins.items():
        text = (paths.TOOLS / module / "go.mod").read_text()
        assert re.search(
            rf"^(?:require|)\s*{re.escape(required)} {re.escape(version)}( // indirect)?$", text, re.M
        ), module


def test_a_changed_pin_is_another_place_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "OWN", tmp_path)
    (tmp_path / "pause").mkdir()
    source = tmp_path / "pause" / "main.go"
    source.write_text("package main\n")
    before = binaries.location("pause")
    source.write_text("package main // changed\n")
    assert binaries.location("pause") != before


def test_without_go_it_says_what_is_missing(tmp_path: Path) -> None:
    environment = {**os.environ, "RERAIL_CACHE": str(tmp_path), "PATH": "/nowhere"}
    argv = [sys.executable, "-m", "tests.cluster.rig", "build", "pause"]
    done = subprocess.run(argv, cwd=paths.CHECKOUT, env=environment, capture_output=True, text=True)
    assert done.returncode == 3
    assert "Go 1.26 or newer is needed" in done.stderr


@pytest.mark.controlplane
def test_a_build_lands_whole_in_the_cache_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERAIL_CACHE", str(tmp_path))
    path = binaries.ensure(["pause"])["pause"]
    stamp = path.stat().st_mtime_ns
    assert path.stat().st_mode & 0o111
    assert binaries.ensure(["pause"])["pause"].stat().st_mtime_ns == stamp
    assert not list((tmp_path / "bin").glob(".building*"))


@pytest.mark.controlplane
def test_a_misspelt_field_of_a_kind_file_is_found(tmp_path: Path) -> None:
    check = binaries.ensure(["kindcheck"])["kindcheck"]
    head = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: worker\n"
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(head)
    bad.write_text(head + "  extraMount: []\n")
    assert "1 nodes" in subprocess.run([check, good], capture_output=True, text=True, check=True).stdout
    refused = subprocess.run([check, bad], capture_output=True, text=True)
    assert refused.returncode == 1 and "extraMount" in refused.stderr


# ---- control plane and kwok ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(Options(audit=True)) as cluster:
        cluster.kwok(2, gpus=8, labels=lambda number: {"rack": f"r{number}"})
        yield cluster


@pytest.mark.controlplane
class TestControlPlane:
    def test_a_pod_runs_on_a_pretended_node_and_fails_when_told(self, plane: ControlPlane) -> None:
        plane.apply(pod("told"))
        await_phase(plane, "told", "Running")
        plane.kubectl("annotate", "pod", "told", "rerail.dev/kwok-fail=137")
        await_phase(plane, "told", "Failed")
        ended = plane.get("pod", "told")["status"]["containerStatuses"][0]["state"]["terminated"]
        assert ended["exitCode"] == 137
        plane.kubectl("delete", "pod", "told")

    def test_gpus_are_counted(self, plane: ControlPlane) -> None:
        plane.apply(pod("one"), pod("two"), pod("three"))
        names = ("one", "two", "three")

        def settled() -> bool:
            phases = sorted(phase(plane, name) for name in names)
            return phases == ["Pending", "Running", "Running"]

        plane.wait("two of three pods fit on two nodes", settled)
        plane.kubectl("delete", "pod", *names)

    def test_a_pod_can_be_held_and_completed(self, plane: ControlPlane) -> None:
        held = pod("held")
        held["metadata"]["annotations"] = {"rerail.dev/kwok-hold": ""}
        plane.apply(held)
        plane.wait("it is bound", lambda: plane.get("pod", "held")["spec"].get("nodeName"))
        assert phase(plane, "held") == "Pending"
        plane.kubectl("annotate", "pod", "held", "rerail.dev/kwok-hold-", "rerail.dev/kwok-complete=")
        await_phase(plane, "held", "Succeeded")
        plane.kubectl("delete", "pod", "held")

    def test_a_pod_can_hang_in_terminating(self, plane: ControlPlane) -> None:
        stuck = pod("stuck", terminationGracePeriodSeconds=30)
        stuck["metadata"]["annotations"] = {"rerail.dev/kwok-hang-terminating": ""}
        plane.apply(stuck)
        await_phase(plane, "stuck", "Running")
        plane.kubectl("delete", "pod", "stuck", "--wait=false")
        plane.kubectl("annotate", "pod", "stuck", "checked=yes")  # an event on which kwok would act
        assert "deletionTimestamp" in plane.get("pod", "stuck")["metadata"]
        plane.kubectl("annotate", "pod", "stuck", "rerail.dev/kwok-hang-terminating-")
        plane.kubectl("wait", "--for=delete", "pod/stuck", "--timeout=30s")

    def test_a_pretended_node_becomes_not_ready_and_is_tainted(self, plane: ControlPlane) -> None:
        def tainted() -> bool:
            return "not-ready" in json.dumps(plane.get("node", "kwok-0001")["spec"].get("taints", []))

        plane.kubectl("annotate", "node", "kwok-0001", "rerail.dev/kwok-not-ready=")
        plane.wait("the taint comes", tainted)
        plane.kubectl("annotate", "node", "kwok-0001", "rerail.dev/kwok-not-ready-")
        plane.wait("the taint goes", lambda: not tainted())

    def test_rbac_decides_about_a_service_account(self, plane: ControlPlane) -> None:
        plane.kubectl("create", "serviceaccount", "reader")
        path = plane.service_account_kubeconfig("default", "reader")
        with pytest.raises(CommandFailed, match="system:serviceaccount:default:reader"):
            plane.kubectl(f"--kubeconfig={path}", "get", "pods")
        plane.kubectl(
            "create", "rolebinding", "reader", "--clusterrole=view", "--serviceaccount=default:reader"
        )

        def allowed() -> bool:
            try:
                return (
                    plane.kubectl(f"--kubeconfig={path}", "get", "pods", "-o", "name", "-l", "no=pod") == ""
                )
            except CommandFailed:
                return False

        plane.wait("the binding is known to the authorizer", allowed)

    def test_a_projected_token_for_the_coordinator_is_signed_by_the_published_key(
        self, plane: ControlPlane
    ) -> None:
        import jwt

        token = plane.kubectl("create", "token", "default", "--audience=rerail").strip()
        keys = jwt.PyJWKSet.from_dict(plane.api.get("/openid/v1/jwks"))
        key = keys[jwt.get_unverified_header(token)["kid"]]
        claims = jwt.decode(token, key.key, algorithms=["RS256"], audience="rerail")
        assert claims["sub"] == "system:serviceaccount:default:default"

    def test_the_api_server_can_be_paused_killed_and_started(self, plane: ControlPlane) -> None:
        plane.pause_apiserver()
        with pytest.raises(CommandFailed):
            plane.kubectl("get", "--raw", "/readyz", "--request-timeout=1s")
        plane.resume_apiserver()
        assert plane.kubectl("get", "--raw", "/readyz") == "ok"
        plane.kill_apiserver()
        with pytest.raises(CommandFailed, match="refused"):
            plane.kubectl("get", "--raw", "/readyz")
        plane.start_apiserver()
        assert len(plane.get("nodes")["items"]) == 2

    def test_every_request_is_in_the_audit_log(self, plane: ControlPlane) -> None:
        with pytest.raises(ApiError):
            plane.api.get("/api/v1/namespaces/asked-for-by-the-audit-test")
        plane.wait(
            "the event is written", lambda: "asked-for-by-the-audit-test" in plane.audit_log.read_text()
        )

    def test_real_nodes_are_refused_on_the_host(self, plane: ControlPlane) -> None:
        with pytest.raises(RigError, match="isolated"):
            plane.real_nodes(1)


@pytest.mark.controlplane
def test_nothing_is_left_when_the_owner_is_killed(tmp_path: Path) -> None:
    script = (
        "import json, sys, time\n"
        "from tests.cluster.rig import ControlPlane\n"
        "cluster = ControlPlane()\n"
        "cluster.start()\n"
        "print(json.dumps([str(cluster.folder), [p.pid for p in cluster.processes.values()]]), flush=True)\n"
        "sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=paths.CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        folder, pids = json.loads(owner.stdout.readline())
        assert len(pids) == 4 and all(command_line(pid) for pid in pids)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    until(lambda: not any(command_line(pid) for pid in pids), 30, "all components are gone")
    until(lambda: not Path(folder).exists(), 30, "the folder is gone")


# ---- real nodes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(Options(isolated=True, node_grace_seconds=20)) as cluster:
        nodes = cluster.real_nodes(2, gpus=8)
        image = tmp_path_factory.mktemp("probe") / "probe.tar"
        archive.write(image, PROBE, {"/probe": binaries.ensure(["probe"])["probe"]}, ["/probe"])
        nodes.import_image(image)
        yield cluster


def real_nodes(cluster: ControlPlane) -> RealNodes:
    assert cluster.nodes is not None
    return cluster.nodes


@pytest.fixture
def pair(real: ControlPlane) -> Iterator[list[str]]:
    """Two running pods, one on each node."""
    volumes = [{"name": "shared", "hostPath": {"path": RealNodes.shared, "type": "Directory"}}]
    mounts = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    names = [f"pair-{node}" for node in real_nodes(real).names]
    real.apply(*(pod(name, name.removeprefix("pair-"), container=mounts, volumes=volumes) for name in names))
    for name in names:
        await_phase(real, name, "Running")
    yield names
    real.kubectl("delete", "pod", *names, "--force", "--ignore-not-found")


@pytest.mark.realnodes
class TestRealNodes:
    def test_pods_on_two_nodes_reach_each_other(self, real: ControlPlane, pair: list[str]) -> None:
        first, second = pair
        address = real.get("pod", second)["status"]["podIP"]
        assert (
            real.kubectl("exec", first, "--", "/probe", "fetch", f"http://{address}:8080").strip()
            == f"hello from {second}"
        )

    def test_names_and_the_api_service_work_in_a_pod(self, real: ControlPlane, pair: list[str]) -> None:
        assert (
            real.kubectl("exec", pair[0], "--", "/probe", "resolve", "kubernetes.default").strip()
            == "10.96.0.1"
        )
        real.kubectl("exec", pair[0], "--", "/probe", "dial", "kubernetes.default:443")

    def test_a_pod_reaches_nothing_outside_this_machine(self, real: ControlPlane, pair: list[str]) -> None:
        for outside in ("192.0.2.1:53", "1.1.1.1:443"):
            with pytest.raises(CommandFailed):
                real.kubectl("exec", pair[0], "--", "/probe", "dial", outside)

    def test_logs_come_from_the_kubelet(self, real: ControlPlane, pair: list[str]) -> None:
        real.wait("the line is there", lambda: "serves on :8080" in real.kubectl("logs", pair[1]))

    def test_the_shared_folder_is_one_for_both_nodes_and_the_host(
        self, real: ControlPlane, pair: list[str]
    ) -> None:
        real.kubectl("exec", pair[0], "--", "/probe", "write", "/shared/note")
        assert (real_nodes(real).shared_on_host / "note").read_text() == "written by a pod\n"

    def test_a_process_in_a_pod_can_be_killed_from_the_host(
        self, real: ControlPlane, pair: list[str]
    ) -> None:
        (pid,) = real_nodes(real).pids("default", pair[0], matching="/probe serve")
        os.kill(pid, signal.SIGKILL)
        await_phase(real, pair[0], "Failed")
        state = real.get("pod", pair[0])["status"]["containerStatuses"][0]["state"]
        assert state["terminated"]["exitCode"] == 137

    def test_a_killed_node_is_silent_and_comes_back(self, real: ControlPlane, pair: list[str]) -> None:
        nodes = real_nodes(real)
        lost, other = pair[0], pair[1]
        address = real.get("pod", lost)["status"]["podIP"]
        (pid,) = nodes.pids("default", lost, matching="/probe serve")
        nodes.kill_node("node-1")
        assert not command_line(pid)
        with pytest.raises(CommandFailed) as silence:
            real.kubectl("exec", other, "--", "/probe", "dial", f"{address}:8080")
        assert "refused" not in silence.value.stderr

        def ready() -> str:
            conditions = real.get("node", "node-1")["status"]["conditions"]
            return str(next(one["status"] for one in conditions if one["type"] == "Ready"))

        real.wait("the node is missed", lambda: ready() == "Unknown", 60)
        nodes.restart_node("node-1")
        assert ready() == "True"
        real.wait("its old pod has ended", lambda: phase(real, lost) != "Running")
        real.apply(pod("after", "node-1", container={"resources": {}}))
        await_phase(real, "after", "Running")
        real.kubectl("delete", "pod", "after", "--force")

    def test_the_hosts_network_settings_are_untouched(self, real: ControlPlane) -> None:
        rules = subprocess.run(["iptables-save"], capture_output=True, text=True).stdout
        assert "KUBE-" not in rules
        forwarding = real.ground.run(["cat", "/proc/sys/net/ipv4/ip_forward"])
        assert forwarding.strip() == "1"


@pytest.mark.realnodes
def test_nothing_is_left_of_real_nodes(tmp_path: Path) -> None:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    with ControlPlane(Options(isolated=True)) as cluster:
        cluster.real_nodes(1, gpus=1)
        folders, everything = [cluster.folder, cluster.disk], _inside(cluster)
        groups = [path for path in Path("/sys/fs/cgroup").rglob(f"{cluster.folder.name}*")]
        assert everything and groups
    assert not [pid for pid in everything if command_line(pid)]
    assert not [path for path in (*folders, *groups) if path.exists()]
    until(
        lambda: (
            len(subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout.splitlines())
            == len(links.splitlines())
        ),
        *(20, "the link is gone"),
    )


def _inside(cluster: ControlPlane) -> list[int]:
    holds = cluster.ground.holds  # type: ignore[union-attr]
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if holds(int(path.name))]

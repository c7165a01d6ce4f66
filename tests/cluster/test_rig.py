"""The rig: binaries, control plane and pretended nodes, and what it promises about them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.rig import (
    ApiError,
    CommandFailed,
    ControlPlane,
    Missing,
    Options,
    RigError,
    binaries,
    ground,
    paths,
    until,
    versions,
)
from tests.cluster.rig.lifeline import Lifeline
from tests.cluster.rig.nodes import command_line
from tests.cluster.rig_pods import await_phase, phase, pod

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
        "versitygw": ("github.com/versity/versitygw", versions.VERSITYGW),
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


def test_a_kubelet_of_somebody_else_is_seen_and_one_of_a_rig_is_not(tmp_path: Path) -> None:
    def runs(pid: int, executable: Path) -> None:
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "exe").symlink_to(executable)

    runs(10, binaries.location("kubelet"))
    runs(11, Path("/usr/bin/python3"))
    (tmp_path / "12").mkdir()  # a kernel thread has no program
    assert ground.foreign_nodes(tmp_path) is None
    runs(13, Path("/usr/bin/kubelet"))
    assert ground.foreign_nodes(tmp_path) == "kubelet (process 13)"


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Missing, match="need root"):
        ground.require_isolation()


def test_a_missing_program_is_named_with_its_package_and_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RERAIL_TEST_HOST", raising=False)
    with pytest.raises(Missing, match="apt-get install -y --no-install-recommends buildah iproute2"):
        ground.install({"ip": "iproute2", "buildah": "buildah"})


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


def test_a_forked_process_does_not_keep_the_rig_alive(tmp_path: Path) -> None:
    lifeline = Lifeline(tmp_path / "log")
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    lifeline.watch_path(doomed)
    # A process that holds our end of the pipe open, as a fork of this one would.
    with subprocess.Popen(["sleep", "60"], pass_fds=[lifeline.pipe]) as holder:
        lifeline.close()
        holder.kill()
    assert not doomed.exists()


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

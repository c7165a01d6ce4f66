"""The rig: real nodes, their faults, and that nothing is left of them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.rig import CommandFailed, ControlPlane, Options, archive, binaries, paths
from tests.cluster.rig.ground import IsolatedGround
from tests.cluster.rig.nodes import RealNodes, command_line
from tests.cluster.rig_pods import PROBE, await_phase, phase, pod

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

    def test_its_api_server_can_be_paused_and_killed_too(self, real: ControlPlane) -> None:
        real.pause_apiserver()
        with pytest.raises(CommandFailed):
            real.kubectl("get", "--raw", "/readyz", "--request-timeout=1s")
        real.resume_apiserver()
        real.wait("it answers again", lambda: real.kubectl("get", "--raw", "/readyz") == "ok")
        real.pause_apiserver()
        real.restart_apiserver()
        assert len(real.get("nodes")["items"]) == 2

    def test_the_hosts_network_settings_are_untouched(self, real: ControlPlane) -> None:
        rules = subprocess.run(["iptables-save"], capture_output=True, text=True).stdout
        assert "KUBE-" not in rules
        forwarding = real.ground.run(["cat", "/proc/sys/net/ipv4/ip_forward"])
        assert forwarding.strip() == "1"


@pytest.mark.realnodes
def test_a_cluster_stays_up_and_goes_down_on_command(tmp_path: Path) -> None:
    # Binaries are shared with the real cache, the state of `up` is not.
    (tmp_path / "bin").symlink_to(paths.cache() / "bin")
    environment = {**os.environ, "RERAIL_CACHE": str(tmp_path)}

    def rig(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "tests.cluster.rig", *words]
        return subprocess.run(argv, cwd=paths.CHECKOUT, env=environment, capture_output=True, text=True)

    assert rig("status").returncode == 1
    up = rig("up", "--nodes", "1", "--gpus", "3", "--no-images")
    try:
        assert up.returncode == 0, up.stderr
        kubeconfig = up.stdout.strip().removeprefix("export KUBECONFIG=")
        kubectl = [
            str(binaries.location("kubectl")),
            f"--kubeconfig={kubeconfig}",
            "get",
            "nodes",
            "-o",
            "json",
        ]
        (node,) = json.loads(subprocess.run(kubectl, capture_output=True, check=True).stdout)["items"]
        assert node["status"]["allocatable"]["nvidia.com/gpu"] == "3"
        assert rig("status").stdout == up.stdout
        assert rig("up").stdout == up.stdout
    finally:
        down = rig("down")
    assert down.returncode == 0
    assert rig("status").returncode == 1
    assert not list((tmp_path / "rigs").iterdir())


@pytest.mark.realnodes
def test_nothing_is_left_of_real_nodes() -> None:
    with ControlPlane(Options(isolated=True)) as cluster:
        cluster.real_nodes(1, gpus=1)
        inside = cluster.ground
        assert isinstance(inside, IsolatedGround)
        everything = [int(path.name) for path in Path("/proc").glob("[0-9]*") if inside.holds(int(path.name))]
        groups = [path for path in Path("/sys/fs/cgroup").rglob(f"{cluster.folder.name}*")]
        link = Path("/sys/class/net") / inside.link
        assert len(everything) > 5 and groups and link.exists()
        mac = (link / "address").read_text()
    assert not [pid for pid in everything if command_line(pid)]
    assert not [path for path in (cluster.folder, cluster.disk, *groups) if path.exists()]
    # Another rig may have taken the name by now; its link is another one.
    assert not link.exists() or (link / "address").read_text() != mac

"""kind: the file as kind itself reads it, and the commands. Docker is not needed here: its programs are played."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.rig import binaries
from tests.cluster.rig.daemon import NAMESPACE
from tests.cluster.rig.images import image_name
from tests.cluster.rig.nodes import GPU

from .checkout import ROOT
from .scripted import alone, calls, play, run_script

STATE = ROOT / ".rerail"


def programs(folder: Path, *, clusters: str = "", minor: str = "36") -> dict[str, str]:
    """docker, kind, kubectl and helm that answer as the real ones do."""
    version = json.dumps({"serverVersion": {"major": "1", "minor": minor}})
    play(folder, "docker")
    play(folder, "kind", f'case "$*" in "get clusters") echo "{clusters}" ;; esac')
    play(
        folder,
        "kubectl",
        f"""case "$*" in
          *" version "*) echo '{version}' ;;
          *" get nodes "*) printf "node/rerail-worker\\nnode/rerail-worker2\\n" ;;
        esac""",
    )
    play(folder, "helm")
    return alone(folder)


@pytest.mark.controlplane
def test_kind_itself_would_take_the_file() -> None:
    check = binaries.ensure(["kindcheck"])["kindcheck"]
    done = subprocess.run([check, ROOT / "kind-config.yaml"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "3 nodes" in done.stdout


def test_without_docker_it_says_where_docker_is_and_what_needs_none(tmp_path: Path) -> None:
    done = run_script("kind.py", "up", env=alone(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "docker is not installed: https://docs.docker.com" in done.stderr
    assert "without Docker: make cluster" in done.stderr


def test_a_docker_without_its_daemon_is_named(tmp_path: Path) -> None:
    play(tmp_path, "docker", 'echo "Is the docker daemon running?" >&2; exit 1')
    done = run_script("kind.py", "up", env=alone(tmp_path))
    assert done.returncode == 1
    assert "docker does not answer: Is the docker daemon running?" in done.stderr


def test_up_makes_the_cluster_and_installs_rerail_as_make_cluster_does(tmp_path: Path) -> None:
    done = run_script("kind.py", "up", "--gpus", "4", env=programs(tmp_path))
    assert done.returncode == 0, done.stderr
    asked = calls(tmp_path)
    create = next(call for call in asked if call.startswith("kind create cluster"))
    assert f"--config {ROOT / 'kind-config.yaml'}" in create
    assert f"kind load docker-image {image_name('operator')} {image_name('trainer')} --name rerail" in asked
    patches = [call for call in asked if " patch " in call]
    assert [call.split(" patch ")[1].split()[0] for call in patches] == [
        "node/rerail-worker",
        "node/rerail-worker2",
    ]
    amount = {GPU: "4"}
    assert all(
        json.dumps({"status": {"capacity": amount, "allocatable": amount}}) in call for call in patches
    )
    (install,) = (call for call in asked if call.startswith("helm"))
    assert f"upgrade --install rerail {ROOT / 'helm' / 'rerail'} --namespace {NAMESPACE}" in install
    assert asked.index(install) == len(asked) - 1, "installed last, when images and GPUs are there"
    assert f"export KUBECONFIG={STATE / 'kind.kubeconfig'}" in done.stdout
    assert os.stat(STATE / "shared").st_mode & 0o7777 == 0o1777


def test_up_goes_on_with_a_cluster_that_is_there(tmp_path: Path) -> None:
    done = run_script("kind.py", "up", env=programs(tmp_path, clusters="rerail other"))
    assert done.returncode == 0, done.stderr
    asked = calls(tmp_path)
    assert not [call for call in asked if "create cluster" in call]
    (crd,) = (number for number, call in enumerate(asked) if f"--force-conflicts -f {ROOT / 'crds'}" in call)
    (install,) = (number for number, call in enumerate(asked) if call.startswith("helm"))
    (restart,) = (number for number, call in enumerate(asked) if "rollout restart deployment/rerail" in call)
    assert crd < install < restart, "helm upgrades no CRD, and a new image of the same name restarts nothing"


def test_a_cluster_that_is_too_old_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    done = run_script("kind.py", "up", env=programs(tmp_path, minor="33"))
    assert done.returncode == 1
    assert "Kubernetes 1.33" in done.stderr and "KIND_NODE_IMAGE" in done.stderr
    assert not [call for call in calls(tmp_path) if call.startswith("docker build")]


def test_down_deletes_this_cluster_only(tmp_path: Path) -> None:
    done = run_script("kind.py", "down", env=programs(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [call for call in calls(tmp_path) if call.startswith("kind")] == [
        f"kind delete cluster --name rerail --kubeconfig {STATE / 'kind.kubeconfig'}"
    ]

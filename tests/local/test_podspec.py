"""From a Pod object to what is started: words, variables, folders."""

from pathlib import Path
from typing import Any

import pytest

from rerail_api.contract import AGENT_FILE, AGENT_MOUNT, LABEL_NODE_RANK, LABEL_SLOT, Env
from rerail_operator.shell.local.devices import Devices, of_this_machine, threads
from rerail_operator.shell.local.inject import Gang
from rerail_operator.shell.local.podspec import (
    RUN_MARK,
    Host,
    PodFolders,
    agent_config_map,
    expand,
    plan_start,
)

pytestmark = pytest.mark.local

FOLDERS = PodFolders(Path("/w/agent"), Path("/w/token"), Path("/w/ckpt"), Path("/w/log"), Path("/w/tmp"))
HOST = Host(
    "/venv/bin/python",
    {"PATH": "/bin", "HOME": "/home/me", "RANK": "7", "PET_NNODES": "9"},
    "run",
    Path("/cwd"),
)


def a_pod(command: list[str], env: list[dict[str, Any]] | None = None, **container: Any) -> dict[str, Any]:
    agent = ["python3", f"{AGENT_MOUNT}/{AGENT_FILE}", "--"]
    return {
        "metadata": {
            "name": "demo-0",
            "namespace": "ns",
            "uid": "u-1",
            "labels": {LABEL_NODE_RANK: "1", LABEL_SLOT: "1"},
        },
        "spec": {
            "nodeName": "local-1",
            "containers": [{"name": "trainer", "command": [*agent, *command], "env": env or [], **container}],
        },
    }


def argv(command: list[str], **more: Any) -> tuple[str, ...]:
    return plan_start(a_pod(command, **more), HOST, FOLDERS).argv[3:]


def test_the_agent_is_started_by_this_interpreter_from_the_pods_own_folder() -> None:
    start = plan_start(a_pod(["sh", "-c", "true"]), HOST, FOLDERS)
    assert start.argv[:3] == ("/venv/bin/python", f"/w/agent/{AGENT_FILE}", "--")
    assert start.cwd == Path("/cwd")


def test_python_python3_and_torchrun_are_this_interpreter() -> None:
    assert argv(["python", "-m", "x"]) == ("/venv/bin/python", "-m", "x")
    assert argv(["python3", "t.py"], args=["--a"]) == ("/venv/bin/python", "t.py", "--a")
    assert argv(["torchrun", "t.py"]) == ("/venv/bin/python", "-m", "torch.distributed.run", "t.py")
    assert argv(["/opt/bin/python", "t.py"]) == ("/opt/bin/python", "t.py")
    assert argv(["bash", "-c", "python t.py"]) == ("bash", "-c", "python t.py")


def test_fields_of_the_pod_and_earlier_variables_are_filled_in() -> None:
    env = [
        {"name": Env.POD_UID, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": Env.POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": Env.NODE, "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {
            "name": "MY_RANK",
            "valueFrom": {"fieldRef": {"fieldPath": f"metadata.labels['{LABEL_NODE_RANK}']"}},
        },
        {"name": Env.CHECKPOINT_DIR, "value": "/checkpoints"},
        {"name": "OUT", "value": "$(RERAIL_CHECKPOINT_DIR)/x $(UNKNOWN) $$(HOME)"},
    ]
    start = plan_start(a_pod(["train", "--out=$(OUT)"], env), HOST, FOLDERS)
    assert start.env[Env.POD_UID] == "u-1"
    assert start.env[Env.POD_IP] == "127.0.0.1"
    assert start.env[Env.NODE] == "local-1"
    assert start.env["MY_RANK"] == "1"
    assert start.env["OUT"] == "/w/ckpt/x $(UNKNOWN) $(HOME)"
    assert start.argv[-1] == "--out=/w/ckpt/x $(UNKNOWN) $(HOME)"


def test_mounts_become_folders_and_ranks_of_this_shell_do_not_leak() -> None:
    env = [{"name": Env.TOKEN_FILE, "value": "/var/run/x"}, {"name": Env.CA_FILE, "value": "/var/run/ca"}]
    started = plan_start(a_pod(["x"], env), HOST, FOLDERS).env
    assert started[Env.TOKEN_FILE] == "/w/token"
    assert started[Env.TERMINATION_LOG] == "/w/log"
    assert started["TMPDIR"] == "/w/tmp"
    assert started[RUN_MARK] == "run"
    assert started["PATH"] == "/venv/bin:/bin"
    assert started["HOME"] == "/home/me"
    assert not {"RANK", "PET_NNODES", Env.CA_FILE} & started.keys()


def test_what_cannot_be_had_here_is_named() -> None:
    pod = a_pod(["x"], [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}])
    pod["spec"]["containers"].append({"name": "sidecar"})
    start = plan_start(pod, HOST, FOLDERS)
    assert start.left_aside == (
        "variable KEY: secretKeyRef is not read on this machine",
        "container sidecar is not started",
    )
    assert "KEY" not in start.env


def test_the_agents_config_map_is_found_by_its_mount() -> None:
    pod = a_pod(["x"], volumeMounts=[{"name": "rerail-agent", "mountPath": AGENT_MOUNT}])
    assert agent_config_map(pod) is None
    pod["spec"]["volumes"] = [{"name": "rerail-agent", "configMap": {"name": "demo-agent"}}]
    assert agent_config_map(pod) == "demo-agent"


def test_expansion_is_kubernetes_own() -> None:
    env = {"A": "1", "B_c.d-e": "2"}
    assert expand("$(A)$(B_c.d-e)", env) == "12"
    assert expand("$$(A) $A ${A} $(", env) == "$(A) $A ${A} $("


def test_gpus_are_shared_by_node_rank_and_hidden_where_they_do_not_suffice(tmp_path: Path) -> None:
    gang = Gang(num_nodes=2, nproc=2)
    four = Devices(("0", "1", "2", "3"))
    assert four.environment(1, gang) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert Devices(("0",)).environment(0, gang) == {"CUDA_VISIBLE_DEVICES": ""}
    assert Devices(()).environment(0, gang) == {}
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert of_this_machine({}, tmp_path).names == ("0", "1")
    assert of_this_machine({"CUDA_VISIBLE_DEVICES": "3, GPU-x"}, tmp_path).names == ("3", "GPU-x")
    assert of_this_machine({}, tmp_path / "none").names == ()


def test_cores_are_shared_unless_the_user_said_how_many() -> None:
    gang = Gang(num_nodes=2, nproc=2)
    assert threads({}, gang, 2) == {"OMP_NUM_THREADS": "1"}
    assert threads({}, gang, 16) == {"OMP_NUM_THREADS": "4"}
    assert threads({"OMP_NUM_THREADS": "3"}, gang, 16) == {}


def test_a_pod_inherits_its_slots_share() -> None:
    host = Host(
        HOST.python, {}, "run", Path("/cwd"), ({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"})
    )
    assert plan_start(a_pod(["x"]), host, FOLDERS).env["CUDA_VISIBLE_DEVICES"] == "1"

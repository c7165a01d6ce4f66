"""Where a rank finds itself: environment, ports, folders, settings."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from rerail_agent import workspace as workspaces
from rerail_agent.environment import Surroundings, node_env, rank_env
from rerail_agent.orders import BadFrame, Release, Stop, parse_frame, parse_order
from rerail_agent.ports import PortChoice, bind_everywhere
from rerail_agent.settings import Address, parse_address
from rerail_agent.workspace import NoWorkspace, Workspace


def a_release(**changes: Any) -> Release:
    raw = {
        "round": 3,
        "node_rank": 1,
        "num_nodes": 2,
        "nproc": 4,
        "master_addr": "10.0.0.9",
        "master_port": 21001,
        "min_step": 50,
        **changes,
    }
    return Release(**raw, raw=raw)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Workspace(in_container=False)


def around(workspace: Workspace, **inherited: str) -> Surroundings:
    return Surroundings({"PATH": "/bin", "PET_STALE": "1", "RANK": "9", **inherited}, "uid", workspace)


def test_a_rank_is_numbered_as_under_torchrun(workspace: Workspace) -> None:
    env = rank_env(around(workspace, RERAIL_TOKEN_FILE="t", RERAIL_CHECKPOINT_DIR="/ckpt"), a_release(), 2)
    assert env == {
        "PATH": "/bin",
        "RANK": "6",
        "LOCAL_RANK": "2",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.9",
        "MASTER_PORT": "21001",
        "RERAIL_ROUND": "3",
        "RERAIL_MIN_STEP": "50",
        "RERAIL_PROGRESS": str(workspace.progress),
        "RERAIL_ADVICE": str(workspace.advice),
        "RERAIL_CHECKPOINT_DIR": "/ckpt",
        "TMPDIR": str(workspace.tmp),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }


def test_the_interval_between_checkpoints_is_in_the_environment_where_one_was_told(
    workspace: Workspace,
) -> None:
    stale = around(workspace, RERAIL_CHECKPOINT_SECONDS="9")
    assert rank_env(stale, a_release(checkpoint_seconds=118), 0)["RERAIL_CHECKPOINT_SECONDS"] == "118"
    assert node_env(stale, a_release(checkpoint_seconds=118))["RERAIL_CHECKPOINT_SECONDS"] == "118"
    assert "RERAIL_CHECKPOINT_SECONDS" not in rank_env(stale, a_release(), 0)


def test_what_the_user_set_stays(workspace: Workspace) -> None:
    chosen = {"PYTHONUNBUFFERED": "", "OMP_NUM_THREADS": "7", "GLOO_SOCKET_IFNAME": "eth1"}
    env = rank_env(around(workspace, **chosen), a_release(master_addr="127.0.0.1"), 0)
    assert chosen.items() <= env.items()


def test_a_single_rank_keeps_its_threads_and_loopback_needs_its_interface(workspace: Workspace) -> None:
    env = rank_env(around(workspace), a_release(nproc=1, master_addr="127.0.0.1"), 0)
    assert "OMP_NUM_THREADS" not in env and env["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_launcher_is_told_all_in_its_own_words(workspace: Workspace) -> None:
    env = node_env(around(workspace), a_release(master_addr="fd00::9"))
    assert {name: value for name, value in env.items() if name.startswith("PET_")} == {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "4",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "[fd00::9]",
        "PET_MASTER_PORT": "21001",
        "PET_MAX_RESTARTS": "0",
        "PET_RDZV_BACKEND": "static",
        "PET_RDZV_ID": "uid-3",
    }
    assert env["TORCHELASTIC_ERROR_FILE"] == str(workspace.error_file)
    assert "RANK" not in env and env["MASTER_ADDR"] == "fd00::9"


# ---------------------------------------------------------------------- ports


@pytest.mark.parametrize(
    ("text", "ceiling"),
    [("20300\t60999\n", 20300), ("32768 60999", 30000), ("1024 65535", 30000), ("", 30000)],
)
def test_ports_lie_below_the_ephemeral_range_and_the_node_ports(
    tmp_path: Path, text: str, ceiling: int
) -> None:
    (tmp_path / "range").write_text(text)
    choice = PortChoice(str(tmp_path / "range"))
    offers = [choice.offer() for _ in range(20)]
    choice.release()
    assert all(20000 <= port < ceiling for port in offers)
    assert all(len(set(offers[i : i + 17])) == 17 for i in range(4))


def test_a_port_is_held_until_it_is_released_and_a_taken_one_passed_over(tmp_path: Path) -> None:
    (tmp_path / "range").write_text("20017 60999")
    first, second = PortChoice(str(tmp_path / "range")), PortChoice(str(tmp_path / "range"))
    port = first.offer()
    assert bind_everywhere(port) is None
    assert second.offer() != port
    second.release()
    first.release()
    with socket.socket() as rank:
        rank.bind(("127.0.0.1", port))


# ---------------------------------------------------------------------- folders


def test_a_round_begins_with_empty_folders(workspace: Workspace) -> None:
    workspace.renew(1)
    (workspace.tmp / "left").write_text("x")
    before = workspace.tmp
    workspace.renew(2)
    assert not before.exists() and list(workspace.tmp.iterdir()) == []
    assert workspace.progress.read_bytes() == b""
    workspace.remove()
    assert not workspace.tmp.parent.parent.exists()


def test_shared_memory_takes_the_folders_where_nothing_else_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    workspace = Workspace(in_container=True, shared_memory=tmp_path)
    workspace.renew(1)
    (tmp_path / "segment").write_text("x")
    workspace.clean()
    assert [path.name.startswith("rerail-") for path in tmp_path.iterdir()] == [True]
    with pytest.raises(NoWorkspace, match="nowhere"):
        Workspace(in_container=False, shared_memory=Path("/nowhere/else"))


def test_links_out_of_a_folder_are_removed_and_not_followed(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/data").write_text("x")
    workspace.renew(1)
    (workspace.tmp / "link").symlink_to(tmp_path / "precious")
    workspaces._remove(workspace.tmp / "link")
    (workspace.tmp / "link").symlink_to(tmp_path / "precious")
    workspace.renew(2)
    assert (tmp_path / "precious/data").exists()


# ---------------------------------------------------------------------- words


def test_addresses() -> None:
    assert parse_address("host.svc:80") == Address("host.svc", 80)
    assert parse_address("[fd00::1]:443") == Address("fd00::1", 443)
    assert str(Address("fd00::1", 443)) == "[fd00::1]:443"
    for text in ("", "host", ":80", "host:0", "host:65536", "host:http"):
        with pytest.raises(ValueError, match="host:port"):
            parse_address(text)


BAD_ORDERS: dict[str, dict[str, Any]] = {
    "no term": {"do": "join", "round": 1},
    "a round that is no number": {"term": 1, "do": "join", "round": "1"},
    "round 0": {"term": 1, "do": "join", "round": 0},
    "no release": {"term": 1, "do": "run", "round": 1},
    "a release of another round": {"term": 1, "do": "run", "round": 1, "release": a_release().raw},
    "a node rank beyond the nodes": {
        "term": 1,
        "do": "run",
        "round": 3,
        "release": a_release(node_rank=2).raw,
    },
    "a mode nobody knows": {"term": 1, "do": "stop", "round": 1, "mode": "gently"},
    "a grace without end": {"term": 1, "do": "stop", "round": 1, "mode": "save", "grace": float("inf")},
    "a code that is no number": {"term": 1, "do": "finish", "code": "0"},
    "an order nobody knows": {"term": 1, "do": "dance"},
}


@pytest.mark.parametrize("name", BAD_ORDERS)
def test_a_bad_order_is_refused(name: str) -> None:
    with pytest.raises(BadFrame):
        parse_order(BAD_ORDERS[name])


def test_good_orders_are_understood() -> None:
    assert parse_order({"term": 2, "do": "stop", "round": 0, "mode": "save", "grace": 5}) == Stop(
        2, 0, True, 5.0
    )
    for line in (b"", b"[]", b'{"kind": 1}', b"\xff"):
        with pytest.raises(BadFrame):
            parse_frame(line)

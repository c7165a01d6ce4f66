"""`rerail nodes`: the table of nodes with strikes, and how a person lets one in again."""

import asyncio
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rerail_operator.shell.cli import main
from rerail_operator.shell.cluster import Object
from rerail_operator.shell.console import Console
from rerail_operator.shell.strikes.command import NoNodes, Wish, show
from rerail_operator.shell.strikes.record import NAME
from tests.shell.fake_api import FakeApi, fake_api, reply, status

HOME = "rerail-system"


def node(name: str, ready: str = "True", gpus: int = 8) -> Object:
    state = {"conditions": [{"type": "Ready", "status": ready}], "allocatable": {"nvidia.com/gpu": str(gpus)}}
    return {"metadata": {"name": name, "uid": name}, "status": state}


def config_map(**data: str) -> Object:
    return {
        "metadata": {"name": NAME, "namespace": HOME, "resourceVersion": "7"},
        "data": data,
    }


def line(hours: float, kind: str = "NodeLoss", job: str = "team/gpt") -> str:
    how = "seen" if kind == "NodeLoss" else "told"
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=hours)
    return f"{at:%Y-%m-%dT%H:%M:%SZ} {kind} {how} {job} uid#{int(hours * 60)} -\n"


async def shown(api: FakeApi, tmp_path: Path, **wish: Any) -> str:
    out = io.StringIO()
    config = str(api.kubeconfig(tmp_path / "config"))
    wanted = Wish(kubeconfig=config, **wish)
    await asyncio.to_thread(show, wanted, Console(out, io.StringIO()))
    return out.getvalue()


TWENTY = {
    "items": [node(f"n{i}") for i in range(19)] + [node("n19", "False")],
    "metadata": {"resourceVersion": "9"},
}


async def test_the_table_shows_who_is_avoided_why_and_until_when(tmp_path: Path) -> None:
    book = config_map(
        n19=line(30) + line(20) + line(2, "NodeLoss", "blue/bert"), n3=line(5, "GpuFault"), old=line(1)
    )
    async with fake_api(reply(200, book), reply(200, TWENTY)) as api:
        text = await shown(api, tmp_path)
    head, n3, n19, old, _, total = text.splitlines()
    assert head.split() == [
        "NODE",
        "READY",
        "STRIKES",
        "WEIGHT",
        "LAST",
        "WHEN",
        "BY",
        "STATE",
        "UNTIL",
        "WHY",
    ]
    assert n3.split()[:5] == ["n3", "yes", "1", "0", "GpuFault"]
    assert n3.endswith("watched  -                  one namespace's programs say so, nobody else")
    assert n19.split()[:5] == ["n19", "no", "3", "3", "NodeLoss"] and "blue/bert" in n19 and "avoided" in n19
    assert old.split()[:4] == ["old", "-", "1", "1"] and "gone" in old
    assert total == "20 nodes: 3 with strikes, 1 avoided"


async def test_without_strikes_the_table_is_one_line(tmp_path: Path) -> None:
    async with fake_api(reply(404, status(404, "not found", "NotFound")), reply(200, TWENTY)) as api:
        assert await shown(api, tmp_path) == "20 nodes: none with strikes\n"
        assert [seen.path for seen in api.seen] == [
            f"/api/v1/namespaces/{HOME}/configmaps/{NAME}",
            "/api/v1/nodes",
        ]


async def test_all_nodes_are_shown_where_that_is_asked_for(tmp_path: Path) -> None:
    async with fake_api(reply(200, config_map()), reply(200, TWENTY)) as api:
        text = await shown(api, tmp_path, everything=True)
    assert [row.split()[0] for row in text.splitlines()[1:21]] == [f"n{i}" for i in range(20)]


async def test_a_person_clears_a_node_by_one_guarded_write(tmp_path: Path) -> None:
    book = config_map(n19=line(3) + line(2) + line(1), n3=line(5))
    async with fake_api(reply(200, book), reply(200, book)) as api:
        text = await shown(api, tmp_path, clear="n19", namespace="ops")
        sent = api.seen[-1]
    assert text == "n19: 3 strikes are cleared; the operator takes notice within ten seconds\n"
    assert (sent.method, sent.path) == ("PUT", f"/api/v1/namespaces/ops/configmaps/{NAME}")
    assert sent.body["metadata"]["resourceVersion"] == "7"
    assert sent.body["data"]["n19"].endswith(" cleared\n") and sent.body["data"]["n19"].count("\n") == 1
    assert sent.body["data"]["n3"] == book["data"]["n3"]


async def test_clearing_is_tried_again_when_the_operator_writes_at_the_same_time(tmp_path: Path) -> None:
    book, busy = reply(200, config_map(n19=line(1))), reply(409, status(409, "modified", "Conflict"))
    async with fake_api(book, busy, book, book) as api:
        assert "1 strike is cleared" in await shown(api, tmp_path, clear="n19")
        assert [seen.method for seen in api.seen] == ["GET", "PUT", "GET", "PUT"]


async def test_clearing_a_node_that_nothing_is_held_against_says_where_to_look(tmp_path: Path) -> None:
    async with fake_api(reply(200, config_map(n19=line(1)))) as api:
        with pytest.raises(
            NoNodes, match=r"nothing is held against a node n91; `rerail nodes -n rerail-system`"
        ):
            await shown(api, tmp_path, clear="n91")
        assert [seen.method for seen in api.seen] == ["GET"]


def test_without_credentials_it_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["nodes", "--kubeconfig", str(tmp_path / "none")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("rerail nodes: ") and told.err.count("\n") == 1

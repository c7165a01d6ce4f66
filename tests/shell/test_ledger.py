"""`rerail ledger`: what it reads, what it says, and what it says when it cannot."""

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerail_operator.shell.cli import main
from rerail_operator.shell.console import Console
from rerail_operator.shell.ledger.command import NoAccount, Wish, show
from rerail_operator.shell.ledger.table import duration
from tests.shell.fake_api import fake_api, reply, status

INCIDENT: dict[str, Any] = {
    "number": 3,
    "round": 3,
    "class": "NodeLoss",
    "node": "gpu-0042",
    "startTime": "2026-11-24T10:00:00Z",
    "resolvedTime": "2026-11-24T10:00:30Z",
    "stepsLost": 4,
    "stageSeconds": {"detection": 10.0, "placement": 4.0, "load": 6.0, "replay": 10.0},
    "gpuSecondsLost": 480000.0,
}
LEDGER: dict[str, Any] = {
    "wallSeconds": 7200.0,
    "productiveSeconds": 7000.0,
    "lostSeconds": {"queued": 100.0, "load": 60.0, "detection": 30.0, "replay": 10.0},
    "ettr": 0.9859,
    "checkpoints": 100,
    "lostSecondsByClass": {"ProcessFault": 30.0, "NodeLoss": 70.0},
    "forecast": {
        "interruptionsPerThousandNodeDays": 6.5,
        "deadSeconds": 20,
        "stallSeconds": 0.05,
        "intervalSeconds": 26.6,
        "ettr": 0.991,
    },
}
REPORT: dict[str, Any] = {
    "job": "team/gpt",
    "phase": "Running",
    "reason": "AllRanksRunning",
    "numNodes": 2000,
    "created": "2026-11-24T08:30:00Z",
    "ledger": LEDGER,
    "incidents": [INCIDENT],
    "injected": [],
}
JOB: dict[str, Any] = {
    "apiVersion": "rerail.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "gpt", "namespace": "team", "uid": "u", "creationTimestamp": "2026-11-24T08:30:00Z"},
    "spec": {
        "numNodes": 2000,
        "template": {"spec": {"containers": [{"name": "trainer", "command": ["python"]}]}},
    },
    "status": {
        "phase": "Running",
        "reason": "AllRanksRunning",
        "ledger": LEDGER,
        "incidents": [INCIDENT],
    },
}


def shown(wish: Wish) -> str:
    out = io.StringIO()
    show(wish, Console(out, io.StringIO()))
    return out.getvalue()


def written(tmp_path: Path, content: Any, name: str = "report.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_page_says_where_the_time_went_what_the_model_expects_and_what_each_interruption_cost(
    tmp_path: Path,
) -> None:
    page = shown(Wish(None, written(tmp_path, REPORT), None))
    for part in (
        "team/gpt: Running (AllRanksRunning), 2000 nodes",
        "Where 7200.0 s went",
        "  productive         7000.0 s  97.2%",
        "  sum                7200.0 s, ETTR 0.986",
        "What interruptions that are over have cost\n  NodeLoss             70.0 s   1.0%\n  ProcessFault         30.0 s",
        "  ETTR             0.991 predicted in the long run, 0.986 measured so far",
        "6.50 per 1,000 node-days, one in 111 min",
        "20.0 s dead",
        "0.05 s of standing still; best every 26.6 s; 100 were committed, one per 70.1 s",
        "Interruptions, of the last 1; 2 older ones are counted in the sums only",
    ):
        assert part in page
    head, row = page.splitlines()[-2:]
    named = ["#", "when", "(UTC)", "class", "where", "steps", "s"]
    assert head.split() == [*named, "detection", "placement", "load", "replay", "GPU-s"]
    assert row.split() == [
        "3", "11-24", "10:00:00", "NodeLoss", "gpu-0042", "4", "30.0", "10.0", "4.0", "6.0", "10.0", "480,000",
    ]  # fmt: skip


TOLD: dict[str, tuple[Any, int | None, str]] = {
    "auto chooses": (
        "auto",
        30,
        "told             to save every 30 s of training (checkpoint.interval: auto)",
    ),
    "the job sets it": (600, 600, "told             to save every 10 min of training (checkpoint.interval)"),
    "the program's own": (None, None, "told             nothing: the program saves as it likes"),
    "auto, and nothing is told yet": (
        "auto",
        None,
        "told             nothing yet (checkpoint.interval: auto)",
    ),
}


@pytest.mark.parametrize("sentence", TOLD)
def test_the_interval_that_ranks_are_told_stands_beside_the_one_that_the_model_would_choose(
    sentence: str, tmp_path: Path
) -> None:
    interval, seconds, words = TOLD[sentence]
    checkpoint = {} if interval is None else {"checkpoint": {"interval": interval}}
    status_of_it = {**JOB["status"], **({} if seconds is None else {"checkpointIntervalSeconds": seconds})}
    job = {**JOB, "spec": {**JOB["spec"], **checkpoint}, "status": status_of_it}
    lines = shown(Wish(None, written(tmp_path, job), None)).splitlines()
    model = lines[lines.index("Model") :]
    assert f"  {words}" in model
    assert any("best every 26.6 s" in line for line in model)
    report = {**REPORT, "checkpointInterval": interval, "checkpointIntervalSeconds": seconds}
    assert f"  {words}" in shown(Wish(None, written(tmp_path, report), None))


def test_a_job_of_kubectl_says_the_same_as_the_report_of_a_run(tmp_path: Path) -> None:
    job = written(tmp_path, yaml.safe_dump(JOB), "job.yaml")
    assert shown(Wish(None, job, None)) == shown(Wish(None, written(tmp_path, REPORT), None))


def test_a_job_that_nobody_has_looked_at_has_an_empty_ledger(tmp_path: Path) -> None:
    page = shown(Wish(None, written(tmp_path, {**JOB, "status": {}}), None))
    assert "never looked at" in page and "Model" not in page and "Interruptions" not in page


@pytest.mark.parametrize("namespace", ["team", None])
async def test_a_job_is_read_from_the_cluster_as_kubectl_would(tmp_path: Path, namespace: str | None) -> None:
    async with fake_api(reply(200, JOB)) as api:
        config = str(api.kubeconfig(tmp_path / "config"))
        page = await asyncio.to_thread(shown, Wish("gpt", None, None, (namespace, config, None)))
        asked = f"/apis/rerail.dev/v1alpha1/namespaces/{namespace or 'default'}/trainingjobs/gpt"
        assert [seen.path for seen in api.seen] == [asked]
    assert "team/gpt: Running" in page


async def test_a_job_that_is_not_there_is_told_with_its_namespace(tmp_path: Path) -> None:
    async with fake_api(reply(404, status(404, "not found", "NotFound"))) as api:
        config = str(api.kubeconfig(tmp_path / "config"))
        with pytest.raises(NoAccount, match="no TrainingJob gpt in namespace team"):
            await asyncio.to_thread(shown, Wish("gpt", None, None, ("team", config, None)))


def test_without_credentials_the_sentence_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoAccount, match="none does not exist, so no cluster is known"):
        shown(Wish("gpt", None, None, (None, str(tmp_path / "none"), None)))


BAD_FILES = {
    "a file that is not there": (None, "nothing: there is no such file; name a report"),
    "no mapping": ("[1]", "holds no report"),
    "another thing": ('{"a": 1}', "is no report of `rerail run`: job: Field required"),
    "a job with a typo": (json.dumps({**JOB, "spec": {}}), "cannot be read: spec"),
}


@pytest.mark.parametrize("sentence", BAD_FILES)
def test_a_file_that_holds_no_ledger_is_told(sentence: str, tmp_path: Path) -> None:
    content, words = BAD_FILES[sentence]
    path = tmp_path / "nothing" if content is None else written(tmp_path, content)
    with pytest.raises(NoAccount, match=words):
        shown(Wish(None, path, None))


def test_either_a_job_or_a_file_is_named(tmp_path: Path) -> None:
    for wish in (Wish(None, None, None), Wish("gpt", tmp_path, None)):
        with pytest.raises(NoAccount, match="either a job"):
            shown(wish)


def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["ledger", "--report", str(tmp_path / "none.json")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("rerail ledger: ") and told.err.count("\n") == 1


def test_a_picture_in_a_format_that_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoAccount, match=r"ends in \.png or \.svg"):
        shown(Wish(None, written(tmp_path, REPORT), tmp_path / "ledger.gif"))


def test_without_matplotlib_the_sentence_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "rerail_operator.shell.ledger.picture", raising=False)
    with pytest.raises(NoAccount, match=r"--plot needs matplotlib: pip install matplotlib"):
        shown(Wish(None, written(tmp_path, REPORT), tmp_path / "ledger.png"))


def test_durations_are_short() -> None:
    assert [duration(s) for s in (0.05, 90, 600, 7200, 500_000)] == [
        "0.05 s", "90 s", "10 min", "2 h", "5.79 days",
    ]  # fmt: skip

"""`rerail run` with commands that need no torch: ends, failures, Ctrl-C, bad input."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.local.runs import ROOT, Run, job, ledger_sums

pytestmark = pytest.mark.local

NewRun = Callable[..., Run]

PROGRESS = """
import json, os, signal, sys, time
folder, path = os.environ["RERAIL_CHECKPOINT_DIR"], os.environ["RERAIL_PROGRESS"]
mark = os.path.join(folder, "step")
step = int(open(mark).read()) if os.path.exists(mark) else 0
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
while step < int(sys.argv[1]):
    step += 1
    time.sleep(0.05)
    if os.environ["RANK"] == "0":
        with open(path, "a") as file:
            file.write(json.dumps({"contract": 1, "step": step, "total_steps": int(sys.argv[1]), "loss": 9 / step,
                                   "checkpoint_step": step, "phase": "train"}) + "\\n")
        with open(mark + ".new", "w") as file:
            file.write(str(step))
        os.replace(mark + ".new", mark)
    if stopping:
        sys.exit(75)
"""
"""A program that reports steps, saves each, and stops as our contract says."""


def stepping(folder: Path, steps: int) -> Path:
    return job(folder, ["python", "-c", PROGRESS, str(steps)], checkpoint={"graceSeconds": 10})


def test_a_job_completes_and_its_report_adds_up(tmp_path: Path, new_run: NewRun) -> None:
    run = new_run(stepping(tmp_path, 20))
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["phase"], report["round"], report["progress"]["step"]) == ("Complete", 1, 20)
    assert report["restarts"]["total"] == 0
    assert ledger_sums(report)
    assert "default/demo: Complete" in run.output
    assert len(list((run.workdir / "logs").iterdir())) == 2


def test_a_program_without_progress_lines_runs_all_the_same(tmp_path: Path, new_run: NewRun) -> None:
    run = new_run(job(tmp_path, ["sh", "-c", 'echo "rank $RANK of $WORLD_SIZE"'], nproc=2))
    assert run.finish() == 0, run.output
    assert run.report["progress"]["step"] is None
    assert "no progress lines were seen" in run.output
    logs = "".join(path.read_text() for path in (run.workdir / "logs").iterdir())
    for rank in range(4):
        assert f"[rank {rank}] rank {rank} of 4" in logs


def test_code_that_always_fails_ends_failed_with_its_traceback(tmp_path: Path, new_run: NewRun) -> None:
    run = new_run(job(tmp_path, ["python", "-c", "raise ValueError('no such layer')"]))
    began = time.monotonic()
    assert run.finish(60) == 1, run.output
    assert time.monotonic() - began < 60
    report = run.report
    assert report["phase"] == "Failed"
    newest = report["incidents"][-1]
    assert newest["exception"] == "ValueError"
    assert any("ValueError: no such layer" in line for line in newest["logLines"])
    assert "ValueError: no such layer" in run.output
    assert ledger_sums(report)


def test_a_command_that_is_not_there_ends_failed_and_is_named(tmp_path: Path, new_run: NewRun) -> None:
    run = new_run(job(tmp_path, ["no-such-program", "--x"], nodes=1))
    assert run.finish(90) == 1, run.output
    assert run.report["phase"] == "Failed"
    assert "no-such-program" in run.output


def test_ctrl_c_saves_stops_and_the_next_run_goes_on(tmp_path: Path, new_run: NewRun) -> None:
    manifest = stepping(tmp_path, 200)
    run = new_run(manifest)
    run.until(lambda: run.last_step() > 0, "a step")
    run.process.send_signal(signal.SIGINT)
    assert run.finish(60) == 130, run.output
    first = run.report
    assert first["interrupted"] is True
    assert "stopped by Ctrl-C" in run.output
    saved = int((run.workdir / "checkpoints" / "step").read_text())
    assert 0 < saved < 200

    second = new_run(manifest)
    assert second.finish() == 0, second.output
    report = second.report
    assert (report["phase"], report["progress"]["step"]) == ("Complete", 200)
    assert report["uid"] == first["uid"]
    assert report["round"] == first["round"] + 1
    assert report["restarts"]["charged"] == 0
    assert ledger_sums(report)


def test_a_second_ctrl_c_kills(tmp_path: Path, new_run: NewRun) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    run = new_run(job(tmp_path, ["python", "-c", deaf], checkpoint={"graceSeconds": 600}))
    run.until(lambda: "Running" in run.output, "running")
    run.process.send_signal(signal.SIGINT)
    run.until(lambda: "Ctrl-C again kills" in run.output, "the first Ctrl-C")
    run.process.send_signal(signal.SIGINT)
    assert run.finish(60) == 130, run.output


def test_a_killed_runner_leaves_nothing_running(tmp_path: Path, new_run: NewRun) -> None:
    run = new_run(job(tmp_path, ["sleep", "600"]))
    run.until(lambda: "Running" in run.output, "running")
    assert len(run.members()) == 4  # two agents, two ranks
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 30
    while run.members():
        assert time.monotonic() < deadline, "processes are left running"
        time.sleep(0.05)


def test_a_killed_rank_restarts_the_gang_from_its_checkpoint(tmp_path: Path, new_run: NewRun) -> None:
    snapshot = tmp_path / "world.json"
    run = new_run(stepping(tmp_path, 60), "--inject", "kill:rank=1,step=10", "--snapshot", str(snapshot))
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["restarts"]["total"], report["restarts"]["charged"]) == (1, 1)
    incident = report["incidents"][0]
    assert (incident["signal"], incident["rank"], incident["nodeRank"]) == ("SIGKILL", 1, 1)
    assert report["injected"] == ["kill:rank=1,step=10"]
    assert ledger_sums(report)

    told = subprocess.run(
        [sys.executable, "-m", "rerail_operator.shell.cli", "explain", str(snapshot)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert told.returncode == 0, told.stderr
    assert "default/demo at" in told.stdout
    assert "decided: Restarting" in told.stdout
    assert "incidents[1].signal: none -> SIGKILL" in told.stdout
    assert "round: 1 -> 2" in told.stdout


def test_a_stopped_pod_is_replaced_and_nobody_is_charged(tmp_path: Path, new_run: NewRun) -> None:
    run = new_run(stepping(tmp_path, 60), "--inject", "stop:node=1,step=10")
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["restarts"]["total"], report["restarts"]["charged"]) == (1, 0)
    assert report["incidents"][0]["class"] == "Preemption"
    assert ledger_sums(report)


def test_a_lost_node_is_left_for_another_and_nobody_is_charged(tmp_path: Path, new_run: NewRun) -> None:
    run = new_run(stepping(tmp_path, 60), "--inject", "lose:node=1,step=10")
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["restarts"]["total"], report["restarts"]["charged"]) == (1, 0)
    incident = report["incidents"][0]
    assert (incident["class"], incident["nodeRank"]) == ("NodeLoss", 1)
    state = json.loads((run.workdir / "job.json").read_text())
    assert state["status"]["phase"] == "Complete"
    assert ledger_sums(report)


def test_a_port_that_is_taken_is_named(tmp_path: Path, new_run: NewRun) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        run = new_run(job(tmp_path, ["true"]), "--port", str(port))
        assert run.finish(30) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in run.output
    assert "--port" in run.output


def test_bad_input_is_exit_code_2_and_starts_nothing(tmp_path: Path, new_run: NewRun) -> None:
    manifest = job(tmp_path, ["true"])
    manifest.write_text(manifest.read_text().replace("numNodes", "numNode"))
    run = new_run(manifest)
    assert run.finish(30) == 2
    assert re.search(r"demo\.yaml:\d+: spec\.numNode: unknown field; did you mean numNodes\?", run.output)
    assert "Traceback" not in run.output


BAD_SNAPSHOTS = {
    "nothing": ("", "holds no object"),
    "no time": ("pods: []\n", "now is missing"),
    "an unknown key": ("now: 2026-11-23T10:00:00Z\npod: []\n", "unknown key pod"),
    "a bad job": ("now: 2026-11-23T10:00:00Z\njob: {kind: TrainingJob}\n", "job: "),
    "not YAML": ("[", "world.yaml:1:2: not YAML: expected the node content"),
}


@pytest.mark.parametrize("case", BAD_SNAPSHOTS)
def test_a_bad_snapshot_is_refused(case: str, tmp_path: Path) -> None:
    text, wanted = BAD_SNAPSHOTS[case]
    path = tmp_path / "world.yaml"
    path.write_text(text)
    told = subprocess.run(
        [sys.executable, "-m", "rerail_operator.shell.cli", "explain", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert told.returncode == 2
    assert wanted in told.stderr
    assert "Traceback" not in told.stderr


def test_a_waiting_job_is_explained_from_plain_kubernetes_objects(tmp_path: Path) -> None:
    manifest = job(tmp_path, ["true"])
    path = tmp_path / "world.yaml"
    path.write_text(
        "now: 2026-11-23T10:00:00Z\nnodes: []\njob:\n"
        + "".join(f"  {line}\n" for line in manifest.read_text().splitlines())
    )
    told = subprocess.run(
        [sys.executable, "-m", "rerail_operator.shell.cli", "explain", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert told.returncode == 0, told.stderr
    assert "  status  none yet, round 0\n" in told.stdout
    assert "decided: Queued" in told.stdout
    assert "needs 2 nodes" in told.stdout


def test_a_spare_takes_the_place_of_a_lost_node(tmp_path: Path, new_run: NewRun) -> None:
    says = "import os; print('round', os.environ['RERAIL_ROUND'], flush=True)"
    manifest = job(tmp_path, ["python", "-c", says + PROGRESS, "120"], spares=1)
    run = new_run(manifest, "--inject", "lose:node=1,step=40")
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["phase"], report["round"], report["progress"]["step"]) == ("Complete", 2, 120)
    (incident,) = report["incidents"]
    assert (incident["class"], incident["nodeRank"], incident["charged"]) == ("NodeLoss", 1, False)
    assert ledger_sums(report)
    # Pods are called job-uid-round-slot: the spare's, of round 1, has run rank 1 of round 2.
    logs = {path.stem.split("-", 2)[2]: path.read_text() for path in (run.workdir / "logs").iterdir()}
    ran = {name: re.findall(r"^\[rank (\d)\] round (\d)", log, re.MULTILINE) for name, log in logs.items()}
    assert ran.pop("1-0") == [("0", "1"), ("0", "2")]
    assert ran.pop("1-1") == [("1", "1")]
    assert ran.pop("1-2") == [("1", "2")]
    assert not any(ran.values()), ran

"""`rerail run` with the real trainer: a killed rank, Ctrl-C and going on, plain PyTorch, torchrun."""

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.local.runs import ROOT, Run, job, ledger_sums

pytestmark = [pytest.mark.local, pytest.mark.trainer, pytest.mark.timeout(400)]

NewRun = Callable[..., Run]


def training(folder: Path, steps: int, nproc: int = 1, **spec: Any) -> Path:
    command = ["python", "-m", "rerail_trainer", "--preset", "tiny", f"--train.steps={steps}"]
    # The schedule's end is part of a training's identity; saves come often, so that a kill finds one.
    command += ["--checkpoint.every_steps=5", "--metrics.every=5"]
    return job(folder, command, nproc=nproc, checkpoint={"graceSeconds": 60}, **spec)


def test_the_demo_loses_a_rank_and_finishes_from_its_checkpoint(new_run: NewRun) -> None:
    run = new_run(ROOT / "examples" / "01-recover" / "job.yaml", "--inject", "kill:rank=3,step=40")
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["phase"], report["round"]) == ("Complete", 2)
    assert (report["restarts"]["total"], report["restarts"]["charged"]) == (1, 1)
    assert report["progress"]["step"] == 120
    # Saves are every 10 steps; the kill comes at step 40 or little later.
    assert report["resumedFromStep"] in range(30, 71, 10)
    assert report["lastCheckpoint"]["step"] == 120
    assert report["lastLoss"] < 3.0 < report["firstLoss"]
    incident = report["incidents"][0]
    assert (incident["signal"], incident["rank"], incident["nodeRank"]) == ("SIGKILL", 3, 1)
    assert incident["resumedStep"] == report["resumedFromStep"]
    assert incident["stepsLost"] == incident["progressStep"] - report["resumedFromStep"]
    assert ledger_sums(report)


def losses_of(run: Run) -> dict[int, str]:
    """The loss of every step as its log shows it, the last telling of each."""
    logs = "".join(path.read_text() for path in sorted((run.workdir / "logs").iterdir()))
    return {int(step): loss for step, loss in re.findall(r"step (\d+)/\d+  loss ([\d.]+)", logs)}


def test_a_rank_that_stands_still_is_named_and_the_job_ends_with_the_same_losses(
    tmp_path: Path, new_run: NewRun
) -> None:
    calm = new_run(training(tmp_path, 60), "--workdir", str(tmp_path / "calm"))
    assert calm.finish() == 0, calm.output
    calm.workdir = tmp_path / "calm"
    manifest = training(tmp_path, 60, failurePolicy={"hangSeconds": 4})
    run = new_run(manifest, "--inject", "hang:rank=1,step=20")
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["phase"], report["round"]) == ("Complete", 2)
    (incident,) = report["incidents"]
    assert (incident["class"], incident["rank"], incident["nodeRank"]) == ("Hang", 1, 1)
    assert "rank 1 on" in incident["message"] and "stopped by a signal" in incident["message"]
    # The other rank's own words: the collective in which it waits for the stopped one.
    assert any("rank 0" in line and "waits in gloo:" in line for line in incident["logLines"])
    assert incident["stageSeconds"]["detection"] >= 4
    assert ledger_sums(report)
    assert losses_of(run) == losses_of(calm) and len(losses_of(run)) == 12


def test_a_bad_configuration_is_not_tried_again_whichever_node_says_so_first(
    tmp_path: Path, new_run: NewRun
) -> None:
    run = new_run(job(tmp_path, ["python", "-m", "rerail_trainer", "--train.steps=many"], nodes=3))
    assert run.finish() == 1, run.output
    report = run.report
    assert (report["reason"], report["round"], report["restarts"]["total"]) == ("UserError", 1, 0)
    assert report["incidents"][0]["exitCode"] == 64


def test_ctrl_c_commits_a_checkpoint_and_the_next_run_goes_on_from_it(
    tmp_path: Path, new_run: NewRun
) -> None:
    manifest = training(tmp_path, 400)
    run = new_run(manifest)
    run.until(lambda: run.last_step() > 0, "a step")
    run.process.send_signal(signal.SIGINT)
    assert run.finish(120) == 130, run.output
    first = run.report
    saved = first["lastCheckpoint"]["step"]
    assert saved is not None and saved == first["progress"]["step"]

    shorter = new_run(manifest)
    shorter.until(lambda: shorter.last_step() > saved, "a further step")
    shorter.process.send_signal(signal.SIGINT)
    assert shorter.finish(120) == 130, shorter.output
    second = shorter.report
    assert second["uid"] == first["uid"]
    assert second["resumedFromStep"] == saved
    assert second["progress"]["step"] > saved
    assert second["restarts"]["charged"] == 0
    assert ledger_sums(second)


def test_a_stopped_pod_saves_and_nobody_is_charged(tmp_path: Path, new_run: NewRun) -> None:
    run = new_run(training(tmp_path, 40), "--inject", "stop:node=1,step=12")
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["restarts"]["total"], report["restarts"]["charged"]) == (1, 0)
    incident = report["incidents"][0]
    assert incident["class"] == "Preemption"
    assert report["resumedFromStep"] >= 10
    assert report["progress"]["step"] == 40
    assert ledger_sums(report)


def test_a_plain_pytorch_script_is_ranked_restarted_and_reported(new_run: NewRun) -> None:
    run = new_run(ROOT / "examples" / "02-plain-pytorch" / "job.yaml", "--inject", "kill:rank=1,step=0")
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["phase"], report["round"]) == ("Complete", 2)
    assert report["progress"]["step"] is None
    incident = report["incidents"][0]
    assert (incident["signal"], incident["rank"]) == ("SIGKILL", 1)


def test_torchrun_starts_the_ranks_of_each_node(new_run: NewRun) -> None:
    run = new_run(ROOT / "examples" / "03-torchrun" / "job.yaml", "--inject", "kill:rank=3,step=0")
    assert run.finish() == 0, run.output
    report = run.report
    assert (report["phase"], report["round"]) == ("Complete", 2)
    # The killed rank is found in torchrun's error file, not torchrun's own exit code.
    incident = report["incidents"][0]
    assert (incident["signal"], incident["nodeRank"]) == ("SIGKILL", 1)
    logs = "".join(path.read_text() for path in (run.workdir / "logs").iterdir())
    for rank in range(4):
        assert f"rank {rank}" in logs


def test_a_told_interval_takes_the_place_of_the_programs_own_and_what_saves_cost_is_measured(
    tmp_path: Path, new_run: NewRun
) -> None:
    command = ["python", "-m", "rerail_trainer", "--preset", "tiny", "--train.steps=100000"]
    command += ["--checkpoint.every_steps=100000", "--metrics.every=5", "--optim.horizon_steps=1000"]
    run = new_run(job(tmp_path, command, checkpoint={"graceSeconds": 60, "interval": 2}))
    run.until(lambda: len(saves(run)) >= 3, "three saves")
    run.process.send_signal(signal.SIGINT)
    assert run.finish(120) == 130, run.output
    report = run.report
    assert report["lastCheckpoint"]["step"] == report["progress"]["step"]
    assert report["ledger"]["checkpoints"] >= 3
    assert 0 < report["ledger"]["lostSeconds"]["checkpointStall"] < report["ledger"]["productiveSeconds"]
    assert ledger_sums(report)


def saves(run: Run) -> set[str]:
    """Steps that its lines for people name as saved."""
    logs = run.workdir / "logs"
    return set(re.findall(r"saved ([1-9]\d*)", "".join(path.read_text() for path in logs.glob("*"))))

"""`rerail run` with the real trainer: a restart out of the parked interpreter leaves no trace in the training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.local.runs import Run, job, ledger_sums

pytestmark = [pytest.mark.local, pytest.mark.trainer, pytest.mark.timeout(400)]


def test_losses_after_a_warm_restart_are_bit_for_bit_those_of_a_cold_run_without_one(
    tmp_path: Path, new_run: Callable[..., Run]
) -> None:
    losses = {}
    for warm, options in (("Never", ()), ("Auto", ("--inject", "kill:rank=1,step=11"))):
        folder = tmp_path / warm
        folder.mkdir()
        command = ["python", "-m", "rerail_trainer", "--preset", "tiny", "--train.steps=60"]
        command += ["--checkpoint.every_steps=5", f"--metrics.jsonl={folder}/steps.jsonl"]
        run = new_run(
            job(folder, command, nodes=1, nproc=2, warmStart=warm),
            "--workdir",
            str(folder / "work"),
            *options,
        )
        assert run.finish() == 0, run.output
        lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        losses[warm] = {line["step"]: line["loss"] for line in lines if "loss" in line}
        report = run.report
        logs = "".join(path.read_text() for path in (folder / "work" / "logs").iterdir())
    assert losses["Auto"] == losses["Never"] and set(losses["Auto"]) == set(range(1, 61))
    # The kill comes when step 11 is heard of: on a quick machine a checkpoint or two later.
    assert report["round"] == 2 and report["resumedFromStep"] in range(5, 60, 5)
    assert ledger_sums(report)
    assert logs.count("warm start: imported") == 1 and "cold start" not in logs and "given up" not in logs

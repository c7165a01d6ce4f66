"""The shipped example takes raw text to an exported model that others can open, through a kill in the middle."""

import json
import re
from pathlib import Path

import pytest

from .runs import ROOT, Run

pytestmark = [pytest.mark.local, pytest.mark.trainer, pytest.mark.timeout(400)]

EXAMPLE = ROOT / "examples" / "04-text-to-model" / "job.yaml"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of the example, with rank 1 killed at step 40."""
    run = Run(EXAMPLE, tmp_path_factory.mktemp("example"), "--inject", "kill:rank=1,step=40")
    assert run.finish(seconds=240) == 0, run.output
    assert run.report["phase"] == "Complete"
    assert [incident["signal"] for incident in run.report["incidents"]] == ["SIGKILL"]
    return run.workdir


def log(work: Path) -> str:
    return "".join(path.read_text() for path in sorted((work / "logs").glob("*.log")))


def test_it_goes_on_from_a_checkpoint_and_does_not_prepare_the_corpus_twice(work: Path) -> None:
    assert re.search(r"resumed from step [34]0", log(work))
    assert log(work).count("is prepared already: nothing to do") == 1


def test_the_loss_falls_through_the_kill(work: Path) -> None:
    lines = [json.loads(line) for line in (work / "checkpoints" / "steps.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert sorted(losses) == list(range(1, 121))
    assert losses[120] < 0.6 * losses[1]


def test_it_measures_held_out_text_and_speaks(work: Path) -> None:
    bits = re.search(r"bits per byte\s+([\d.]+)", log(work))
    assert bits is not None
    assert 1.0 < float(bits.group(1)) < 4.0  # eight would be knowing nothing
    assert re.search(r"The import statement\S*\s", log(work))


def test_what_it_exports_opens_in_transformers_with_the_same_logits(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rerail_trainer.weights import open_model

    model = work / "checkpoints" / "model"
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(model)("The import statement", return_tensors="pt")["input_ids"]
    assert tokens.tolist() == [list(b"The import statement")]
    ours = open_model(str(work / "checkpoints" / "steps"), torch.device("cpu")).model
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)

"""Evaluation during training: right, the same in every layout, and without a trace in the training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rerail_trainer.__main__ import main
from rerail_trainer.data.corpus import open_prepared
from rerail_trainer.weights import open_model

from .gang import Gang, Yard

EVAL = ("--train.eval_every=2", "--train.eval_sequences=5", "--train.steps=4", "--optim.horizon_steps=8")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder, a third of whose documents are held out."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"text": f"{n}: to be or not to be, that is question {n}. " * 4} for n in range(120)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "prepare",
        str(folder / "text.jsonl"),
        "--out",
        str(folder / "out"),
        "--held-out=0.3",
        "--workers=1",
    ]
    assert main(words) == 0
    return folder / "out"


def on(corpus: Path, *words: str) -> tuple[str, ...]:
    return ("--data.source=shards", f"--data.path={corpus}", *words)


def readings(gang: Gang) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (gang.folder / "steps.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line.get("event") == "eval"}


LIVELY = {
    "dropout": (1, ("--model.dropout=0.2",)),
    "two replicas with dropout": (2, ("--model.dropout=0.2",)),
    "two shards with dropout": (2, ("--model.dropout=0.2", "--parallel.shard=2")),
    "experts with a bias": (2, ("--model.experts=4", "--model.balance_bias=0.01", "--parallel.expert=2")),
}


@pytest.mark.parametrize("case", LIVELY)
def test_training_is_bit_for_bit_the_same_with_and_without_evaluation(
    yard: Yard, corpus: Path, case: str
) -> None:
    ranks, words = LIVELY[case]
    words = on(corpus, *words, "--checkpoint.dir=")
    without = yard.run(*words, "--train.steps=4", "--optim.horizon_steps=8", ranks=ranks)
    evaluated = yard.run(*words, *EVAL, ranks=ranks)
    assert evaluated.losses() == without.losses()
    assert len(evaluated.losses()) == 4
    assert sorted(readings(evaluated)) == [2, 4]


LAYOUTS = {
    "two replicas": (2, ()),
    "four ranks, three of which make their last pass for nothing": (4, ("--batch.micro_batch=1",)),
    "two shards": (2, ("--parallel.shard=2",)),
    "two tensor ranks": (2, ("--parallel.tensor=2",)),
}


@pytest.fixture(scope="module")
def alone(zygote: Any, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Yard, Gang]:
    yard = Yard(zygote, tmp_path_factory.mktemp("alone"))
    return yard, yard.run(*on(corpus, *EVAL))


@pytest.mark.parametrize("case", LAYOUTS)
def test_every_layout_reads_the_same_held_out_loss(
    yard: Yard, corpus: Path, alone: tuple[Yard, Gang], case: str
) -> None:
    ranks, words = LAYOUTS[case]
    found, expected = readings(yard.run(*on(corpus, *words, *EVAL), ranks=ranks)), readings(alone[1])
    for step in (2, 4):
        assert found[step]["eval_loss"] == pytest.approx(expected[step]["eval_loss"], abs=2e-5)
        assert found[step]["eval_bits_per_byte"] == pytest.approx(
            expected[step]["eval_bits_per_byte"], abs=5e-5
        )


def test_the_reading_is_the_loss_of_the_saved_model_on_the_held_out_windows(
    corpus: Path, alone: tuple[Yard, Gang]
) -> None:
    yard, gang = alone
    held_out = open_prepared(corpus, held_out=True)
    windows = (held_out.tokens - 1) // 16
    model = open_model(str(yard.checkpoints), torch.device("cpu"), step=4).model
    total, size = 0.0, 0
    for index in range(5):
        row = held_out.slice(index * windows // 5 * 16, 17)
        total += float(model(torch.from_numpy(row[None, :-1]), torch.from_numpy(row[None, 1:])))
        size += int((row[1:] != held_out.end).sum())
    reading = readings(gang)[4]
    assert reading["eval_loss"] == pytest.approx(total / (5 * 16), rel=1e-5)
    assert reading["eval_bits_per_byte"] == pytest.approx(total / size / 0.6931471805599453, rel=1e-5)


def test_an_evaluation_is_told_in_progress_and_to_people(alone: tuple[Yard, Gang]) -> None:
    gang = alone[1]
    phases = [line["phase"] for line in gang.progress()]
    assert phases.count("eval") == 2
    assert "train" in phases[phases.index("eval") :], "training is announced again"
    assert "held-out loss" in gang.output()
    assert "bits per byte" in gang.output()


def test_fine_tuning_is_evaluated_on_conversations_that_it_does_not_see(yard: Yard) -> None:
    for name in ("train", "held-out"):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"{n}"},
                    {"role": "assistant", "content": f"{n} {name}"},
                ]
            }
            for n in range(40)
        ]
        (yard.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--data.source=chat", "--train.stage=sft", f"--data.path={yard.folder}/train.jsonl")
    gang = yard.run(*words, f"--data.held_out={yard.folder}/held-out.jsonl", *EVAL, "--model.seq_len=64")
    found = readings(gang)
    assert 0 < found[4]["eval_loss"] < 6
    assert found[4]["eval_bits_per_byte"] is None
    refused = yard.start(*words, *EVAL, "--model.seq_len=64")
    assert refused.wait() == [64]
    assert "data.held_out" in refused.output()


def test_without_held_out_text_the_start_says_how_to_come_by_it(yard: Yard, tmp_path: Path) -> None:
    gang = yard.start(*EVAL)
    assert gang.wait() == [64]
    assert "prepare --held-out" in gang.output()
    (tmp_path / "text.txt").write_text("to be or not to be " * 50)
    assert main(["prepare", str(tmp_path / "text.txt"), "--out", str(tmp_path / "plain"), "--workers=1"]) == 0
    gang = yard.start(*on(tmp_path / "plain", *EVAL))
    assert gang.wait() == [64]
    assert "was prepared without" in gang.output()

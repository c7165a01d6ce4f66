"""`eval` on checkpoints and files: what it tells, and what it refuses in one line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerail_trainer.__main__ import main
from rerail_trainer.data.tokenizer import open_tokenizer
from rerail_trainer.evaluate.documents import documents_of

from .gang import PYTHONPATH, Yard, Zygote, clean_environment
from .models import single_threaded


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


@pytest.fixture(scope="module")
def checkpoints(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on bytes."""
    yard = Yard(zygote, tmp_path_factory.mktemp("trained"))
    yard.run("--model.seq_len=32")
    return yard.checkpoints


def test_eval_tells_held_out_loss_and_choices_in_one_object(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, items, out = tmp_path / "text.txt", tmp_path / "items.jsonl", tmp_path / "out.jsonl"
    text.write_text("The with statement is used to wrap the execution of a block. " * 3)
    rows = [
        {"question": f"{n}?", "choices": ["e", "zq"], "answer": n % 2, "category": "ab"[n % 2]}
        for n in range(4)
    ]
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", str(checkpoints), f"--held-out={text}", f"--choices={items}"]
    assert main([*words, f"--out={out}", "--json", "--few-shot=1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["held_out"]["bytes"] == len(text.read_text())
    # Eight steps teach at least which bytes are letters: log2(257) = 8.0 bits say nothing was learnt.
    assert 2 < report["held_out"]["bits_per_byte"] < 8
    assert (report["held_out"]["window"], report["held_out"]["stride"]) == (32, 16)
    assert report["choices"]["items"] == 4
    assert set(report["choices"]["categories"]) == {"a", "b"}
    told = [json.loads(line) for line in out.read_text().splitlines()]
    right = sum(row["chosen"] == row["answer"] for row in told)
    assert report["choices"]["accuracy"] == right / 4
    assert main(words) == 0
    assert "bits per byte" in capsys.readouterr().out


def prepare(folder: Path, *words: str) -> Path:
    """A prepared folder, half of whose 40 documents are held out, beside their text."""
    rows = [{"text": f"{n}: the naïve question is whether {n} is to be or not to be."} for n in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "prepared"
    assert (
        main(["prepare", str(folder / "text.jsonl"), f"--out={out}", "--held-out=0.5", "--workers=1", *words])
        == 0
    )
    return out


def test_the_held_out_split_is_measured_by_its_documents_and_bytes(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(tmp_path)
    manifest = json.loads((prepared / "corpus.json").read_text())["held_out"]
    capsys.readouterr()
    assert main(["eval", str(checkpoints), f"--held-out={prepared}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["held_out"]
    assert (found["documents"], found["bytes"]) == (manifest["documents"], manifest["bytes"])
    assert found["tokens"] == manifest["tokens"] - manifest["documents"], "end tokens are no text"


def test_a_bpe_split_has_the_bytes_of_its_text(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, "--train-bpe=280")
    manifest = json.loads((prepared / "corpus.json").read_text())["held_out"]
    tokenizer = open_tokenizer(str(prepared / "tokenizer.json"))
    found = list(documents_of(str(prepared), "text", tokenizer))
    assert sum(document.size for document in found) == manifest["bytes"]
    assert sum(len(document.tokens) for document in found) < manifest["bytes"]
    texts = {tokenizer.decode(document.tokens.tolist()) for document in found}
    assert texts < {json.loads(line)["text"] for line in (tmp_path / "text.jsonl").read_text().splitlines()}


def test_a_split_of_another_tokenizer_is_refused(
    checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(tmp_path, "--train-bpe=280")
    capsys.readouterr()
    assert main(["eval", str(checkpoints), f"--held-out={prepared}"]) == 64
    told = capsys.readouterr().err
    assert "was prepared with the tokenizer tokenizer.json" in told
    assert "the model has bytes" in told


@pytest.mark.parametrize("command", ["eval", "sample", "compare"])
def test_help_comes_without_waiting_for_torch(command: str) -> None:
    program = (
        "import sys; from rerail_trainer.__main__ import main\n"
        f"try: main(['{command}', '--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean_environment(), "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m rerail_trainer {command}")


COMPLAINTS = {
    "nothing asked": ([], "eval needs --held-out DATA, --choices FILE.jsonl or --lm-eval TASK"),
    "both": (["--held-out=x", "--lm-eval=y"], "--lm-eval is a program of its own"),
    "a template without a question": (["--choices=x", "--template=Q:"], "--template must hold {question}"),
    "no such text": (["--held-out=/nowhere"], "/nowhere holds no file"),
    "no such items": (["--choices=/nowhere.jsonl"], "/nowhere.jsonl cannot be read: No such file"),
    "a stride too far": ([f"--held-out={__file__}", "--stride=33"], "--stride 33 must be at most"),
    "an odd number": (["--held-out=x", "--max-tokens=many"], "argument --max-tokens: invalid int value"),
}


@pytest.mark.parametrize("case", COMPLAINTS)
def test_what_cannot_be_measured_is_told_in_one_line(
    checkpoints: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, complaint = COMPLAINTS[case]
    assert main(["eval", str(checkpoints), "--tokenizer=bytes", *words]) == 64
    told = capsys.readouterr()
    assert complaint in told.err
    assert len(told.err.splitlines()) == 1

"""prepare refuses in one line what it cannot read, and says where it stands."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rerail_trainer.data.corpus import open_prepared

from .texts import prepare, split

# What is wrong with the input.

GOOD = b'{"text": "good"}\n'
INVALID = {
    "a record that is no JSON": (b'{"text": "half\n', "line 3: no JSON", 0),
    "a record without the field": (
        b'{"body": "b", "id": 1}\n',
        "line 3: has no 'text' (--field); it has body, id",
        0,
    ),
    "a field that is no text": (b'{"text": 5}\n', "line 3: 'text' is no text but int", 0),
    "a record that is no object": (b"[1]\n", "line 3: is no JSON object", 0),
    "half a surrogate pair": (b'{"text": "a\\ud800b"}\n', "half a surrogate pair", 1),
    "bytes that are no UTF-8": (b'{"text": "a\xffb"}\n', "line 3: byte 12 of the line is no UTF-8", 1),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_records_are_refused_with_their_line_or_left_out_and_counted(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, message, mended = INVALID[case]
    (tmp_path / "a.jsonl").write_bytes(GOOD * 2 + bad + GOOD)
    words = (tmp_path / "a.jsonl", "--workers", "1", "--chunk-bytes", "20")
    assert prepare(*words, "--out", tmp_path / "refused") == 64
    complaint = capsys.readouterr().err
    assert f"{tmp_path}/a.jsonl, " in complaint
    assert message in complaint
    assert complaint.count("\n") == 1
    assert prepare(*words, "--out", tmp_path / "skipped", "--invalid", "skip") == 0
    assert split(open_prepared(tmp_path / "skipped")) == ["good"] * 3
    assert json.loads((tmp_path / "skipped" / "corpus.json").read_text())["skipped"] == 1
    assert prepare(*words, "--out", tmp_path / "mended", "--invalid", "replace") == 0
    assert split(open_prepared(tmp_path / "mended")) == ["good"] * 2 + ["a\ufffdb"] * mended + ["good"]


def test_text_that_is_no_utf8_is_refused_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_bytes(b"plain\n" * 10 + b"\xff\n" + b"plain\n" * 10)
    words = (tmp_path / "a.txt", "--workers", "1", "--chunk-bytes", "20")
    assert prepare(*words, "--out", tmp_path / "refused") == 64
    assert f"{tmp_path}/a.txt: byte 60 is no UTF-8" in capsys.readouterr().err
    assert prepare(*words, "--out", tmp_path / "mended", "--invalid", "replace") == 0
    assert split(open_prepared(tmp_path / "mended")) == ["plain\n" * 10 + "\ufffd\n" + "plain\n" * 10]


REFUSED = {
    "nothing there": (["/no/such/*.txt", "--out", "out"], "/no/such/*.txt names no file to read"),
    "no out": (["a.jsonl"], "prepare needs INPUT ... --out FOLDER"),
    "no input": (["--out", "out"], "prepare needs INPUT ... --out FOLDER"),
    "a share beyond 1": (["a.jsonl", "--out", "out", "--held-out", "1"], "must be at least 0 and below 1"),
    "shards of nothing": (["a.jsonl", "--out", "out", "--shard-tokens", "0"], "--shard-tokens 0 must lie"),
    "no workers": (["a.jsonl", "--out", "out", "--workers", "0"], "--workers 0 must be at least 1"),
    "two tokenizers": (
        ["a.jsonl", "--out", "out", "--tokenizer", "t", "--train-bpe", "999"],
        "exclude each other",
    ),
    "a vocabulary below the bytes": (
        ["a.jsonl", "--out", "out", "--train-bpe", "99"],
        "must be at least 260",
    ),
    "a tokenizer that is not there": (
        ["a.jsonl", "--out", "out", "--tokenizer", "t"],
        "tokenizer t cannot be read",
    ),
    "a word it does not know": (["a.jsonl", "--cut", "5"], "--help tells more"),
    "only empty documents": (["empty.jsonl", "--out", "out"], "there is no document in empty.jsonl"),
    "parquet that is none": (["a.parquet", "--out", "out"], "a.parquet cannot be read as parquet"),
    "a column that is not there": (
        ["b.parquet", "--out", "out"],
        "b.parquet has no column 'text' (--field); it has n",
    ),
    "a column of numbers": (
        ["b.parquet", "--out", "out", "--field", "n"],
        "row 1 of row group 0: 'n' is no text but int",
    ),
    "an archive that is none": (["a.jsonl.gz", "--out", "out"], "a.jsonl.gz cannot be read"),
    "an out that is a file": (["a.jsonl", "--out", "empty.jsonl"], "empty.jsonl: File exists"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_bytes(GOOD)
    Path("empty.jsonl").write_bytes(b'{"text": ""}\n\n')
    Path("a.parquet").write_bytes(b"no parquet")
    Path("a.jsonl.gz").write_bytes(b"no archive")
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2]}), "b.parquet")
    words, message = REFUSED[case]
    assert prepare(*words) == 64
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1


def test_a_worker_tells_what_is_wrong_as_one_process_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD * 50 + b"{\n" + GOOD * 50)
    assert (
        prepare(tmp_path / "a.jsonl", "--out", tmp_path / "out", "--workers", "2", "--chunk-bytes", "99")
        == 64
    )
    assert "a.jsonl, line 51: no JSON" in capsys.readouterr().err
    # What was done is kept: the mended input is another corpus and says so.
    assert list((tmp_path / "out" / ".work").glob("chunk-*.json"))

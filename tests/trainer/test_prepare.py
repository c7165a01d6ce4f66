"""prepare: raw text becomes the same shards whoever works on it and however often it is killed."""

import contextlib
import fcntl
import gzip
import io
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerail_trainer.__main__ import main
from rerail_trainer.config import DataConfig
from rerail_trainer.data.bar import Bar
from rerail_trainer.data.corpus import Corpus, encode, open_corpus, open_prepared
from rerail_trainer.data.inputs import Invalids, Reading, chunks_of, documents_of, find_inputs
from rerail_trainer.data.tokenizer import END_OF_DOCUMENT, open_tokenizer

from . import vocabularies
from .gang import DEADLINE_SECONDS, PYTHONPATH, ROOT, Yard, clean_environment

DOCUMENTS = [
    f"Document {index}: {'the quick brown fox jumps over the lazy dog, again. ' * (index % 7)}end {index * index}\n"
    for index in range(60)
]


def lines_file(folder: Path, documents: list[str] = DOCUMENTS, field: str = "text") -> Path:
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": 1, field: text}) + "\n" for text in documents))
    return path


def prepare(*words: str | Path) -> int:
    return main(["prepare", *map(str, words)])


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a prepared folder but the plan, which names the inputs' times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".plan.json"}


def all_tokens(corpus: Corpus) -> list[int]:
    return np.concatenate(corpus.parts).tolist()


def split(corpus: Corpus) -> list[str]:
    text = bytes(token if token < 256 else 0 for token in all_tokens(corpus)).decode()
    return text.split("\0")[:-1]


# What goes in.


def text_files(folder: Path) -> list[str]:
    (folder / "texts" / "below").mkdir(parents=True)
    for index, text in enumerate(DOCUMENTS):
        (folder / "texts" / ("below" if index % 2 else ".") / f"{index:03}.txt").write_text(text)
    return [
        str(folder / "texts" / ("below" if index % 2 else "") / f"{index:03}.txt")
        for index in range(len(DOCUMENTS))
    ]


def one_text_file(folder: Path) -> list[str]:
    (folder / "all.txt").write_text("\n<|doc|>\n".join(text.strip("\n") for text in DOCUMENTS))
    return [str(folder / "all.txt"), "--separator", "\\n<|doc|>\\n"]


def parquet_file(folder: Path) -> list[str]:
    table = pyarrow.table({"body": [*DOCUMENTS[:30], None, "", *DOCUMENTS[30:]]})
    pyarrow.parquet.write_table(table, folder / "documents.parquet", row_group_size=7)
    return [str(folder / "documents.parquet"), "--field", "body"]


def packed_lines(folder: Path) -> list[str]:
    with gzip.open(folder / "documents.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return [str(folder / "documents.jsonl.gz")]


FORMS = {
    "JSON lines": lambda folder: [str(lines_file(folder))],
    "compressed JSON lines": packed_lines,
    "text files": text_files,
    "one text file with separators": one_text_file,
    "parquet": parquet_file,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_documents_give_the_same_tokens_in_any_form(form: str, tmp_path: Path) -> None:
    words = FORMS[form](tmp_path)
    assert prepare(*words, "--out", tmp_path / "out", "--workers", "1", "--chunk-bytes", "500") == 0
    documents = [text.strip("\n") for text in DOCUMENTS] if "separators" in form else DOCUMENTS
    corpus = open_corpus(DataConfig(source="shards", path=str(tmp_path / "out")))
    assert all_tokens(corpus) == encode([text.encode() for text in documents]).tolist()
    manifest = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert manifest["train"]["documents"] == len(documents)
    assert manifest["train"]["bytes"] == sum(len(text.encode()) for text in documents)
    assert (corpus.vocab, corpus.end, corpus.tokenizer) == (257, END_OF_DOCUMENT, "bytes")


@given(
    parts=st.lists(st.text(alphabet="aé-\n", max_size=12), min_size=1, max_size=12),
    limit=st.integers(1, 40),
    separator=st.sampled_from(["", "\n", "\n\n", "--x", "é-"]),
)
@settings(max_examples=150, deadline=None)
def test_pieces_tile_a_text_file_wherever_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], limit: int, separator: str
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    raw = (separator or "\n").join(parts)
    (folder / "a.txt").write_bytes(raw.encode())
    read = []
    for chunk in chunks_of(find_inputs([str(folder)]), limit):
        for piece in chunk:
            read += documents_of(piece, Reading(separator=separator), Invalids("refuse"))
    if separator:
        wanted = [part.strip("\r\n") for part in raw.split(separator)]
        assert [one.text for one in read] == [text for text in wanted if text]
    else:
        assert "".join(one.text for one in read) == raw
        assert [one.ends for one in read] == [False] * (len(read) - 1) + [True] * bool(read)
        assert {one.head for one in read} <= {raw.encode()}


def test_the_number_of_workers_and_the_shard_size_change_no_token(tmp_path: Path) -> None:
    lines_file(tmp_path)
    words = (tmp_path / "documents.jsonl", "--held-out", "0.2", "--chunk-bytes", "700")
    for workers in ("1", "2", "3"):
        prepare(*words, "--out", tmp_path / workers, "--workers", workers, "--shard-tokens", "2000")
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")
    prepare(*words, "--out", tmp_path / "whole", "--workers", "1")
    for held_out in (False, True):
        cut, whole = (open_prepared(tmp_path / name, held_out) for name in ("1", "whole"))
        assert all_tokens(cut) == all_tokens(whole)
    assert {len(part) for part in open_prepared(tmp_path / "1").parts[:-1]} == {2000}


def test_a_held_out_document_is_never_trained_on_and_copies_stay_together(tmp_path: Path) -> None:
    copies = [text for text in DOCUMENTS for _ in range(3)]
    prepare(lines_file(tmp_path, copies), "--out", tmp_path / "out", "--held-out", "0.3", "--workers", "1")
    train, held_out = (set(split(open_prepared(tmp_path / "out", side))) for side in (False, True))
    assert not train & held_out
    assert train | held_out == set(DOCUMENTS)
    assert 0.15 < len(held_out) / len(DOCUMENTS) < 0.45
    other = tmp_path / "other"
    prepare(
        *text_files(tmp_path), "--out", other, "--held-out", "0.3", "--chunk-bytes", "99", "--workers", "1"
    )
    assert set(split(open_prepared(other, held_out=True))) == held_out


# A vocabulary of its own.


def test_a_trained_vocabulary_is_the_same_each_time_and_knows_nothing_of_what_is_held_out(
    tmp_path: Path,
) -> None:
    documents = [*DOCUMENTS, *(f"{text} zyxwvu zyxwvu" for text in DOCUMENTS)]
    words = (lines_file(tmp_path, documents), "--train-bpe", "320", "--held-out", "0.3", "--workers", "1")
    for name in ("first", "second"):
        assert prepare(*words, "--out", tmp_path / name) == 0
    assert content(tmp_path / "first") == content(tmp_path / "second")
    tokenizer = open_tokenizer(str(tmp_path / "first"))
    assert tokenizer.vocab == 320
    held_out = open_prepared(tmp_path / "first", held_out=True)
    assert held_out.tokenizer == str(tmp_path / "first" / "tokenizer.json")
    ids = all_tokens(held_out)
    documents_back = [
        tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(borders(ids, tokenizer.end))
    ]
    assert set(documents_back) < set(documents)
    trained_on = [text for text in documents if text not in documents_back]
    again = tmp_path / "again"
    again.mkdir()
    prepare(lines_file(again, trained_on), "--train-bpe", "320", "--workers", "1", "--out", again / "out")
    assert (again / "out" / "tokenizer.json").read_bytes() == (
        tmp_path / "first" / "tokenizer.json"
    ).read_bytes()


def borders(ids: list[int], end: int) -> list[int]:
    return [-1, *(place for place, token in enumerate(ids) if token == end)]


def test_a_given_tokenizer_travels_with_the_corpus_and_a_wide_vocabulary_takes_wide_shards(
    tmp_path: Path,
) -> None:
    for name, make, dtype in (
        ("narrow", vocabularies.byte_level, np.uint16),
        ("wide", vocabularies.wide, np.uint32),
    ):
        file = vocabularies.with_config(make(tmp_path / name), chat_template="{{ messages }}")
        out = tmp_path / f"{name}-out"
        assert prepare(lines_file(tmp_path), "--tokenizer", file, "--out", out, "--workers", "1") == 0
        assert (out / "tokenizer.json").read_bytes() == file.read_bytes()
        assert (out / "tokenizer_config.json").exists()
        tokenizer, corpus = open_tokenizer(str(out)), open_prepared(out)
        assert corpus.dtype == dtype
        ids = all_tokens(corpus)
        places = borders(ids, tokenizer.end)
        assert [tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(places)] == DOCUMENTS


# Killed, and gone on.


def start(*words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    environment = {**clean_environment(), "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-m", "rerail_trainer", "prepare", *map(str, words)]
    return subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, text=True)


def until(holds: Any, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < end
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def much(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Input for a second or so of work, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("much")
    lines_file(folder, DOCUMENTS * 30)
    assert prepare(folder / "documents.jsonl", *MUCH, "--out", folder / "undisturbed", "--workers", "1") == 0
    return folder, content(folder / "undisturbed")


MUCH = ("--train-bpe", "300", "--held-out", "0.1", "--chunk-bytes", "6000", "--shard-tokens", "2000")


def test_killed_while_encoding_it_goes_on_and_its_workers_end_with_it(
    much: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    folder, undisturbed = much
    words, out = (folder / "documents.jsonl", *MUCH, "--out", "out"), tmp_path / "out"
    process = start(*words, "--workers", "2", cwd=tmp_path)
    until(lambda: len(list(out.glob(".work/chunk-*.json"))) >= 3, process)
    workers = [pid for pid in children_of(process.pid) if alive(pid)]
    process.kill()
    process.communicate()
    assert len(workers) >= 2
    end = time.monotonic() + DEADLINE_SECONDS
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.01)
    done = len(list(out.glob(".work/chunk-*.json")))
    second = start(*words, "--workers", "1", cwd=tmp_path)
    output, _ = second.communicate(timeout=DEADLINE_SECONDS)
    assert second.returncode == 0
    assert f"going on: {done} of " in output
    assert content(out) == undisturbed


def test_killed_while_joining_it_goes_on(much: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    folder, undisturbed = much
    words, out = (folder / "documents.jsonl", *MUCH, "--out", "out", "--workers", "1"), tmp_path / "out"
    process = start(*words, cwd=tmp_path)
    until(lambda: len(list(out.glob("train-*.bin"))) >= 5, process)
    process.kill()
    process.communicate()
    assert not (out / "corpus.json").exists()
    before = {path.name: path.stat().st_ino for path in out.glob("train-*.bin")}
    second = start(*words, cwd=tmp_path)
    second.communicate(timeout=DEADLINE_SECONDS)
    assert second.returncode == 0
    assert content(out) == undisturbed
    # Shards that were whole are still the same files.
    assert {name: (out / name).stat().st_ino for name in before} == before


def test_a_finished_corpus_is_left_alone_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = lines_file(tmp_path), tmp_path / "out"
    prepare(path, "--out", out, "--workers", "1")
    before = {file: file.stat().st_ino for file in out.iterdir()}
    assert prepare(path, "--out", out, "--workers", "2") == 0
    assert "is prepared already: nothing to do" in capsys.readouterr().out
    assert prepare(path, "--out", out, "--held-out", "0.5") == 64
    assert "holds another corpus: held_out differ; choose another --out" in capsys.readouterr().err
    path.write_text(path.read_text() + '{"text": "more"}\n')
    assert prepare(path, "--out", out) == 64
    assert "inputs differ" in capsys.readouterr().err
    assert {file: file.stat().st_ino for file in out.iterdir()} == before


def test_two_at_a_time_in_one_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out" / ".work").mkdir(parents=True)
    with (tmp_path / "out" / ".work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert prepare(lines_file(tmp_path), "--out", tmp_path / "out") == 64
    assert "another `prepare` is at work" in capsys.readouterr().err


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


# Read back, damaged and whole.


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    prepare(
        lines_file(tmp_path),
        "--out",
        tmp_path / "out",
        "--workers",
        "1",
        "--shard-tokens",
        "5000",
        "--held-out",
        "0.1",
    )
    return tmp_path / "out"


def test_verify_reads_every_file_and_names_the_damaged_one(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare("--verify", prepared) == 0
    files = len(list(prepared.glob("*.bin")))
    assert f"all {files} files are what corpus.json says" in capsys.readouterr().out
    shard = prepared / "train-00001.bin"
    raw = bytearray(shard.read_bytes())
    raw[-7] ^= 1
    shard.write_bytes(raw)
    assert prepare("--verify", prepared) == 83
    assert f"{shard} is not what corpus.json says" in capsys.readouterr().err
    assert prepare("--verify", prepared.parent) == 64
    assert "corpus.json cannot be read" in capsys.readouterr().err


def test_a_training_tells_a_damaged_corpus_by_its_shard(yard: Yard, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    prepare(lines_file(tmp_path), "--out", out, "--workers", "1", "--shard-tokens", "5000")
    words = ("--data.source=shards", f"--data.path={out}", "--train.steps=2")
    gang = yard.run(*words, "--data.verify=digests", ranks=2)
    assert "resumed" not in gang.output()

    def refused(*more: str) -> str:
        gang = yard.start(*words, *more)
        assert gang.wait() == [83]
        return gang.output()

    shard = out / "train-00001.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    assert f"{shard} is not what corpus.json says" in refused("--data.verify=digests")
    shard.write_bytes(whole[:-2])
    assert f"{shard} has {len(whole) - 2} bytes, its header says {len(whole)}" in refused()
    shard.write_bytes(whole[:500])
    assert f"{shard} is no token shard" in refused()
    shard.unlink()
    assert f"{shard} cannot be read: No such file or directory" in refused()
    shard.write_bytes(whole)
    manifest = out / "corpus.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"tokens": 5000', '"tokens": 5001', 1))
    assert "corpus.json does not fit its own digest" in refused()


def test_a_token_beyond_the_vocabulary_names_its_shard_and_place(yard: Yard, tmp_path: Path) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = (20240520, 1, 4096)
    for name, bad in (("a.bin", None), ("b.bin", 1234)):
        tokens = np.arange(4096, dtype="<u2") % 257
        if bad is not None:
            tokens[bad] = 60_000
        (tmp_path / name).write_bytes(header.tobytes() + tokens.tobytes())
    gang = yard.start("--data.source=shards", f"--data.path={tmp_path}/*.bin", "--train.steps=40")
    assert gang.wait() == [83]
    assert f"{tmp_path}/b.bin holds token 60000 at place 1234, model.vocab is 257" in gang.output()


def test_a_vocabulary_that_is_too_small_is_refused_before_the_first_step(yard: Yard, prepared: Path) -> None:
    gang = yard.start("--data.source=shards", f"--data.path={prepared}", "--model.vocab=200")
    assert gang.wait() == [64]
    assert "model.vocab=200 is too small for the tokenizer's 257 tokens" in gang.output()


def test_the_same_text_prepared_elsewhere_is_the_same_data(yard: Yard, tmp_path: Path) -> None:
    prepare(lines_file(tmp_path), "--out", tmp_path / "one", "--workers", "1")
    (tmp_path / "moved").mkdir()
    prepare(
        lines_file(tmp_path / "moved"),
        "--out",
        tmp_path / "two",
        "--workers",
        "2",
        "--chunk-bytes",
        str(8 << 20),
    )
    words = ("--data.source=shards", "--optim.horizon_steps=8")
    yard.run(*words, f"--data.path={tmp_path}/one", "--train.steps=4")
    rest = yard.run(*words, f"--data.path={tmp_path}/two")
    assert "resumed from step 4" in rest.output()


# How far it is.


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_and_a_log_sees_lines() -> None:
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        bar = Bar("encoding", 4_000_000, "bytes", stream)
        bar.found(1_000_000)
        bar.add(1_000_000)
        bar.close()
    assert terminal.getvalue().startswith("\rencoding  [############............]  50%  2.0M of 4.0M bytes")
    assert log.getvalue().startswith("encoding: 50%  2.0M of 4.0M bytes")
    assert "\r" not in log.getvalue()


def test_help_needs_neither_torch_nor_numpy_to_be_fast() -> None:
    command = "import sys; from rerail_trainer.__main__ import main\ntry: main(['prepare', '--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", command], env={**clean_environment(), "PYTHONPATH": PYTHONPATH},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False"
    assert "--held-out SHARE" in done.stdout

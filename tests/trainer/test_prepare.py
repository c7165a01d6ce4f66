"""prepare: raw text becomes the same shards whoever works on it."""

import io
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerail_trainer.config import DataConfig
from rerail_trainer.data.bar import Bar
from rerail_trainer.data.corpus import encode, open_corpus, open_prepared
from rerail_trainer.data.inputs import Invalids, Reading, chunks_of, documents_of, find_inputs
from rerail_trainer.data.tokenizer import END_OF_DOCUMENT, open_tokenizer

from . import vocabularies
from .gang import PYTHONPATH, ROOT, Yard, clean_environment
from .texts import DOCUMENTS, FORMS, all_tokens, content, lines_file, prepare, split, text_files


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
@settings(max_examples=150)
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


def test_a_share_so_small_that_no_document_is_held_out_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(*text_files(tmp_path), "--out", tmp_path / "out", "--held-out", "1e-9", "--workers", "1")
    assert f"held out: none of {len(DOCUMENTS)} documents at a share of 1e-09" in capsys.readouterr().out


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

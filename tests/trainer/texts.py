"""Documents in every form that `prepare` reads, and what it makes of them."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from rerail_trainer.__main__ import main
from rerail_trainer.data.corpus import Corpus

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

"""Held-out documents as tokens, with the bytes of text that they stand for. Torch-free."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rerail_api.contract import ExitCode
from rerail_trainer.data.corpus import Corpus, files_of, open_prepared
from rerail_trainer.data.manifest import MANIFEST_NAME, open_manifest
from rerail_trainer.data.tokenizer import Tokenizer
from rerail_trainer.failures import BadConfig, TrainerExit

from .lines import read_lines, read_text


@dataclass(frozen=True)
class Document:
    """tokens: without the end token; size: bytes of its UTF-8 text."""

    tokens: NDArray[np.integer[Any]]
    size: int


def documents_of(path: str, field: str, tokenizer: Tokenizer) -> Iterator[Document]:
    """Documents of a prepared folder's held-out split, of .jsonl files (text in `field`), or of text files.

    Raises BadConfig where the folder was prepared with another tokenizer, or nothing is there.
    """
    if (Path(path) / MANIFEST_NAME).is_file():
        return _prepared(Path(path), tokenizer)
    return _texts(path, field, tokenizer)


def _prepared(folder: Path, tokenizer: Tokenizer) -> Iterator[Document]:
    made_with = open_manifest(folder).tokenizer
    if made_with.digest != tokenizer.digest:
        raise BadConfig(
            f"{folder} was prepared with the tokenizer {made_with.name} ({made_with.digest[:12]}), the model "
            f"has {tokenizer.name} ({tokenizer.digest[:12]}): prepare it again, or name its text files"
        )
    sizes = tokenizer.byte_lengths()
    for tokens in split_at_ends(open_prepared(folder, held_out=True)):
        if int(tokens.max(initial=0)) >= len(sizes):
            raise TrainerExit(ExitCode.BAD_DATA_SHARD, f"{folder} holds tokens that its tokenizer has not")
        yield Document(tokens, int(sizes[tokens].sum()))


def split_at_ends(corpus: Corpus) -> Iterator[NDArray[np.integer[Any]]]:
    """Tokens of one document after the other, without end tokens; a document may go on in the next part."""
    begun: list[NDArray[np.integer[Any]]] = []
    for part in corpus.parts:
        at = 0
        for end in np.flatnonzero(part == corpus.end).tolist():
            yield np.concatenate([*begun, part[at:end]])
            begun, at = [], end + 1
        begun.append(part[at:])
    if sum(map(len, begun)):
        yield np.concatenate(begun)


def _texts(path: str, field: str, tokenizer: Tokenizer) -> Iterator[Document]:
    for file in files_of(path):
        if file.suffix == ".jsonl":
            texts = [line.text(field) for line in read_lines(str(file))]
        else:
            texts = [read_text(str(file))]
        for text in texts:
            yield Document(np.array(tokenizer.encode(text), dtype=np.int64), len(text.encode()))

"""Encodes chunks of raw text, in parallel: each chunk's tokens go into files of their own, its record last.

A chunk whose record is there is never done again, and no chunk knows of another: what comes out depends
neither on the number of workers nor on how often the work was cut off.
"""

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rerail_api.contract import ExitCode
from rerail_trainer.failures import TrainerExit

from .answers import encode_talk
from .bar import Bar
from .chat import open_template
from .inputs import Document, Invalids, Piece, Reading, documents_of
from .shards import token_type
from .tokenizer import Tokenizer, open_tokenizer

SPLITS = ("train", "held-out")
_BATCH_CHARACTERS = 1 << 20
_IN_FLIGHT = 4
"""Chunks handed out per worker: enough to keep it busy, few enough to stop soon."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the tokens of a chunk."""

    reading: Reading
    tokenizer: str
    end: str
    held_out: float
    """Share of the documents, by the hash of their text, that training never sees."""

    def token_type(self, tokenizer: Tokenizer) -> np.dtype[Any]:
        """Of a token on disk; those of conversations have flags in their upper bits."""
        return np.dtype("<u4") if self.reading.chat else token_type(tokenizer.vocab)


@dataclass
class Count:
    """What one chunk, or all, added to one split; `bytes` is UTF-8 text without end tokens."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class ChunkRecord:
    """What became of one chunk."""

    counts: dict[str, Count]
    skipped: int


class Encoder:
    """Encodes chunks into the files of one folder."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder, self._recipe = folder, recipe
        self._tokenizer = open_tokenizer(recipe.tokenizer, recipe.end)
        self._dtype = recipe.token_type(self._tokenizer)
        self._template = open_template(self._tokenizer) if recipe.reading.chat else None
        self._end = np.array([self._tokenizer.end], dtype=self._dtype).tobytes()

    def encode(self, index: int, chunk: tuple[Piece, ...]) -> None:
        """Writes the tokens of one chunk, one file per split, then its record."""
        invalids = Invalids(self._recipe.reading.invalid)
        record = ChunkRecord({split: Count() for split in SPLITS}, 0)
        # A left-over of a killed parent may still work on this chunk: files of one's own until the rename.
        paths = {split: _part(self._folder, index, f"{split}.{os.getpid()}") for split in SPLITS}
        with ExitStack() as stack:
            files = {split: stack.enter_context(path.open("wb")) for split, path in paths.items()}
            for split, documents in _batches(chunk, self._recipe, invalids):
                count = record.counts[split]
                if self._recipe.reading.chat:
                    files[split].write(self._talks(documents, count, invalids))
                else:
                    files[split].write(self._tokens(documents, count))
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        for split, path in paths.items():
            path.replace(tokens_file(self._folder, index, split))
        counts = {split: asdict(count) for split, count in record.counts.items()}
        _write(_record_file(self._folder, index), {"counts": counts, "skipped": invalids.count})

    def _tokens(self, documents: list[Document], count: Count) -> bytes:
        rows = self._tokenizer.encode_documents([document.text for document in documents])
        pieces = []
        for document, row in zip(documents, rows, strict=True):
            pieces += [row.astype(self._dtype).tobytes(), self._end if document.ends else b""]
            count.tokens += len(row) + document.ends
            count.documents += document.ends
            count.bytes += len(document.text.encode())
        return b"".join(pieces)

    def _talks(self, documents: list[Document], count: Count, invalids: Invalids) -> bytes:
        assert self._template is not None  # noqa: S101 - opened for conversations
        pieces = list[bytes]()
        for document in documents:
            rows = encode_talk(self._tokenizer, self._template, json.loads(document.text))
            # Nobody answers: there is nothing to learn, and nothing wrong with it either.
            invalids.count += not rows
            pieces += [row.tobytes() for row in rows]
            count.tokens += sum(len(row) for row in rows)
            count.documents += len(rows)
            count.bytes += len(document.text.encode()) * bool(rows)
        return b"".join(pieces)


def encode_all(folder: Path, recipe: Recipe, chunks: list[tuple[Piece, ...]], workers: int, bar: Bar) -> None:
    """Encodes the chunks that have no record yet; the bar counts bytes of input."""
    owed = []
    for index, chunk in enumerate(chunks):
        if _record_file(folder, index).exists():
            bar.found(_weight(chunk))
        else:
            owed.append(index)
    if owed and len(owed) < len(chunks):
        bar.say(f"going on: {len(chunks) - len(owed):,} of {len(chunks):,} chunks are done")
    if workers == 1 or len(owed) <= 1:
        encoder = Encoder(folder, recipe)
        for index in owed:
            encoder.encode(index, chunks[index])
            bar.add(_weight(chunks[index]))
        return
    try:
        _in_parallel(folder, recipe, {index: chunks[index] for index in owed}, workers, bar.add)
    except BrokenProcessPool as error:
        raise TrainerExit(
            ExitCode.RETRY_IN_PLACE,
            "a worker was killed (out of memory?): the same command goes on, with fewer --workers if need be",
        ) from error


def records_of(folder: Path, chunks: int) -> list[ChunkRecord]:
    """What became of each chunk, in order."""
    trees = [json.loads(_record_file(folder, index).read_bytes()) for index in range(chunks)]
    return [
        ChunkRecord({split: Count(**count) for split, count in tree["counts"].items()}, tree["skipped"])
        for tree in trees
    ]


def tokens_file(folder: Path, index: int, split: str) -> Path:
    """The tokens that one chunk gave to one split."""
    return _part(folder, index, split)


def held_out(document: Document, fraction: float) -> bool:
    """Whether a document belongs to the held-out split: by its text alone, so that copies stay together."""
    if fraction <= 0:
        return False
    return int.from_bytes(hashlib.sha256(document.head).digest()[:8], "big") < fraction * 2.0**64


def _batches(
    chunk: tuple[Piece, ...], recipe: Recipe, invalids: Invalids
) -> Iterator[tuple[str, list[Document]]]:
    """The chunk's documents by split, some at a time: tokenizers work faster on many than on one."""
    waiting: dict[str, list[Document]] = {split: [] for split in SPLITS}
    size = dict.fromkeys(SPLITS, 0)
    for piece in chunk:
        for document in documents_of(piece, recipe.reading, invalids):
            split = SPLITS[held_out(document, recipe.held_out)]
            waiting[split].append(document)
            size[split] += len(document.text)
            if size[split] >= _BATCH_CHARACTERS:
                yield split, waiting[split]
                waiting[split], size[split] = [], 0
    yield from ((split, documents) for split, documents in waiting.items() if documents)


def _in_parallel(
    folder: Path,
    recipe: Recipe,
    owed: dict[int, tuple[Piece, ...]],
    workers: int,
    done: Callable[[int], None],
) -> None:
    # Spawned, not forked: what a fork inherits (threads, locks) is not ours to know.
    context = multiprocessing.get_context("spawn")
    queue = iter(owed.items())
    with ProcessPoolExecutor(min(workers, len(owed)), context, _begin_work, (folder, recipe)) as pool:
        running: dict[Future[str], int] = {}
        try:
            while True:
                while len(running) < _IN_FLIGHT * workers and (following := next(queue, None)) is not None:
                    running[pool.submit(_work, *following)] = following[0]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    if complaint := future.result():
                        raise TrainerExit(ExitCode.BAD_CONFIG, complaint)
                    done(_weight(owed[index]))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_encoder: list[Encoder] = []


def _begin_work(folder: Path, recipe: Recipe) -> None:
    """First thing in a worker: it ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # One core per worker: the library's own threads would fight the other workers for theirs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder.append(Encoder(folder, recipe))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _work(index: int, chunk: tuple[Piece, ...]) -> str:
    """Encodes one chunk in a worker; the complaint, as our exceptions would not survive the way back."""
    try:
        _encoder[0].encode(index, chunk)
    except TrainerExit as error:
        return error.message
    return ""


def _weight(chunk: tuple[Piece, ...]) -> int:
    return sum(piece.weight for piece in chunk)


def _part(folder: Path, index: int, name: str) -> Path:
    return folder / f"chunk-{index:06d}.{name}"


def _record_file(folder: Path, index: int) -> Path:
    return _part(folder, index, "json")


def _write(path: Path, tree: dict[str, Any]) -> None:
    write_whole(path, json.dumps(tree).encode())


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sweep(folder: Path) -> None:
    """Removes files of workers that were killed in the middle."""
    for path in folder.glob("chunk-*.*.[0-9]*"):
        with suppress(OSError):
            path.unlink()

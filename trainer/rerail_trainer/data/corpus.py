"""Where tokens come from: the language reference in Python itself, text files, or token shards on disk."""

import glob
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from rerail_api.contract import ExitCode
from rerail_trainer.config import DataConfig
from rerail_trainer.failures import BadConfig, TrainerExit

from .manifest import MANIFEST_NAME, Split, open_manifest, verify
from .shards import MappedShard, Tokens, map_shard
from .tokenizer import BYTE_VOCAB, BYTES, END_OF_DOCUMENT, ByteTokenizer, open_tokenizer
from .windows import Arrangement, CorpusWindows

SAMPLED_TOKENS = 65_536
_ANNOUNCED_TOKENS = 512
"""Shorter rows cost more to announce than to copy."""


@dataclass(frozen=True)
class Corpus:
    """One long row of tokens in parts (in memory or mapped), with a digest that tells it from any other."""

    parts: tuple[Tokens, ...]
    vocab: int
    """Tokens lie below it; 0 where nobody says, as for shards without a manifest."""
    digest: str
    names: tuple[str, ...] = ()
    """The file of each part, where there is one."""
    tokenizer: str = ""
    """`bytes`, the path of the tokenizer.json, or empty where nobody says."""
    end: int = -1
    """Token after each document, or -1."""
    tokenizer_digest: str = ""
    shards: tuple[MappedShard, ...] = ()
    """What the parts are mapped from, where they are."""
    starts: NDArray[np.int64] = field(init=False)
    tokens: int = field(init=False)
    dtype: np.dtype[Any] = field(init=False)

    def __post_init__(self) -> None:
        ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)
        object.__setattr__(self, "starts", np.concatenate(([0], ends[:-1])).astype(np.int64))
        object.__setattr__(self, "tokens", int(ends[-1]) if len(ends) else 0)
        object.__setattr__(self, "dtype", np.result_type(*(part.dtype for part in self.parts)))

    def slice(self, begin: int, length: int) -> NDArray[np.int64]:
        """`length` tokens from `begin` on, across part borders; int64 [length]."""
        row: NDArray[np.int64] = self.gather(np.array([begin]), length)[0].astype(np.int64)
        return row

    def gather(self, begins: NDArray[np.int64], length: int) -> Tokens:
        """Rows of `length` tokens from each of `begins` on, across part borders; [rows, length]."""
        rows = np.empty((len(begins), length), dtype=self.dtype)
        owners = self.part_of(begins)
        if self.shards and length >= _ANNOUNCED_TOKENS:
            for owner, at in zip(owners.tolist(), (begins - self.starts[owners]).tolist(), strict=True):
                self.shards[owner].announce(at, length)
        for index in np.unique(owners):
            part, chosen = self.parts[index], np.flatnonzero(owners == index)
            at = begins[chosen] - self.starts[index]
            inside = at + length <= len(part)
            if inside.any():
                rows[chosen[inside]] = sliding_window_view(part, length)[at[inside]]
            for row in chosen[~inside]:
                self._copy_across(rows[row], int(begins[row]), int(index))
        return rows

    def view(self, begin: int, length: int) -> Tokens:
        """`length` tokens from `begin` on, not copied where they lie in one part; [length]."""
        index = int(self.part_of(np.array([begin]))[0])
        at = begin - int(self.starts[index])
        piece = self.parts[index][at : at + length]
        return piece if len(piece) == length else self.gather(np.array([begin]), length)[0]

    def part_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part that holds each place of the long row."""
        return np.searchsorted(self.starts, places, side="right") - 1

    def windows(self, arrangement: Arrangement) -> CorpusWindows:
        """The training windows; BadConfig when not even one fits."""
        return CorpusWindows(self, arrangement)

    def _copy_across(self, row: Tokens, begin: int, index: int) -> None:
        filled = 0
        while filled < len(row):
            at = begin + filled - int(self.starts[index])
            piece = self.parts[index][at : at + len(row) - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
            index += 1


def open_corpus(config: DataConfig) -> Corpus:
    """Reads or maps the corpus that `config` names; the same bytes give the same digest on every rank."""
    path = config.path
    if config.source == "pydoc":
        return _from_documents(_language_reference())
    if config.source == "text":
        return _from_text(files_of(path), config.tokenizer or BYTES)
    if Path(path).is_dir() and (Path(path) / MANIFEST_NAME).is_file():
        if config.verify == "digests":
            verify(Path(path))
        return open_prepared(Path(path), at_random=config.shuffle)
    return _from_shards(files_of(path), config.shuffle)


def open_prepared(
    folder: Path, held_out: bool = False, at_random: bool = False, chat: bool = False
) -> Corpus:
    """One split of a folder that `prepare` made; shards are held against the manifest by their sizes.

    chat: whether it must hold conversations, or must not.
    """
    manifest = open_manifest(folder)
    if bool(manifest.settings.get("chat")) != chat:
        raise BadConfig(
            f"{folder} holds text, not conversations: prepare them with --chat"
            if chat
            else f"{folder} holds conversations: they are trained on with data.source=chat, train.stage=sft"
        )
    split: Split = manifest.held_out if held_out else manifest.train
    shards = []
    for shard in split.shards:
        mapped = map_shard(folder / shard.file, at_random, chat)
        if len(mapped.tokens) != shard.tokens:
            raise TrainerExit(
                ExitCode.BAD_DATA_SHARD,
                f"{folder / shard.file} has {len(mapped.tokens)} tokens, {MANIFEST_NAME} says {shard.tokens}",
            )
        shards.append(mapped)
    if not shards:
        hint = "; prepare it with a larger --held-out" if held_out else ""
        raise BadConfig(f"{folder} has no {'held-out' if held_out else 'training'} tokens{hint}")
    names = tuple(str(folder / shard.file) for shard in split.shards)
    kind = manifest.tokenizer
    name = BYTES if kind.name == BYTES else str(folder / kind.name)
    parts = tuple(shard.tokens for shard in shards)
    return Corpus(parts, kind.vocab, manifest.digest, names, name, kind.end, kind.digest, tuple(shards))


def encode(documents: list[bytes]) -> NDArray[np.uint16]:
    """Byte tokens with an end-of-document token after each document; uint16 [tokens]."""
    end = np.array([END_OF_DOCUMENT], dtype=np.uint16)
    pieces = [piece for text in documents for piece in (np.frombuffer(text, np.uint8).astype(np.uint16), end)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint16)


def files_of(pattern: str) -> list[Path]:
    """The files of a folder and below, of a glob pattern, or the one file; sorted, hidden ones left out."""
    path = Path(pattern)
    found = sorted(path.rglob("*")) if path.is_dir() else sorted(Path(name) for name in glob.glob(pattern))
    files = [file for file in found if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise BadConfig(f"data.path={pattern} holds no file")
    return files


def _language_reference() -> list[bytes]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise BadConfig(
            "this Python was installed without pydoc_data, the text of data.source=pydoc; "
            "use data.source=text with data.path"
        ) from error
    return [topics[name].encode() for name in sorted(topics)]


def _from_documents(documents: list[bytes]) -> Corpus:
    tokens = encode(documents)
    digest = hashlib.sha256(b"bytes/1\n" + tokens.tobytes()).hexdigest()
    return Corpus((tokens,), BYTE_VOCAB, digest, (), BYTES, END_OF_DOCUMENT, ByteTokenizer.digest)


def _from_text(files: list[Path], tokenizer: str) -> Corpus:
    try:
        documents = [path.read_bytes() for path in files]
    except OSError as error:
        raise BadConfig(f"{error.filename} cannot be read: {error.strerror}") from error
    if tokenizer == BYTES:
        return _from_documents(documents)
    coder = open_tokenizer(tokenizer)
    end = np.array([coder.end], dtype=np.uint32)
    try:
        rows = coder.encode_documents([document.decode() for document in documents])
    except UnicodeDecodeError as error:
        raise BadConfig(f"a text file is no UTF-8 ({error.reason}): `prepare` can replace or skip") from error
    tokens = np.concatenate([piece for row in rows for piece in (row, end)])
    digest = hashlib.sha256(coder.digest.encode() + b"\n" + tokens.tobytes()).hexdigest()
    return Corpus((tokens,), coder.vocab, digest, (), coder.name, coder.end, coder.digest)


def _from_shards(files: list[Path], at_random: bool) -> Corpus:
    shards = [file for file in files if file.suffix == ".bin"]
    if not shards:
        raise BadConfig(f"no token shard (*.bin) among {len(files)} files in {files[0].parent}")
    mapped = tuple(map_shard(file, at_random) for file in shards)
    parts = tuple(shard.tokens for shard in mapped)
    digest = hashlib.sha256()
    for file, part in zip(shards, parts, strict=True):
        digest.update(f"{file.name}\0{len(part)}\n".encode())
        # Whole shards may be terabytes: both ends and the count tell one corpus from another.
        digest.update(part[:SAMPLED_TOKENS].tobytes())
        digest.update(part[-SAMPLED_TOKENS:].tobytes())
    return Corpus(parts, 0, digest.hexdigest(), tuple(map(str, shards)), shards=mapped)

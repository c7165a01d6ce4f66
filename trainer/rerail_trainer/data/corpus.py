"""Where tokens come from: the language reference in Python itself, text files, or token shards on disk."""

import glob
import hashlib
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rerail_api.contract import ExitCode
from rerail_trainer.config import DataConfig
from rerail_trainer.failures import BadConfig, TrainerExit

BYTE_VOCAB = 257
END_OF_DOCUMENT = 256
"""Token after each document; the 256 before it are the bytes."""

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_INTS = 20240520, 1, 256
WIDE_SHARD_MAGIC = 20240521
"""Shards whose tokens are uint32, for vocabularies beyond 65,536."""
SAMPLED_BYTES = 65_536

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True)
class Corpus:
    """One long row of tokens in parts (in memory or mapped), with a digest that tells it from any other."""

    parts: tuple[Tokens, ...]
    vocab: int
    digest: str
    starts: tuple[int, ...] = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        starts, total = [], 0
        for part in self.parts:
            starts.append(total)
            total += len(part)
        object.__setattr__(self, "starts", tuple(starts))
        object.__setattr__(self, "tokens", total)

    def slice(self, begin: int, length: int) -> NDArray[np.int64]:
        """`length` tokens from `begin` on, across part borders; int64 [length]."""
        row = np.empty(length, dtype=np.int64)
        index, filled = bisect_right(self.starts, begin) - 1, 0
        while filled < length:
            at = begin + filled - self.starts[index]
            piece = self.parts[index][at : at + length - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
            index += 1
        return row


def open_corpus(config: DataConfig) -> Corpus:
    """Reads or maps the corpus that `config` names; the same bytes give the same digest on every rank."""
    if config.source == "pydoc":
        return _from_documents(_language_reference())
    if config.source == "text":
        return _from_documents([path.read_bytes() for path in _files(config.path)])
    return _from_shards(_files(config.path))


def encode(documents: list[bytes]) -> NDArray[np.uint16]:
    """Byte tokens with an end-of-document token after each document; uint16 [tokens]."""
    end = np.array([END_OF_DOCUMENT], dtype=np.uint16)
    pieces = [piece for text in documents for piece in (np.frombuffer(text, np.uint8).astype(np.uint16), end)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint16)


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
    return Corpus((tokens,), BYTE_VOCAB, hashlib.sha256(b"bytes/1\n" + tokens.tobytes()).hexdigest())


def _files(pattern: str) -> list[Path]:
    path = Path(pattern)
    found = sorted(path.rglob("*")) if path.is_dir() else sorted(Path(name) for name in glob.glob(pattern))
    files = [file for file in found if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise BadConfig(f"data.path={pattern} holds no file")
    return files


def _from_shards(files: list[Path]) -> Corpus:
    shards = [file for file in files if file.suffix == ".bin"]
    if not shards:
        raise BadConfig(f"no token shard (*.bin) among {len(files)} files in {files[0].parent}")
    parts = tuple(_map_shard(file) for file in shards)
    vocab = 65_536 if all(part.dtype == np.uint16 for part in parts) else 2**32
    digest = hashlib.sha256()
    for file, part in zip(shards, parts, strict=True):
        digest.update(f"{file.name}\0{len(part)}\n".encode())
        # Whole shards may be terabytes: both ends and the count tell one corpus from another.
        digest.update(part[:SAMPLED_BYTES].tobytes())
        digest.update(part[-SAMPLED_BYTES:].tobytes())
    return Corpus(parts, vocab, digest.hexdigest())


def _map_shard(file: Path) -> Tokens:
    """A shard is 256 int32 (magic, version, token count) and then the tokens."""
    try:
        header = np.fromfile(file, dtype="<i4", count=SHARD_HEADER_INTS)
        dtypes: dict[int, np.dtype[Any]] = {SHARD_MAGIC: np.dtype("<u2"), WIDE_SHARD_MAGIC: np.dtype("<u4")}
        if len(header) < SHARD_HEADER_INTS or int(header[0]) not in dtypes or int(header[1]) != SHARD_VERSION:
            raise TrainerExit(
                ExitCode.BAD_DATA_SHARD, f"{file} is no token shard: its header is {header[:2].tolist()}"
            )
        dtype, count = dtypes[int(header[0])], int(header[2])
        owed = SHARD_HEADER_INTS * 4 + count * dtype.itemsize
        if file.stat().st_size != owed:
            raise TrainerExit(
                ExitCode.BAD_DATA_SHARD, f"{file} has {file.stat().st_size} bytes, its header says {owed}"
            )
        tokens: Tokens = np.memmap(file, dtype=dtype, mode="r", offset=SHARD_HEADER_INTS * 4, shape=(count,))
        return tokens
    except OSError as error:
        raise TrainerExit(ExitCode.BAD_DATA_SHARD, f"{file} cannot be read: {error.strerror}") from error

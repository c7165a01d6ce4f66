"""Joins the tokens of all chunks into shards of equal size; can be cut off anywhere and goes on."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .encoding import ChunkRecord, Count, tokens_file, write_whole
from .manifest import Shard, Split
from .shards import HEADER_BYTES, header

_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class Plan:
    """Where to join what: chunk files in `work`, shards in `out`."""

    work: Path
    out: Path
    shard_tokens: int
    dtype: np.dtype[Any]
    flagged: bool
    """Whether they are conversations."""


def assemble(plan: Plan, split: str, records: list[ChunkRecord], done: Callable[[int], None]) -> Split:
    """Writes the shards of one split; `done` hears the tokens of each. Chunk files go as soon as all their
    tokens lie in finished shards, so the disk never holds the corpus twice.
    """
    counts = [record.counts[split] for record in records]
    ends = np.cumsum([count.tokens for count in counts], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    shards = []
    for number, begin in enumerate(range(0, total, plan.shard_tokens)):
        end = min(begin + plan.shard_tokens, total)
        shards.append(_shard(plan, split, number, (ends, begin, end)))
        for index in np.flatnonzero(ends <= end):
            tokens_file(plan.work, int(index), split).unlink(missing_ok=True)
        done(end - begin)
    whole = Count(
        *(sum(getattr(count, name) for count in counts) for name in ("tokens", "documents", "bytes"))
    )
    return Split(tuple(shards), whole.tokens, whole.documents, whole.bytes)


def _shard(plan: Plan, split: str, number: int, span: tuple[Any, int, int]) -> Shard:
    """The shard of tokens begin to end; taken as it is where its record and the file are there."""
    name = f"{split}-{number:05d}.bin"
    file, record = plan.out / name, plan.work / f"{name}.json"
    size = HEADER_BYTES + (span[2] - span[1]) * plan.dtype.itemsize
    if record.exists() and file.exists() and file.stat().st_size == size:
        return Shard(**json.loads(record.read_bytes()))
    temporary, digest = plan.work / f"{name}.part", hashlib.sha256()
    with temporary.open("wb") as stream:
        for block in _blocks(plan, split, span):
            digest.update(block)
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    shard = Shard(name, span[2] - span[1], digest.hexdigest())
    write_whole(record, json.dumps(asdict(shard)).encode())
    temporary.replace(file)
    return shard


def _blocks(plan: Plan, split: str, span: tuple[Any, int, int]) -> Iterator[bytes]:
    ends, begin, end = span
    yield header(end - begin, plan.dtype, plan.flagged)
    width = plan.dtype.itemsize
    for index in range(int(np.searchsorted(ends, begin, side="right")), len(ends)):
        first = int(ends[index - 1]) if index else 0
        if first >= end:
            return
        with tokens_file(plan.work, index, split).open("rb") as stream:
            stream.seek((max(begin, first) - first) * width)
            left = (min(end, int(ends[index])) - max(begin, first)) * width
            while left:
                block = stream.read(min(left, _BLOCK_BYTES))
                if not block:
                    raise OSError(f"{stream.name} is shorter than its record says")
                left -= len(block)
                yield block

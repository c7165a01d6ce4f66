"""Token shards on disk: 256 int32 (magic, version, token count, then zeros) and the tokens, little-endian.

The layout of modded-nanogpt, with a magic of its own where tokens are uint32.
"""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rerail_api.contract import ExitCode
from rerail_trainer.failures import TrainerExit

MAGIC, VERSION, HEADER_INTS = 20240520, 1, 256
WIDE_MAGIC = 20240521
"""Shards whose tokens are uint32, for vocabularies beyond 65,536."""
TALK_MAGIC = 20240522
"""Shards of conversations: uint32 with flags in the upper bits."""
HEADER_BYTES = HEADER_INTS * 4
NARROW_VOCAB = 65_536

Tokens = NDArray[np.unsignedinteger[Any]]
"""uint16 or uint32."""

_TYPES: dict[int, np.dtype[Any]] = {
    MAGIC: np.dtype("<u2"),
    WIDE_MAGIC: np.dtype("<u4"),
    TALK_MAGIC: np.dtype("<u4"),
}


def token_type(vocab: int) -> np.dtype[Any]:
    """The narrowest type that holds every token of a vocabulary."""
    return np.dtype("<u2") if vocab <= NARROW_VOCAB else np.dtype("<u4")


def header(tokens: int, dtype: np.dtype[Any], flagged: bool = False) -> bytes:
    """The first HEADER_BYTES of a shard of so many tokens; `flagged` for conversations."""
    if tokens >= 2**31:
        raise ValueError(f"{tokens} tokens are more than a shard can count: at most 2^31 - 1")
    ints = np.zeros(HEADER_INTS, dtype="<i4")
    wide = TALK_MAGIC if flagged else WIDE_MAGIC
    ints[:3] = (MAGIC if dtype.itemsize == 2 else wide, VERSION, tokens)
    return ints.tobytes()


@dataclass(frozen=True)
class MappedShard:
    """The tokens of a file, and the memory that they lie in; None for a shard without tokens."""

    tokens: Tokens
    memory: mmap.mmap | None

    def announce(self, begin: int, length: int) -> None:
        """Tells the kernel that tokens begin to begin + length are wanted soon: it reads them meanwhile."""
        if self.memory is not None:
            at = HEADER_BYTES + begin * self.tokens.itemsize
            first = at - at % mmap.PAGESIZE
            end = min(at + length * self.tokens.itemsize, len(self.memory))
            self.memory.madvise(mmap.MADV_WILLNEED, first, end - first)


def map_shard(file: Path, at_random: bool = False, flagged: bool = False) -> MappedShard:
    """Maps a shard; TrainerExit (bad data shard) where header and size do not fit, or where it is one of
    conversations (`flagged`) and should not be, or the other way round.

    at_random: reads will jump about, so the kernel reads no more than is asked for. By its own guess it reads
    95 times the bytes of shuffled windows of 1,024 tokens from a cold disk.
    """
    try:
        with file.open("rb") as stream:
            ints = np.frombuffer(stream.read(HEADER_BYTES), dtype="<i4")
            known = len(ints) == HEADER_INTS and int(ints[0]) in _TYPES and int(ints[1]) == VERSION
            if not known or (int(ints[0]) == TALK_MAGIC) != flagged:
                raise _bad(f"{file} is no token shard: its header is {ints[:2].tolist()}")
            dtype, count = _TYPES[int(ints[0])], int(ints[2])
            owed, size = HEADER_BYTES + count * dtype.itemsize, os.fstat(stream.fileno()).st_size
            if size != owed:
                raise _bad(f"{file} has {size} bytes, its header says {owed}")
            if count == 0:
                return MappedShard(np.empty(0, dtype=dtype), None)
            # No numpy.memmap: every slice of one costs microseconds of Python, a plain view does not.
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            if at_random:
                mapped.madvise(mmap.MADV_RANDOM)
            return MappedShard(np.frombuffer(mapped, dtype, count, HEADER_BYTES), mapped)
    except ValueError as error:
        raise _bad(f"{file} is cut off within its header") from error
    except OSError as error:
        raise _bad(f"{file} cannot be read: {error.strerror}") from error


def _bad(message: str) -> TrainerExit:
    return TrainerExit(ExitCode.BAD_DATA_SHARD, message)

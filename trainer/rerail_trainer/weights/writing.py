"""Writing safetensors files of the Hugging Face layout: which tensor goes into which file, and the streaming.

One tensor is in memory at a time.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .stored import DTYPES, INDEX_FILE, SINGLE_FILE

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """One tensor to be written; `read` gives its values, CPU, of `shape`, in any dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """In bytes, as written."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_files(folder: Path, entries: Sequence[Entry], limit: int, done: Callable[[str], None]) -> int:
    """Writes all entries durably into files of at most `limit` bytes of tensors each (a larger tensor has a
    file of its own), and an index where there are several; gives the bytes of tensors. `done` is told the
    name of every finished file.
    """
    files = split(entries, limit)
    total = sum(entry.size for entry in entries)
    placed: dict[str, str] = {}
    for number, inside in enumerate(files, start=1):
        single = len(files) == 1
        file = SINGLE_FILE if single else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        _write(folder / file, inside)
        placed |= {entry.name: file for entry in inside}
        done(file)
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        write_whole(folder / INDEX_FILE, (json.dumps(index, indent=2) + "\n").encode())
    return total


def split(entries: Sequence[Entry], limit: int) -> list[list[Entry]]:
    """In order, a new file whenever the next entry would take it beyond `limit` bytes."""
    files: list[list[Entry]] = []
    size = 0
    for entry in entries:
        if not files or size + entry.size > limit:
            files.append([])
            size = 0
        files[-1].append(entry)
        size += entry.size
    return files


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file durably, so that its name never stands for a part of it."""
    fresh = path.with_name(f".{path.name}.new")
    with open(fresh, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def _write(path: Path, entries: Sequence[Entry]) -> None:
    tree: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for entry in entries:
        end = begin + entry.size
        tree[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    header = json.dumps(tree).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for entry in entries:
            values = entry.read().to(entry.dtype).contiguous()
            file.write(values.view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())

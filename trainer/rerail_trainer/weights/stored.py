"""Tensors in files of the safetensors form, by name: where each lies, and reading a box of it alone.

The form: 8 bytes little-endian header length, a JSON header (dtype, shape, place of each tensor), raw bytes.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rerail_trainer.failures import BadConfig

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Weights that are read; others (integers, 8 bits) are quantised in ways that are not computed here."""
_LONGEST_HEADER = 100_000_000
_READ_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `start` counts bytes from the beginning of the file."""

    file: str
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


def stored_tensors(folder: str) -> dict[str, StoredTensor]:
    """All tensors of a model directory, from its index or its single file; only headers are read.

    BadConfig for a file that is missing, cut short, or of another form.
    """
    index = Path(folder, INDEX_FILE)
    pickled = sorted(Path(folder).glob("*.bin"))
    if pickled and not index.is_file() and not Path(folder, SINGLE_FILE).is_file():
        raise BadConfig(f"{pickled[0]} may run code when it is read: convert it to safetensors first")
    if not index.is_file():
        return {tensor.name: tensor for tensor in _header(Path(folder, SINGLE_FILE))}
    try:
        placed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadConfig(f"{index} is no index of safetensors files: {error}") from error
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(placed.values())):
        found |= {tensor.name: tensor for tensor in _header(Path(folder, file)) if tensor.name in placed}
    lost = sorted(set(placed) - set(found))
    if lost:
        raise BadConfig(f"{placed[lost[0]]} in {folder} has no tensor {lost[0]}, though {INDEX_FILE} says so")
    return found


def read_box(stored: StoredTensor, region: tuple[slice, ...]) -> Tensor:
    """The values in `region` (start and stop in each dimension, step 1), in the stored dtype, on the CPU.

    Reads the rows of `region` alone; of a box narrower than its rows a few megabytes of them at a time.
    """
    box = torch.empty([part.stop - part.start for part in region], dtype=stored.dtype)
    if not box.numel():
        return box
    row = math.prod(stored.shape[1:])
    with open(stored.file, "rb", buffering=0) as file:
        if box.numel() == box.shape[0] * row:
            _read_into(file, stored, region[0].start * row, box)
            return box
        step = max(1, _READ_BYTES // (row * stored.dtype.itemsize))
        for begin in range(0, box.shape[0], step):
            part = box[begin : begin + step]
            rows = torch.empty(part.shape[0], *stored.shape[1:], dtype=stored.dtype)
            _read_into(file, stored, (region[0].start + begin) * row, rows)
            part.copy_(rows[(slice(None), *region[1:])])
    return box


def _read_into(file: FileIO, stored: StoredTensor, first: int, target: Tensor) -> None:
    """Fills `target`, contiguous, with the values from number `first` on."""
    view = target.view(-1).view(torch.uint8).numpy().data
    file.seek(stored.start + first * stored.dtype.itemsize)
    while len(view):
        count = file.readinto(view)
        if not count:
            raise BadConfig(f"{stored.file} ends inside {stored.name}")
        view = view[count:]


def _header(path: Path) -> Iterator[StoredTensor]:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tree: dict[str, Any] = json.loads(file.read(length)) if length < _LONGEST_HEADER else {}
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadConfig(f"{path} is not of the safetensors form: {error}") from error
    if not tree:
        raise BadConfig(f"{path} is not of the safetensors form")
    for name, entry in tree.items():
        if name != "__metadata__":
            yield _stored(path, name, entry, 8 + length, size)


def _stored(path: Path, name: str, entry: dict[str, Any], data: int, size: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise BadConfig(
            f"{path}: {name} is stored as {entry['dtype']}; read are weights of {', '.join(DTYPES)}"
        )
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    if end - begin != math.prod(shape) * dtype.itemsize or data + end > size:
        raise BadConfig(f"{path} is cut short or damaged: {name} does not lie in it whole")
    return StoredTensor(str(path), name, dtype, shape, data + begin)

"""Tensors of one rank in one file of the safetensors form, whose header carries the digest of every piece.

The form: 8 bytes little-endian header length, a JSON header, then the raw bytes. Which part of which tensor a
piece is, and its SHA-256, stand in the header's metadata under "pieces". The header's own digest stands in
the manifest, so manifest -> header -> piece is a chain, and reading one piece verifies that piece alone.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .storage import Storage

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 64


class Damaged(Exception):
    """Bytes that are not what was written: `path` says where."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path


@dataclass(frozen=True)
class Piece:
    """A box of a tensor: its place in the whole, and its values, contiguous on the CPU."""

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    tensor: Tensor

    @property
    def key(self) -> str:
        whole = tuple(self.tensor.shape) == self.shape
        return self.name if whole else f"{self.name}@{','.join(map(str, self.offset))}"


@dataclass(frozen=True)
class StoredPiece:
    """Where a piece lies: `start` counts from the beginning of the file, `sizes` is its box."""

    path: str
    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    start: int
    length: int
    sha256: str


@dataclass(frozen=True)
class Written:
    """What the manifest says of a file;
    `covers` tells whether the digest is of all bytes or of the header.
    """

    name: str
    size: int
    sha256: str
    covers: str


def write_tensor_file(storage: Storage, folder: str, name: str, pieces: Sequence[Piece]) -> Written:
    """Writes `pieces` durably to folder/name. OSError as the storage raises it."""
    views = [_bytes_of(piece.tensor) for piece in pieces]
    header = _header(pieces, views)
    size = storage.write(f"{folder}/{name}", _stream(header, views))
    return Written(name, size, hashlib.sha256(header).hexdigest(), covers="header")


def read_index(storage: Storage, folder: str, written: Written) -> list[StoredPiece]:
    """The pieces of a file, from its verified header. Raises Damaged."""
    path = f"{folder}/{written.name}"
    start = 8 + int.from_bytes(storage.read(path, 0, 8), "little")
    if start > written.size:
        raise Damaged(path, "its header is longer than the file")
    header = storage.read(path, 0, start)
    if hashlib.sha256(header).hexdigest() != written.sha256:
        raise Damaged(path, "the digest of its header is wrong")
    tree = json.loads(header[8:])
    placed: dict[str, Any] = json.loads(tree["__metadata__"]["pieces"])
    return [_stored(path, start, tree[key], place) for key, place in placed.items()]


def read_piece(storage: Storage, piece: StoredPiece) -> Tensor:
    """The values of one piece, verified; CPU tensor of shape `piece.sizes`. Raises Damaged."""
    data = bytearray(storage.read(piece.path, piece.start, piece.length))
    if len(data) != piece.length or hashlib.sha256(data).hexdigest() != piece.sha256:
        raise Damaged(piece.path, f"the digest of {piece.name} is wrong")
    if not data:
        return torch.empty(piece.sizes, dtype=piece.dtype)
    return torch.frombuffer(data, dtype=piece.dtype).view(piece.sizes)


def _stored(path: str, start: int, entry: dict[str, Any], place: dict[str, Any]) -> StoredPiece:
    begin, end = entry["data_offsets"]
    return StoredPiece(
        path=path,
        name=place["tensor"],
        shape=tuple(place["shape"]),
        offset=tuple(place["offset"]),
        sizes=tuple(entry["shape"]),
        dtype=_DTYPES[entry["dtype"]],
        start=start + begin,
        length=end - begin,
        sha256=place["sha256"],
    )


def _header(pieces: Iterable[Piece], views: Sequence[memoryview]) -> bytes:
    entries: dict[str, Any] = {}
    placed: dict[str, Any] = {}
    begin = 0
    for piece, view in zip(pieces, views, strict=True):
        end = begin + len(view)
        dtype = _NAMES[piece.tensor.dtype]
        entries[piece.key] = {"dtype": dtype, "shape": list(piece.tensor.shape), "data_offsets": [begin, end]}
        placed[piece.key] = {
            "tensor": piece.name,
            "shape": list(piece.shape),
            "offset": list(piece.offset),
            "sha256": hashlib.sha256(view).hexdigest(),
        }
        begin = end
    entries["__metadata__"] = {"format": "pt", "pieces": json.dumps(placed)}
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _stream(header: bytes, views: Sequence[memoryview]) -> Iterator[bytes | memoryview]:
    yield header
    yield from views


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")

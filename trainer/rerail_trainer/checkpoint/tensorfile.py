"""Tensors of one rank in one file of the safetensors form, whose header carries the digest of every piece.

The form: 8 bytes little-endian header length, a JSON header, then the raw bytes. Which part of which tensor a
piece is, and its SHA-256, stand in the header's metadata under "pieces". The header's own digest stands in
the manifest, so manifest -> header -> piece is a chain, and reading one piece verifies that piece alone.
Digests are taken before the first byte is written: the bytes lie in memory, and a header that comes first
needs no second visit to the file, which object storage could not offer. Torch-free but for `read_piece`.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .storage import Storage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one value of each kind, by the names that safetensors gives them."""
CHUNK_BYTES = 16 * 1024 * 1024
"""So much of a piece is in memory at a time while it is read."""
_ALIGNMENT = 64


class Damaged(Exception):
    """Bytes that are not what was written: `path` says where."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path


@dataclass(frozen=True)
class Part:
    """A box of a tensor: the whole's name and shape, where the box begins in it, its sizes, its kind."""

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    kind: str

    @property
    def key(self) -> str:
        return self.name if self.sizes == self.shape else f"{self.name}@{','.join(map(str, self.offset))}"

    @property
    def bytes(self) -> int:
        return math.prod(self.sizes) * WIDTHS[self.kind]


@dataclass(frozen=True)
class StoredPiece:
    """Where a piece lies: `start` counts from the beginning of the file, `sizes` is its box."""

    path: str
    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    sizes: tuple[int, ...]
    kind: str
    start: int
    length: int
    sha256: str

    @property
    def dtype(self) -> "torch.dtype":
        from .dtypes import DTYPES

        return DTYPES[self.kind]


@dataclass(frozen=True)
class Written:
    """What the manifest says of a file;
    `covers` tells whether the digest is of all bytes or of the header.
    """

    name: str
    size: int
    sha256: str
    covers: str


def write_tensor_file(
    storage: Storage, path: str, parts: Sequence[Part], values: Sequence[memoryview]
) -> Written:
    """Writes parts, whose bytes are `values`, durably to `path`. OSError as the storage raises it."""
    header = _header(parts, values)
    size = storage.write(path, _stream(header, values))
    name = path.rpartition("/")[2]
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


class CheckedPiece:
    """A piece read from front to back; with its last byte its digest is compared."""

    def __init__(self, storage: Storage, piece: StoredPiece, check: bool = True) -> None:
        self._storage, self._piece, self._check = storage, piece, check
        self._digest, self._read = hashlib.sha256(), 0

    @property
    def done(self) -> bool:
        return self._read >= self._piece.length

    def read(self, length: int) -> bytes:
        """The next `length` bytes, which must be there. Raises Damaged."""
        piece = self._piece
        begin, self._read = self._read, self._read + length
        data = self._storage.read(piece.path, piece.start + begin, length)
        if len(data) != length:
            raise Damaged(piece.path, f"{piece.name} is cut short")
        if self._check:
            self._digest.update(data)
            if self.done and self._digest.hexdigest() != piece.sha256:
                raise Damaged(piece.path, f"the digest of {piece.name} is wrong")
        return data


def read_piece(storage: Storage, piece: StoredPiece) -> "Tensor":
    """The values of one piece, verified; CPU tensor of shape `piece.sizes`. Raises Damaged."""
    import torch

    if not piece.length:
        return torch.empty(piece.sizes, dtype=piece.dtype)
    data = bytearray(CheckedPiece(storage, piece).read(piece.length))
    return torch.frombuffer(data, dtype=piece.dtype).view(piece.sizes)


def _stored(path: str, start: int, entry: dict[str, Any], place: dict[str, Any]) -> StoredPiece:
    begin, end = entry["data_offsets"]
    return StoredPiece(
        path=path,
        name=place["tensor"],
        shape=tuple(place["shape"]),
        offset=tuple(place["offset"]),
        sizes=tuple(entry["shape"]),
        kind=entry["dtype"],
        start=start + begin,
        length=end - begin,
        sha256=place["sha256"],
    )


def _header(parts: Sequence[Part], values: Sequence[memoryview]) -> bytes:
    entries: dict[str, Any] = {}
    placed: dict[str, Any] = {}
    begin = 0
    for part, view in zip(parts, values, strict=True):
        end = begin + len(view)
        entries[part.key] = {"dtype": part.kind, "shape": list(part.sizes), "data_offsets": [begin, end]}
        placed[part.key] = {
            "tensor": part.name,
            "shape": list(part.shape),
            "offset": list(part.offset),
            "sha256": hashlib.sha256(view).hexdigest(),
        }
        begin = end
    entries["__metadata__"] = {"format": "pt", "pieces": json.dumps(placed)}
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _stream(header: bytes, values: Sequence[memoryview]) -> Iterator[bytes | memoryview]:
    yield header
    yield from values

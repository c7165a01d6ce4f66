"""Reading one step into the live state: each rank what it alone needs, and once per node what several of its
ranks need.

A rank that finds damage goes on in step with the others, who count on it for what they share; the damage is
told at the end. In memory is one parcel at a time, whatever the size of a tensor.
"""

import errno
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rerail_api.contract import ExitCode
from rerail_trainer.control import Control
from rerail_trainer.failures import TrainerExit
from rerail_trainer.parallel.shards import Shard

from .storage import Storage
from .tensorfile import CHUNK_BYTES, CheckedPiece, Damaged, StoredPiece, Written, read_index

T = TypeVar("T")
_ALIGNMENT = 64


@dataclass(frozen=True)
class Wanted:
    """A tensor to be filled: its name and this rank's part."""

    name: str
    shard: Shard


@dataclass(frozen=True)
class Segment:
    """Some rows (along the first dimension) of a piece, and where they lie in their parcel."""

    piece: StoredPiece
    first_row: int
    rows: int
    at: int
    length: int


@dataclass
class Ground:
    """What reading works with: the files of a step, and this node's ranks, who share what several need."""

    storage: Storage
    folder: str
    node: Control
    check: bool = True
    read_bytes: int = 0
    problem: str = ""
    _open: dict[StoredPiece, CheckedPiece] = field(default_factory=dict)

    def trusting(self, path: str, read: Callable[[], T]) -> T | None:
        """What `read` gives; None, and the problem noted, where it finds damage."""
        try:
            return trusting(path, read)
        except Damaged as error:
            self.problem = self.problem or str(error)
            return None

    def bytes_of(self, segment: Segment) -> bytes | None:
        """The next bytes of a piece, whose segments come in order; None for a piece that is damaged."""
        piece = segment.piece
        if segment.first_row == 0:
            self._open[piece] = CheckedPiece(self.storage, piece, self.check)
        reader = self._open[piece]
        data = self.trusting(piece.path, partial(reader.read, segment.length))
        self.read_bytes += len(data or b"")
        if reader.done:
            del self._open[piece]
        return data


def trusting(path: str, read: Callable[[], T]) -> T:
    """What `read` gives; a file that has gone or a disk that cannot read it counts as damage,
    all else does not.
    """
    try:
        return read()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EIO):
            raise Damaged(path, error.strerror or "it cannot be read") from error
        raise


def read_headers(ground: Ground, files: Sequence[Written]) -> list[StoredPiece]:
    """The pieces of these files. Damage is noted in `ground`."""
    pieces: list[StoredPiece] = []
    for written in files:
        path = f"{ground.folder}/{written.name}"
        found = ground.trusting(path, partial(read_index, ground.storage, ground.folder, written))
        pieces += found or []
        ground.read_bytes += found[0].start if found else 0
    return pieces


def by_name(pieces: Sequence[StoredPiece]) -> dict[str, list[StoredPiece]]:
    stored: dict[str, list[StoredPiece]] = defaultdict(list)
    for piece in pieces:
        stored[piece.name].append(piece)
    return dict(stored)


def covered(wanted: Sequence[Wanted], stored: dict[str, list[StoredPiece]]) -> bool:
    """Whether these pieces hold all that is wanted."""
    return all(
        sum(_overlap(want.shard, piece) for piece in stored.get(want.name, ())) == want.shard.tensor.numel()
        for want in wanted
    )


def fill(ground: Ground, wanted: Sequence[Wanted], stored: dict[str, list[StoredPiece]]) -> None:
    """Fills every wanted part from the pieces that overlap it, however either was cut. All ranks of a node
    call it together. Damage, and what is missing, is noted in `ground`.

    Raises TrainerExit DATA_MISMATCH for a tensor of another shape.
    """
    targets: dict[StoredPiece, list[Shard]] = defaultdict(list)
    for want in wanted:
        for piece in stored.get(want.name, ()):
            if piece.shape != want.shard.shape:
                raise TrainerExit(
                    ExitCode.DATA_MISMATCH,
                    f"{piece.name} is {piece.shape}, the model wants {want.shard.shape}",
                )
            if _overlap(want.shard, piece):
                targets[piece].append(want.shard)
    shared = _needed_by_several(ground.node, targets)
    for reader, pieces in enumerate(_shared_out(shared, ground.node.world_size)):
        for parcel in parcels(pieces):
            _take(parcel, _broadcast(ground, parcel, reader), targets)
    read = set(shared)
    for parcel in parcels([piece for piece in targets if piece not in read]):
        _take(parcel, _filled(ground, parcel), targets)
    for want in wanted:
        if not covered([want], stored):
            ground.problem = ground.problem or f"{ground.folder}: {want.name} is not complete"


def parcels(pieces: Sequence[StoredPiece]) -> Iterator[list[Segment]]:
    """The pieces cut into segments, and these put together to parcels of at most CHUNK_BYTES, unless one row
    is longer.
    """
    parcel: list[Segment] = []
    for piece in pieces:
        rows = piece.sizes[0] if piece.sizes else 1
        length = piece.length // rows
        step = max(1, CHUNK_BYTES // length)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            at = _end(parcel)
            if parcel and at + count * length > CHUNK_BYTES:
                yield parcel
                parcel, at = [], 0
            parcel.append(Segment(piece, first, count, at, count * length))
    if parcel:
        yield parcel


def _end(parcel: Sequence[Segment]) -> int:
    return -(-(parcel[-1].at + parcel[-1].length) // _ALIGNMENT) * _ALIGNMENT if parcel else 0


def _needed_by_several(node: Control, targets: dict[StoredPiece, list[Shard]]) -> list[StoredPiece]:
    """Pieces that more than one rank of the node needs, in the same order on each rank."""
    if node.world_size == 1:
        return []
    readers = Counter(piece for needed in node.collect(list(targets)) for piece in needed)
    several = (piece for piece, ranks in readers.items() if ranks > 1)
    return sorted(several, key=lambda piece: (piece.path, piece.start))


def _shared_out(pieces: Sequence[StoredPiece], readers: int) -> list[list[StoredPiece]]:
    """Each piece to the reader with the fewest bytes so far."""
    shares: list[list[StoredPiece]] = [[] for _ in range(readers)]
    loads = [0] * readers
    for piece in pieces:
        reader = loads.index(min(loads))
        shares[reader].append(piece)
        loads[reader] += piece.length
    return shares


def _broadcast(ground: Ground, parcel: list[Segment], reader: int) -> Tensor:
    mine = ground.node.rank == reader
    buffer = _filled(ground, parcel) if mine else torch.empty(_end(parcel), dtype=torch.uint8)
    ground.node.broadcast(buffer, reader)
    return buffer


def _filled(ground: Ground, parcel: list[Segment]) -> Tensor:
    buffer = torch.empty(_end(parcel), dtype=torch.uint8)
    memory = buffer.numpy()
    for segment in parcel:
        data = ground.bytes_of(segment)
        if data:
            memory[segment.at : segment.at + segment.length] = np.frombuffer(data, dtype=np.uint8)
    return buffer


@torch.no_grad()
def _take(parcel: list[Segment], buffer: Tensor, targets: dict[StoredPiece, list[Shard]]) -> None:
    for segment in parcel:
        piece = segment.piece
        flat = buffer[segment.at : segment.at + segment.length].view(piece.dtype)
        rows = flat.view(segment.rows, *piece.sizes[1:])
        # Nobody here may need it: what some ranks of the node need is sent to all of them.
        for shard in targets.get(piece, ()):
            _put(segment, rows, shard)


def _put(segment: Segment, rows: Tensor, shard: Shard) -> None:
    """Copies the part of `rows` that lies in `shard`."""
    piece, tensor = segment.piece, shard.tensor
    if not piece.sizes:
        tensor.copy_(rows[0])
        return
    own, theirs = [], []
    starts = (piece.offset[0] + segment.first_row, *piece.offset[1:])
    for begin, size, at, length in zip(shard.offset, tensor.shape, starts, rows.shape, strict=True):
        low, high = max(begin, at), min(begin + size, at + length)
        if high <= low:
            return
        own.append(slice(low - begin, high - begin))
        theirs.append(slice(low - at, high - at))
    tensor[tuple(own)].copy_(rows[tuple(theirs)])


def _overlap(shard: Shard, piece: StoredPiece) -> int:
    """Values that a part and a piece have in common."""
    pairs = zip(shard.offset, shard.tensor.shape, piece.offset, piece.sizes, strict=True)
    return math.prod(
        max(0, min(begin + size, at + length) - max(begin, at)) for begin, size, at, length in pairs
    )

"""Whether files are what was written, to the last byte. Torch-free."""

import hashlib

from .storage import Storage
from .tensorfile import CHUNK_BYTES, CheckedPiece, Damaged, Written, read_index


def verify_file(storage: Storage, folder: str, written: Written) -> int:
    """Reads a file of a step and compares every digest; bytes read. Raises Damaged, OSError."""
    path = f"{folder}/{written.name}"
    size = storage.size(path)
    if size != written.size:
        raise Damaged(path, f"it has {size} bytes instead of {written.size}")
    if written.covers == "all":
        return _verify_whole(storage, path, written)
    end = 0
    for piece in read_index(storage, folder, written):
        reader = CheckedPiece(storage, piece)
        for begin in range(0, piece.length, CHUNK_BYTES):
            reader.read(min(CHUNK_BYTES, piece.length - begin))
        end = max(end, piece.start + piece.length)
    return max(end, written.size)


def _verify_whole(storage: Storage, path: str, written: Written) -> int:
    digest = hashlib.sha256()
    for begin in range(0, written.size, CHUNK_BYTES):
        digest.update(storage.read(path, begin, CHUNK_BYTES))
    if digest.hexdigest() != written.sha256:
        raise Damaged(path, "its digest is wrong")
    return written.size

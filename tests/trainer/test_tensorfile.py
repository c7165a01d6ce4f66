"""The tensor file: what goes in comes out, however it was cut, and no changed byte goes unseen."""

import json
from pathlib import Path

import pytest
import torch

from rerail_trainer.checkpoint.dtypes import KINDS
from rerail_trainer.checkpoint.load import read_pieces
from rerail_trainer.checkpoint.manifest import seal, unseal
from rerail_trainer.checkpoint.reading import Ground, Wanted, fill
from rerail_trainer.checkpoint.storage import PosixStorage
from rerail_trainer.checkpoint.tensorfile import (
    Damaged,
    Part,
    StoredPiece,
    Written,
    read_index,
    read_piece,
    write_tensor_file,
)
from rerail_trainer.control import Control
from rerail_trainer.parallel.shards import Shard

VALUES = {
    "a": torch.arange(24, dtype=torch.float32).reshape(4, 6),
    "b": torch.tensor(7.0),
    "c": torch.arange(5, dtype=torch.int64),
    "d": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "e": torch.empty(0, 3),
    "f": torch.tensor([True, False]),
}


def whole(name: str) -> tuple[Part, torch.Tensor]:
    value = VALUES[name]
    return Part(name, tuple(value.shape), (0,) * value.dim(), tuple(value.shape), KINDS[value.dtype]), value


def write(folder: Path, name: str, pieces: list[tuple[Part, torch.Tensor]]) -> Written:
    values = [
        memoryview(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        for _, value in pieces
    ]
    return write_tensor_file(PosixStorage(str(folder)), name, [part for part, _ in pieces], values)


def test_values_come_back_as_they_were(tmp_path: Path) -> None:
    storage = PosixStorage(str(tmp_path))
    written = write(tmp_path, "x.safetensors", [whole(name) for name in VALUES])
    assert (tmp_path / "x.safetensors").stat().st_size == written.size
    for piece in read_index(storage, ".", written):
        assert torch.equal(read_piece(storage, piece), VALUES[piece.name])
        assert read_piece(storage, piece).dtype == VALUES[piece.name].dtype


def test_the_file_has_the_safetensors_form(tmp_path: Path) -> None:
    write(tmp_path, "x.safetensors", [whole("a")])
    data = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begin, end = header["a"]["data_offsets"]
    assert (header["a"]["dtype"], header["a"]["shape"]) == ("F32", [4, 6])
    assert data[8 + length + begin : 8 + length + end] == VALUES["a"].numpy().tobytes()
    assert all(isinstance(value, str) for value in header["__metadata__"].values())


def test_every_single_flipped_byte_is_found(tmp_path: Path) -> None:
    storage = PosixStorage(str(tmp_path))
    written = write(tmp_path, "x.safetensors", [whole("a"), whole("b")])
    file = tmp_path / "x.safetensors"
    good = file.read_bytes()
    for position in range(len(good)):
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(Damaged):
            for piece in read_index(storage, ".", written):
                read_piece(storage, piece)
    file.write_bytes(good)
    assert len(read_index(storage, ".", written)) == 2


def test_every_single_flipped_byte_of_a_sealed_object_is_found() -> None:
    good = seal({"step": 4, "files": [{"name": "a", "size": 1}], "loss": 0.1})
    assert unseal("x", good)["step"] == 4
    for position in range(len(good)):
        for bit in (1, 16, 32):
            with pytest.raises(Damaged):
                unseal("x", good[:position] + bytes([good[position] ^ bit]) + good[position + 1 :])


@pytest.mark.parametrize("written_by", [1, 2, 3])
@pytest.mark.parametrize("read_by", [1, 2, 4])
def test_a_tensor_cut_one_way_is_read_back_cut_another_way(
    tmp_path: Path, written_by: int, read_by: int
) -> None:
    storage = PosixStorage(str(tmp_path))
    value = torch.arange(70, dtype=torch.float32).reshape(10, 7)
    files = []
    begin = 0
    for rank, part in enumerate(value.chunk(written_by)):
        piece = Part("t", (10, 7), (begin, 0), tuple(part.shape), "F32")
        files.append(write(tmp_path, f"{rank}.safetensors", [(piece, part.contiguous())]))
        begin += len(part)
    stored = read_pieces(storage, ".", tuple(files))["t"]
    begin = 0
    for part in value.chunk(read_by):
        room = torch.full_like(part, -1.0)
        assert problem_of_filling(storage, Shard(room, (10, 7), (begin, 0), sharded=True), stored) == ""
        assert torch.equal(room, part)
        begin += len(part)


def problem_of_filling(storage: PosixStorage, shard: Shard, pieces: list[StoredPiece]) -> str:
    ground = Ground(storage, "", Control(0, 1))
    fill(ground, [Wanted(pieces[0].name, shard)], {pieces[0].name: pieces})
    return ground.problem


def test_a_missing_part_is_found(tmp_path: Path) -> None:
    storage = PosixStorage(str(tmp_path))
    part = Part("t", (4, 2), (0, 0), (2, 2), "F32")
    stored = read_pieces(storage, ".", (write(tmp_path, "x", [(part, torch.ones(2, 2))]),))["t"]
    whole = Shard(torch.zeros(4, 2), (4, 2), (0, 0), sharded=False)
    assert "not complete" in problem_of_filling(storage, whole, stored)

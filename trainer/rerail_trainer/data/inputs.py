"""Raw text as people keep it: text files, JSON lines, parquet; cut into chunks of work, read as documents.

Chunks follow from the inputs alone, so the same inputs give the same tokens whoever works on which chunk.
"""

import glob
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

from rerail_trainer.failures import BadConfig

from .answers import messages_of

MOST_CHUNKS = 20_000
HEAD_BYTES = 65_536
"""So much of a document decides on which side of the held-out split it falls."""
_BLOCK = 1 << 20

Kind = Literal["text", "lines", "parquet"]
Invalid = Literal["refuse", "replace", "skip"]


@dataclass(frozen=True)
class Reading:
    """How documents lie in the inputs."""

    field: str = "text"
    """Key of a JSON object, column of a parquet file."""
    chat: bool = False
    """Whether that holds conversations, a list of messages each: a document's text is then their JSON."""
    separator: str = ""
    """Text that stands between the documents of a text file; empty: a file is a document."""
    invalid: Invalid = "refuse"
    """What to do with bytes that are no UTF-8 and with records that are none."""


@dataclass(frozen=True)
class Input:
    """One file: what identifies its content between two runs."""

    file: str
    size: int
    modified_ns: int

    @property
    def kind(self) -> Kind:
        suffixes = Path(self.file.removesuffix(".gz")).suffix
        if suffixes in (".jsonl", ".ndjson", ".json"):
            return "lines"
        return "parquet" if suffixes == ".parquet" else "text"


@dataclass(frozen=True)
class Piece:
    """Bytes `begin` to `end` of a file, or all of it where it is compressed; row groups of a parquet file."""

    file: str
    kind: Kind
    begin: int
    end: int
    size: int
    """Bytes of the whole file."""
    weight: int
    """Bytes of input that it stands for."""


@dataclass(frozen=True)
class Document:
    """A document, or the next part of one that is too long for one chunk; `ends` with its last part."""

    text: str
    head: bytes
    """The first HEAD_BYTES of the whole document."""
    ends: bool = True


class Invalids:
    """Counts what was left out or mended, or refuses it."""

    def __init__(self, policy: Invalid) -> None:
        self.policy, self.count = policy, 0

    def meet(self, where: str, what: str) -> None:
        """One invalid thing; raises BadConfig where the policy is to refuse."""
        if self.policy == "refuse":
            raise BadConfig(f"{where} {what}; `--invalid replace` or `--invalid skip` goes on without it")
        self.count += 1


def find_inputs(patterns: list[str]) -> list[Input]:
    """The files that files, folders and glob patterns name, in the order given and sorted within each."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        found = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
        found = found or sorted(Path(name) for name in glob.glob(pattern, recursive=True))
        kept = [file for file in found if file.is_file() and not file.name.startswith(".")]
        if not kept:
            raise BadConfig(f"{pattern} names no file to read")
        files.update(dict.fromkeys(kept))
    stats = [(str(file), file.stat()) for file in files]
    return [Input(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def chunks_of(inputs: list[Input], chunk_bytes: int) -> list[tuple[Piece, ...]]:
    """Cuts the inputs into chunks of about `chunk_bytes`, or more where that would be too many."""
    limit = max(chunk_bytes, sum(one.size for one in inputs) // MOST_CHUNKS)
    chunks, open_chunk, weight = list[tuple[Piece, ...]](), list[Piece](), 0
    for piece in (piece for one in inputs for piece in _pieces(one, limit)):
        open_chunk.append(piece)
        weight += piece.weight
        if weight >= limit:
            chunks.append(tuple(open_chunk))
            open_chunk, weight = [], 0
    return [*chunks, tuple(open_chunk)] if open_chunk else chunks


def documents_of(piece: Piece, reading: Reading, invalids: Invalids) -> Iterator[Document]:
    """The documents of one piece, empty ones left out. BadConfig names file and line of what is wrong."""
    try:
        if piece.kind == "parquet":
            yield from _rows(piece, reading, invalids)
        elif piece.kind == "lines":
            yield from _lines(piece, reading, invalids)
        elif reading.chat:
            raise BadConfig(f"{piece.file}: conversations are read from .jsonl and .parquet files")
        elif reading.separator:
            yield from _separated(piece, reading, invalids)
        else:
            yield from _whole(piece, invalids)
    except (OSError, EOFError) as error:
        raise BadConfig(
            f"{piece.file} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _pieces(one: Input, limit: int) -> Iterator[Piece]:
    if one.kind == "parquet":
        weights = _row_group_bytes(one.file)
        yield from (
            Piece(one.file, "parquet", i, i + 1, one.size, weight) for i, weight in enumerate(weights)
        )
    elif one.size <= limit or one.file.endswith(".gz"):
        yield Piece(one.file, one.kind, 0, one.size, one.size, one.size)
    else:
        borders = [*range(0, one.size, limit), one.size]
        for begin, end in pairwise(borders):
            yield Piece(one.file, one.kind, begin, end, one.size, end - begin)


def _content(piece: Piece, mark: bytes) -> tuple[int, bytes]:
    """(place, bytes) of a piece, its borders moved behind the next `mark`, so that pieces tile the file.

    Where marks overlap each other, as `--` does in `---`, which of them divides hangs on where pieces lie.
    """
    if piece.file.endswith(".gz"):
        with gzip.open(piece.file) as unpacked:
            return 0, unpacked.read()
    with open(piece.file, "rb") as stream:
        begin, end = _behind(stream, piece.begin, mark, piece), _behind(stream, piece.end, mark, piece)
        stream.seek(begin)
        return begin, stream.read(end - begin)


def _behind(stream: BinaryIO, place: int, mark: bytes, piece: Piece) -> int:
    """The end of the first `mark` that ends at `place` or later; 0 and the file's end are borders anyway."""
    if place in (0, piece.size):
        return place
    at = max(0, place - len(mark))
    stream.seek(at)
    tail = b""
    while block := stream.read(_BLOCK):
        found = (tail + block).find(mark)
        if found >= 0:
            return at - len(tail) + found + len(mark)
        at += len(block)
        tail = (tail + block)[max(0, len(tail) + len(block) - len(mark) + 1) :]
    return piece.size


def _whole(piece: Piece, invalids: Invalids) -> Iterator[Document]:
    place, raw = _content(piece, b"\n")
    alone = piece.file.endswith(".gz") or (piece.begin == 0 and piece.end == piece.size)
    ends = alone or piece.end == piece.size
    text = _decoded(raw, invalids, piece.file, place) or ""
    text = text.removeprefix("\ufeff") if place == 0 else text
    if alone and text:
        yield Document(text, raw[:HEAD_BYTES])
    elif not alone and (text or ends):
        with open(piece.file, "rb") as stream:
            yield Document(text, stream.read(HEAD_BYTES), ends)


def _separated(piece: Piece, reading: Reading, invalids: Invalids) -> Iterator[Document]:
    mark = reading.separator.encode()
    place, raw = _content(piece, mark)
    for part in raw.split(mark):
        text = _decoded(part, invalids, piece.file, place)
        place += len(part) + len(mark)
        if text is not None and text.strip("\r\n"):
            text = text.strip("\r\n")
            yield Document(text, text.encode()[:HEAD_BYTES])


def _lines(piece: Piece, reading: Reading, invalids: Invalids) -> Iterator[Document]:
    place, raw = _content(piece, b"\n")
    for index, line in enumerate(raw.split(b"\n")):
        if not line.strip():
            continue
        text, problem = _record(line.removeprefix(b"\xef\xbb\xbf"), reading)
        if problem:
            number = index + 1 + _lines_before(piece, place) if reading.invalid == "refuse" else 0
            invalids.meet(f"{piece.file}, line {number}:", problem)
        if text:
            yield Document(text, text.encode()[:HEAD_BYTES])


def _record(line: bytes, reading: Reading) -> tuple[str, str]:
    """(text, problem) of one JSON line: nothing and what is wrong, or the text."""
    try:
        record = json.loads(line.decode(errors="replace") if reading.invalid == "replace" else line)
        text = record[reading.field] if isinstance(record, dict) else None
    except UnicodeDecodeError as error:
        return "", f"byte {error.start + 1} of the line is no UTF-8"
    except ValueError as error:
        return "", f"no JSON ({error})"
    except KeyError:
        return "", f"has no {reading.field!r} (--field); it has {', '.join(sorted(record)) or 'nothing'}"
    if not isinstance(record, dict):
        return "", "is no JSON object"
    return _text_of(text, reading)


def _text_of(value: Any, reading: Reading) -> tuple[str, str]:
    """(text, problem) of the field of a record."""
    if reading.chat:
        messages, problem = messages_of(value)
        if problem:
            return "", problem
        value = json.dumps(messages, ensure_ascii=False)
    if not isinstance(value, str):
        return "", f"{reading.field!r} is no text but {type(value).__name__}"
    return _without_surrogates(value, reading)


def _without_surrogates(text: str, reading: Reading) -> tuple[str, str]:
    try:
        text.encode()
    except UnicodeEncodeError:
        if reading.invalid == "replace":
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), ""
        return "", "holds half a surrogate pair, which is no text"
    return text, ""


def _rows(piece: Piece, reading: Reading, invalids: Invalids) -> Iterator[Document]:
    parquet = _open_parquet(piece.file)
    names = parquet.schema_arrow.names
    if reading.field not in names:
        raise BadConfig(f"{piece.file} has no column {reading.field!r} (--field); it has {', '.join(names)}")
    for group in range(piece.begin, piece.end):
        column = parquet.read_row_group(group, columns=[reading.field]).column(0)
        for number, value in enumerate(column.to_pylist(), start=1):
            text, problem = ("", "") if value is None else _text_of(value, reading)
            if problem:
                invalids.meet(f"{piece.file}, row {number} of row group {group}:", problem)
            if text:
                yield Document(text, text.encode()[:HEAD_BYTES])


def _row_group_bytes(file: str) -> list[int]:
    metadata = _open_parquet(file).metadata
    return [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]


def _open_parquet(file: str) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise BadConfig(f"{file} needs the package pyarrow: pip install pyarrow") from error
    try:
        return ParquetFile(file)
    except (ArrowInvalid, OSError) as error:
        raise BadConfig(f"{file} cannot be read as parquet: {str(error).splitlines()[0]}") from error


def _decoded(raw: bytes, invalids: Invalids, file: str, place: int) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        invalids.meet(f"{file}:", f"byte {place + error.start} is no UTF-8")
    return raw.decode(errors="replace") if invalids.policy == "replace" else None


def _lines_before(piece: Piece, place: int) -> int:
    """Lines of the file before `place`: read only where an error must name its line."""
    if place == 0:
        return 0
    with open(piece.file, "rb") as stream:
        return sum(stream.read(min(_BLOCK, place - at)).count(b"\n") for at in range(0, place, _BLOCK))

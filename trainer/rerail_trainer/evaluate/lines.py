"""JSONL in and out, with complaints that name file and line. Torch-free."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerail_trainer.failures import BadConfig


@dataclass(frozen=True)
class Line:
    """One JSON object and where it stands."""

    where: str
    values: dict[str, Any]

    def text(self, name: str, default: str | None = None) -> str:
        """A field that must be text; without `default` it must be there."""
        value = self.values.get(name, default)
        if not isinstance(value, str):
            raise BadConfig(f"{self.where}: {name!r} must be text, not {value!r}")
        return value

    def refuse(self, message: str) -> BadConfig:
        """The complaint to raise about this line."""
        return BadConfig(f"{self.where}: {message}")


def read_lines(path: str) -> list[Line]:
    """The JSON objects of a JSONL file; empty lines are passed over.

    Raises BadConfig for a file that cannot be read or holds none, and for a line that is no object.
    """
    found = []
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        where = f"{path} line {number}"
        try:
            values = json.loads(text)
        except ValueError as error:
            raise BadConfig(f"{where} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise BadConfig(f"{where} must be a JSON object")
        found.append(Line(where, values))
    if not found:
        raise BadConfig(f"{path} holds no line")
    return found


def read_text(path: str) -> str:
    """A UTF-8 file, or BadConfig."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error


def with_newlines(word: str) -> str:
    """A word of a command line in which \\n stands for a line break."""
    return word.replace("\\n", "\n")


def write_lines(path: str, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object per line; BadConfig where the file cannot be written."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadConfig(f"{path} cannot be written: {error.strerror}") from error


def refuse_existing(path: str) -> None:
    """Nothing that somebody wrote is overwritten."""
    if path and Path(path).exists():
        raise BadConfig(f"{path} is there already; name another file or remove it")

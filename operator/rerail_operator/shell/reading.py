"""Files that a person names on the command line: what is wrong with one is a line with its place in it."""

from pathlib import Path
from typing import Any

import yaml


class Unreadable(ValueError):
    """The file cannot be read; the text is one line that begins with its name."""


def text_of(path: Path, what: str) -> str:
    """The file's text. `what` it should hold, for the complaint. Raises `Unreadable`."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Unreadable(f"{path}: there is no such file; name {what}") from None
    except IsADirectoryError:
        raise Unreadable(f"{path}: is a folder; name {what}") from None
    except UnicodeDecodeError:
        raise Unreadable(f"{path}: cannot be read: it is no text; name {what}") from None
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read: {error.strerror or error}") from None


def tree_of(path: Path, what: str) -> Any:
    """What a file of YAML or JSON says, as plain values. Raises `Unreadable`."""
    text = text_of(path, what)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise no_yaml(path, error) from None


def no_yaml(path: Path, error: yaml.YAMLError) -> Unreadable:
    """The complaint, with line and column (from 1) where they are known."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else None
    return Unreadable(f"{where}: not YAML: {problem or ' '.join(str(error).split())}")

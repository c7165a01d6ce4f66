"""Label and field selectors in Kubernetes' own syntax, for the in-memory cluster."""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from rerail_operator.shell.cluster import Object, Rejected

Test = Callable[[str | None], bool]

_SETS: Final = re.compile(r"^(?P<key>\S+)\s+(?P<op>in|notin)\s*\((?P<values>[^)]*)\)$")
_EQUAL: Final = re.compile(r"^(?P<key>[^\s=!]+)\s*(?P<op>!=|==|=)\s*(?P<value>[^\s=!]*)$")
_EXISTS: Final = re.compile(r"^(?P<no>!?)\s*(?P<key>[^\s=!,()]+)$")
_COMMA: Final = re.compile(r",(?![^(]*\))")


def matches(obj: Object, labels: str, fields: str) -> bool:
    """True when the object fits both selectors. Raises Rejected for a selector that cannot be read."""
    metadata = obj.get("metadata") or {}
    own: Mapping[str, str] = metadata.get("labels") or {}
    return all(test(own.get(key)) for key, test in _parsed(labels)) and all(
        test(_field(obj, key)) for key, test in _parsed(fields)
    )


@lru_cache(maxsize=256)
def _parsed(selector: str) -> tuple[tuple[str, Test], ...]:
    return tuple(_requirement(part.strip()) for part in _COMMA.split(selector) if part.strip())


def _requirement(text: str) -> tuple[str, Test]:
    if found := _SETS.match(text):
        values = frozenset(value.strip() for value in found["values"].split(","))
        if found["op"] == "in":
            return found["key"], lambda own: own in values
        return found["key"], lambda own: own not in values
    if found := _EQUAL.match(text):
        wanted = found["value"]
        if found["op"] == "!=":
            return found["key"], lambda own: own != wanted
        return found["key"], lambda own: own == wanted
    if found := _EXISTS.match(text):
        absent = bool(found["no"])
        return found["key"], lambda own: (own is None) is absent
    raise Rejected(f"unable to parse requirement: {text!r}")


def _field(obj: Object, path: str) -> str:
    value: Any = obj
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return "" if value is None else str(value)

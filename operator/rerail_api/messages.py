"""Turns a validation error into a sentence that says what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rerail_api.spec import MAX_INTERVAL_SECONDS, MAX_PROCS_PER_NODE
from rerail_api.template import TemplateShape


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a manifest: where, and what to write instead."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


_SENTENCES: Final[Mapping[str, str]] = {
    "missing": "required, but not there",
    "int_type": "write a whole number, without quotes",
    "int_from_float": "write a whole number",
    "float_type": "write a number, without quotes",
    "bool_type": "write true or false, without quotes",
    "string_type": "write a text (in quotes, where YAML would read a number or true/false)",
    "list_type": "write a list",
    "tuple_type": "write a list",
    "dict_type": "write an object (key: value)",
    "model_type": "write an object (key: value)",
    "model_attributes_type": "write an object (key: value)",
    "greater_than_equal": "write {ge} or more",
    "less_than_equal": "write {le} or less",
    "string_too_short": "write at least {min_length} character(s)",
    "string_too_long": "write at most {max_length} characters",
    "too_short": "write at least {min_length} item(s)",
    "too_long": "write at most {max_length} items",
    "enum": "write one of {expected}",
    "literal_error": "write {expected}",
    "string_pattern_mismatch": "write a text of the form {pattern}",
    "value_error": "{error}",
    "timezone_aware": "write a time with its zone, as in 2026-11-23T10:00:00Z",
}
_OR_AUTO: Final[Mapping[str, str]] = {
    "numProcPerNode": f"write a whole number from 1 to {MAX_PROCS_PER_NODE}, or auto",
    "interval": f"write a whole number of seconds from 1 to {MAX_INTERVAL_SECONDS}, or auto",
}
"""Fields of a union: it reports each of its members, where people see one field."""


def problems(error: ValidationError, model: type[BaseModel], at: str = "") -> tuple[Problem, ...]:
    """Every problem that pydantic found in `model`, one per place, in the order of the manifest.

    `at` is the path of the model within the manifest ("" for the whole).
    """
    found: dict[str, Problem] = {}
    details = error.errors(include_url=False)
    for detail in details:
        if not _only_follows(detail, details):
            problem = _problem(detail, model, at)
            found.setdefault(problem.path, problem)
    return tuple(found.values())


def _only_follows(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """A list whose only items are refused also counts as too short: the items say enough."""
    loc = detail["loc"]
    below = (other for other in details if len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc)
    return detail["type"] == "too_short" and any(below)


def _problem(detail: ErrorDetails, model: type[BaseModel], at: str) -> Problem:
    loc = detail["loc"]
    for field, sentence in _OR_AUTO.items():
        if field in loc:
            return Problem(_path(at, loc[: loc.index(field) + 1]), f"{sentence}{_seen(detail)}")
    if detail["type"] == "extra_forbidden":
        return Problem(_path(at, loc), _unknown_field(str(loc[-1]), _fields(model, loc[:-1])))
    template = _SENTENCES.get(detail["type"])
    if template is None:
        return Problem(_path(at, loc), detail["msg"])
    sentence = template.format(**detail.get("ctx", {}))
    return Problem(_path(at, loc), sentence + ("" if detail["type"] == "missing" else _seen(detail)))


def _path(at: str, loc: Iterable[int | str]) -> str:
    path = at
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "manifest"


def _seen(detail: ErrorDetails) -> str:
    value = detail["input"]
    return f" (found {value!r})" if isinstance(value, str | int | float) and len(str(value)) <= 64 else ""


def _unknown_field(name: str, known: list[str]) -> str:
    by_lower_case = {field.lower(): field for field in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower_case), n=1, cutoff=0.6)
    if near:
        return f"unknown field; did you mean {by_lower_case[near[0]]}?"
    return f"unknown field; known here: {', '.join(known)}"


def _fields(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """JSON names of the fields of the model that `loc` leads to."""
    current: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, int) or current is None:
            continue
        current = next(
            (
                _model_in(info.annotation, name)
                for name, info in current.model_fields.items()
                if _json_name(info.alias, name) == part
            ),
            None,
        )
    if current is None:
        return []
    return [_json_name(info.alias, name) for name, info in current.model_fields.items()]


def _json_name(alias: str | None, name: str) -> str:
    return alias or name


def _model_in(annotation: Any, name: str) -> type[BaseModel] | None:
    """The model inside `tuple[X, ...]`, `X | None` or `X`; the template's shape for the template."""
    if name == "template":
        return TemplateShape
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner: Callable[[Any], type[BaseModel] | None] = lambda part: _model_in(part, "")  # noqa: E731
    return next((model for model in map(inner, get_args(annotation)) if model is not None), None)

"""Pydantic models -> structural schema of Kubernetes (OpenAPI v3 without $ref, null, const, title).

What this module does not know raises `TypeError` when the CRD is generated: nothing passes through
unread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel

Schema = dict[str, Any]

_COPIED: Final = frozenset(
    {
        "type",
        "format",
        "description",
        "enum",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "pattern",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "required",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    }
)
_FIRST: Final = ("description", "type", "format", "default", "enum")
_LAST: Final = ("required", "properties", "additionalProperties", "items")
_DROPPED: Final = frozenset({"title"})
_FORMATS: Final = frozenset({"date-time"})


def structural_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of a model, as an API server accepts it in a CRD.

    Raises TypeError, naming the place, for a construct that has no structural form.
    """
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _Converter(raw.get("$defs", {})).convert(raw, model.__name__)


class _Converter:
    """One walk over one JSON schema."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._keys: dict[str, Callable[[Schema, Any, str], None]] = {
            "properties": self._properties,
            "items": self._items,
            "additionalProperties": self._additional_properties,
            "propertyNames": self._property_names,
            "default": self._default,
            "const": self._const,
        }

    def convert(self, node: Schema, at: str) -> Schema:
        """The structural form of one node; `at` names it in errors."""
        node = self._without_indirection(node, at)
        out: Schema = {}
        for key, value in node.items():
            if key in _DROPPED or key == "$defs":
                continue
            if key in _COPIED or key == "x-kubernetes-int-or-string":
                out[key] = value
            elif key in self._keys:
                self._keys[key](out, value, at)
            else:
                raise TypeError(f"{at}: {key!r} has no structural form")
        if out.get("format", "date-time") not in _FORMATS:
            raise TypeError(f"{at}: format {out['format']!r} is unknown to Kubernetes")
        if "type" not in out and "x-kubernetes-int-or-string" not in out:
            raise TypeError(f"{at}: no type")
        return {key: out[key] for key in sorted(out, key=_reading_order)}

    def _without_indirection(self, node: Schema, at: str) -> Schema:
        """Resolve $ref and `X | None`; what stands beside them wins over what they lead to."""
        if "$ref" in node:
            target = self._definitions[node["$ref"].removeprefix("#/$defs/")]
            beside = {key: value for key, value in node.items() if key != "$ref"}
            return self._without_indirection({**target, **beside}, at)
        if "anyOf" not in node:
            return node
        members = [member for member in node["anyOf"] if member != {"type": "null"}]
        beside = {key: value for key, value in node.items() if key != "anyOf"}
        if len(members) == 1:
            return self._without_indirection({**members[0], **beside}, at)
        return {**_int_or_string(members, at), **beside}

    def _properties(self, out: Schema, value: Mapping[str, Schema], at: str) -> None:
        out["properties"] = {name: self.convert(node, f"{at}.{name}") for name, node in value.items()}

    def _items(self, out: Schema, value: Schema, at: str) -> None:
        out["items"] = self.convert(value, f"{at}[]")

    def _additional_properties(self, out: Schema, value: bool | Schema, at: str) -> None:
        # False is what a structural schema does anyway: unknown fields are pruned, or refused when strict.
        if value is True:
            out["x-kubernetes-preserve-unknown-fields"] = True
        elif isinstance(value, dict):
            out["additionalProperties"] = self.convert(value, f"{at}.*")

    def _property_names(self, out: Schema, value: Schema, at: str) -> None:
        # Names of keys cannot be checked there; a closed list at least bounds their number.
        names = self._without_indirection(value, at).get("enum")
        if names is None:
            raise TypeError(f"{at}: names of keys must be an enum")
        out["maxProperties"] = len(names)

    def _default(self, out: Schema, value: Any, at: str) -> None:
        # In full, not {}: the server checks a default against the rules before it fills in nested ones.
        if value is not None:
            out["default"] = _without_nulls(value)

    def _const(self, out: Schema, value: Any, at: str) -> None:
        out["enum"] = [value]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return value


def _reading_order(key: str) -> tuple[int, int, str]:
    if key in _FIRST:
        return (0, _FIRST.index(key), key)
    return (2, _LAST.index(key), key) if key in _LAST else (1, 0, key)


def _int_or_string(members: list[Schema], at: str) -> Schema:
    """`int | Literal["auto"]`: numeric bounds apply to numbers only, the pattern to texts only."""
    kinds = {member.get("type"): member for member in members}
    if len(members) != 2 or set(kinds) != {"integer", "string"} or "const" not in kinds["string"]:
        raise TypeError(f"{at}: a union of this form has no structural form")
    bounds = {key: kinds["integer"][key] for key in ("minimum", "maximum")}
    return {"x-kubernetes-int-or-string": True, **bounds, "pattern": f"^{kinds['string']['const']}$"}

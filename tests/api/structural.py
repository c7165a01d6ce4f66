"""A small judge of objects by a structural schema: what the API server's schema check does, without CEL."""

import re
from typing import Any

Schema = dict[str, Any]
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}


def violations(value: Any, schema: Schema, at: str = "") -> list[str]:
    """What is wrong with `value`, unknown fields included; empty when nothing is."""
    if not _has_type(value, schema):
        return [f"{at}: not of type {schema.get('type', 'integer or string')}"]
    found = [f"{at}: {text}" for text in _scalar_violations(value, schema)]
    if isinstance(value, dict):
        found += _object_violations(value, schema, at)
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            found += violations(item, schema["items"], f"{at}[{number}]")
    return found


def _has_type(value: Any, schema: Schema) -> bool:
    if schema.get("x-kubernetes-int-or-string"):
        return isinstance(value, int | str) and not isinstance(value, bool)
    if isinstance(value, bool):
        return schema["type"] == "boolean"
    return isinstance(value, TYPES[schema["type"]])


def _scalar_violations(value: Any, schema: Schema) -> list[str]:
    size = len(value) if isinstance(value, str | list | dict) else 0
    name = {str: "Length", list: "Items", dict: "Properties"}.get(type(value), "")
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    checks = {
        "enum": value in schema.get("enum", [value]),
        "minimum": number is None or number >= schema.get("minimum", number),
        "maximum": number is None or number <= schema.get("maximum", number),
        f"min{name}": not name or size >= schema.get(f"min{name}", 0),
        f"max{name}": not name or size <= schema.get(f"max{name}", size),
        "pattern": not isinstance(value, str) or re.search(schema.get("pattern", ""), value) is not None,
    }
    return [f"breaks {check}" for check, holds in checks.items() if not holds]


def _object_violations(value: dict[str, Any], schema: Schema, at: str) -> list[str]:
    found = [f"{at}.{name}: required" for name in schema.get("required", []) if name not in value]
    known = schema.get("properties", {})
    for name, part in value.items():
        if name in known:
            found += violations(part, known[name], f"{at}.{name}")
        elif "additionalProperties" in schema:
            found += violations(part, schema["additionalProperties"], f"{at}.{name}")
        elif (known or at) and not schema.get("x-kubernetes-preserve-unknown-fields") and at != ".metadata":
            found.append(f"{at}.{name}: unknown")
    return found

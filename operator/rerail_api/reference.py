"""The reference page of TrainingJob, made from the schema and the rules.

`python -m rerail_api.reference --write` writes it, `--check` fails when it is not current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from rerail_api.contract import API_VERSION, KIND
from rerail_api.crd import open_api_schema
from rerail_api.generated import keep_current
from rerail_api.job import SHORT_NAME
from rerail_api.rules import RULES, TRANSITIONS, Rule, Transition
from rerail_api.schema import Schema

FILE: Final = "docs/reference/trainingjob.md"

_HEAD: Final = f"""<!-- Written by `python -m rerail_api.reference --write` from the models. -->
# {KIND}

`apiVersion: {API_VERSION}`, `kind: {KIND}`, short name `{SHORT_NAME}`. `spec` is yours, `status` is Rerail's.
`kubectl explain {SHORT_NAME}.spec --recursive` shows the same fields from the cluster.

The smallest job:

```yaml
apiVersion: {API_VERSION}
kind: {KIND}
metadata: {{name: my-job}}
spec:
  template:
    spec:
      containers:
      - name: trainer
        image: example.com/trainer:1
        command: [python, train.py]
```
"""
_RULES_HEAD: Final = """
## Rules

Checked by the API server beyond types and bounds, and by `rerail run` in the same words.

| Field | What to write |
|---|---|
"""
_CHANGES_HEAD: Final = """
## Changes

Checked by the API server when a stored job is changed.

| Field | What may change |
|---|---|
"""
_TAIL: Final = """
## What only the operator can tell

- Fields of the pod template that are not named above are passed on as they are. Before a gang is created one
  pod goes through a strict dry run at the API server; a refusal (a typing error, a quota, Pod Security)
  becomes a condition with the server's own words.
- A change of the template that touches only such fields may pass the rule above. The running gang does not
  change: its template is frozen at admission and read again at the next resume.
- `numProcPerNode: auto` with several kinds of accelerators in the limits cannot be resolved: write a number.
"""


def reference() -> str:
    """The page as Markdown; the same models give the same bytes."""
    fields = open_api_schema()["properties"]
    parts = [_HEAD]
    for name in ("spec", "status"):
        parts += [f"\n## {name}\n\n{fields[name]['description']}\n", *_sections(fields[name], name)]
    parts += [_RULES_HEAD, *_rule_rows(RULES), _CHANGES_HEAD, *_rule_rows(TRANSITIONS), _TAIL]
    return "".join(parts)


def _sections(schema: Schema, path: str) -> Iterator[str]:
    """A table of the fields of one object, then those of the objects below it."""
    required = schema.get("required", [])
    yield "\n| Field | Type | Default | Meaning |\n|---|---|---|---|\n"
    for name, field in schema["properties"].items():
        cells = (f"`{name}`", _type(field), _default(field, name in required), field.get("description", ""))
        yield f"| {' | '.join(map(_cell, cells))} |\n"
    for name, field in schema["properties"].items():
        suffix, inner = _object_below(field)
        if inner is not None:
            yield f"\n### {path}.{name}{suffix}\n"
            yield from _sections(inner, f"{path}.{name}{suffix}")


def _object_below(field: Schema) -> tuple[str, Schema | None]:
    if "properties" in field:
        return "", field
    items = field.get("items", {})
    return ("[]", items) if "properties" in items else ("", None)


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        word = field["pattern"].strip("^$")
        return f"integer, {field['minimum']} to {field['maximum']}, or `{word}`"
    if "enum" in field:
        return "one of " + ", ".join(f"`{value}`" for value in field["enum"])
    match field["type"]:
        case "array":
            return f"list of {_plural(field['items'])}{_bounds(field, 'Items', '')}"
        case "object" if "additionalProperties" in field:
            return f"map of {_plural(field['additionalProperties'])}{_bounds(field, 'Properties', '')}"
        case "string" if field.get("format") == "date-time":
            return "time"
        case "string":
            return f"string{_bounds(field, 'Length', ' characters')}"
        case "integer" | "number":
            return f"{field['type']}{_range(field)}"
    return str(field["type"])


def _plural(items: Schema) -> str:
    return f"{items['type']}s"


def _bounds(field: Schema, what: str, unit: str) -> str:
    least, most = field.get(f"min{what}", 0), field.get(f"max{what}")
    if most is None:
        return f", at least {least}{unit}" if least else ""
    return f", {least} to {most}{unit}" if least else f", at most {most}{unit}"


def _range(field: Schema) -> str:
    least, most = field.get("minimum"), field.get("maximum")
    if least is None:
        return ""
    if most is None or most > 2**32:
        return f", {least:g} or more"
    return f", {int(least)} to {int(most)}"


def _default(field: Schema, required: bool) -> str:
    if required:
        return "required"
    value = field.get("default")
    if value is None or isinstance(value, dict) or value in ("", []):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _rule_rows(rules: tuple[Rule, ...] | tuple[Transition, ...]) -> Iterator[str]:
    return (f"| `{rule.path}` | {_cell(rule.message)} |\n" for rule in rules)


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or say that it is not current (exit code 1)."""
    return keep_current("rerail_api.reference", {FILE: reference()}, arguments)


if __name__ == "__main__":
    sys.exit(main())

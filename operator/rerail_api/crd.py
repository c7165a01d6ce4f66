"""The CustomResourceDefinition of TrainingJob: models + rules -> YAML, for `crds/` and the chart.

`python -m rerail_api.crd --write` writes both files, `--check` fails when they are not current.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import cache
from typing import Any, Final

import yaml

from rerail_api.contract import ANNOTATION_SCHEMA_HASH, GROUP, KIND, PLURAL, VERSION
from rerail_api.generated import keep_current
from rerail_api.job import SHORT_NAME, SINGULAR, TrainingJob
from rerail_api.rules import RULES, TRANSITIONS, Rule, Transition
from rerail_api.schema import Schema, structural_schema

CRD_NAME: Final = f"{PLURAL}.{GROUP}"
FILES: Final = ("crds/trainingjobs.yaml", "helm/rerail/crds/trainingjobs.yaml")
HEADER: Final = "# Written by `python -m rerail_api.crd --write` from the models; change those instead.\n"

_COLUMNS: Final = (
    ("Phase", "string", ".status.phase", 0, "Where the job stands."),
    ("Reason", "string", ".status.reason", 0, "Why it stands there."),
    ("Ready", "string", ".status.nodes.summary", 0, "Node ranks whose ranks all run, of all."),
    ("Restarts", "integer", ".status.restarts.total", 0, "Restarts, charged or free."),
    ("Step", "integer", ".status.progress.step", 0, "Last finished step."),
    ("Round", "integer", ".status.round", 1, "Generation of running processes."),
    ("Checkpoint", "integer", ".status.lastCheckpoint.step", 1, "Step of the newest checkpoint."),
    ("ETTR", "number", ".status.ledger.ettr", 1, "Effective training time ratio."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since creation."),
)


@cache
def open_api_schema() -> Schema:
    """The schema of the whole object with its CEL rules. Treat as read-only."""
    schema = structural_schema(TrainingJob)
    fields = schema["properties"]
    # The server owns these three; a name is declared so that a rule can point at it.
    for name in ("apiVersion", "kind"):
        fields[name] = {"type": "string", "description": fields[name]["description"]}
    fields["metadata"] = {"type": "object", "properties": {"name": {"type": "string"}}}
    # A default here would show an empty status on every new job, as if somebody had looked at it.
    del fields["status"]["default"]
    schema["required"] = ["spec"]
    for rule in (*RULES, *TRANSITIONS):
        _schema_at(schema, rule.at).setdefault("x-kubernetes-validations", []).append(_validation(rule))
    return schema


def schema_hash() -> str:
    """Sixteen hex digits that change whenever the schema does."""
    canonical = json.dumps(open_api_schema(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition as a manifest."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
        "selectableFields": [{"jsonPath": ".status.phase"}],
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": open_api_schema()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD_NAME, "annotations": {ANNOTATION_SCHEMA_HASH: schema_hash()}},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def crd_yaml() -> str:
    """The manifest as text; the same models give the same bytes."""
    body = yaml.dump(crd(), Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True)
    return HEADER + body


class _Plain(yaml.SafeDumper):
    """YAML without anchors: a schema that is used twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _column(name: str, kind: str, path: str, priority: int, description: str) -> dict[str, Any]:
    column = {"name": name, "type": kind, "description": description, "jsonPath": path}
    return column | ({"priority": priority} if priority else {})


def _validation(rule: Rule | Transition) -> dict[str, str]:
    validation = {"rule": rule.cel, "message": rule.message}
    return validation | ({"fieldPath": rule.field} if rule.field else {})


def _schema_at(schema: Schema, path: str) -> Schema:
    for name in filter(None, path.split(".")):
        schema = schema["properties"][name]
    return schema


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or say which are not current (exit code 1)."""
    return keep_current("rerail_api.crd", {name: crd_yaml() for name in FILES}, arguments)


if __name__ == "__main__":
    sys.exit(main())

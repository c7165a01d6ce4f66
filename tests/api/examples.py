"""The bad examples of `bad/` and the manifests of the shipped `examples/`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rerail_api.contract import KIND

CHECKOUT = Path(__file__).resolve().parents[2]
BAD = Path(__file__).parent / "bad"


@dataclass(frozen=True)
class BadExample:
    """A manifest that is refused, where, and in which words.

    `rule` is empty for what the schema alone refuses; there the server has words of its own (`server`).
    `before` is the version that was stored, for rules about a change.
    """

    name: str
    path: str
    message: str
    manifest: dict[str, Any]
    rule: str = ""
    server: str = ""
    before: dict[str, Any] | None = None

    @property
    def concerns_status(self) -> bool:
        return self.path.startswith("status")


def bad_examples() -> list[BadExample]:
    return [BadExample(name=f.stem, **yaml.safe_load(f.read_text())) for f in sorted(BAD.glob("*.yaml"))]


def shipped_jobs() -> dict[str, dict[str, Any]]:
    """Every TrainingJob in `examples/`, by file name."""
    return {
        f"{file.relative_to(CHECKOUT)}[{number}]": document
        for file in sorted((CHECKOUT / "examples").glob("*/*.yaml"))
        for number, document in enumerate(yaml.safe_load_all(file.read_text()))
        if isinstance(document, dict) and document.get("kind") == KIND
    }


def a_job(**spec: Any) -> dict[str, Any]:
    """The smallest good manifest, with these fields of spec."""
    container = {"name": "trainer", "image": "example.com/trainer:1", "command": ["python", "train.py"]}
    return {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "good", "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [container]}}, **spec},
    }

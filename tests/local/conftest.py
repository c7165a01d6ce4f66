"""What runs here starts processes of its own; they find the checkout as the tests do."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.local.runs import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="session")
def importable_by_children() -> Iterator[None]:
    """pytest's `pythonpath` reaches this process only."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{ROOT / 'operator'}{os.pathsep}{ROOT / 'trainer'}"
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts runs that are surely gone after the test."""
    runs: list[Run] = []

    def start(manifest: Path, *options: str) -> Run:
        runs.append(Run(manifest, tmp_path, *options, name=f"run-{len(runs)}"))
        return runs[-1]

    yield start
    for run in runs:
        run.clean_up()

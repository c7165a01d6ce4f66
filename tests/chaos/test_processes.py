"""Two lives of `rerail run` with the real trainer; `python -m tests.chaos run --run N` lives more."""

from pathlib import Path

import pytest

from .processes import live_as_processes, uninterrupted

pytestmark = [pytest.mark.local, pytest.mark.trainer, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    return uninterrupted(tmp_path_factory.mktemp("reference") / "run")


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_that_is_shot_at_trains_as_one_that_is_not(
    seed: int, tmp_path: Path, reference: dict[int, float]
) -> None:
    life = live_as_processes(seed, tmp_path / "run", reference, hangs=False)
    assert life.problems() == [], life

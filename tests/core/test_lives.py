"""Two hundred seeded lives; `LIVES_FROM`/`LIVES` in the environment choose others."""

import os

import pytest

from .lives import Life

FIRST = int(os.environ.get("LIVES_FROM", "0"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("LIVES", "200")))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_life_holds_what_it_promises(seed: int) -> None:
    Life(seed).live()

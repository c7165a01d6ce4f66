"""Lives of chaos in virtual time; `python -m tests.chaos memory` lives 500 others, `--seed` one of them again."""

import logging
from collections.abc import Iterator

import pytest

from rerail_operator.core.taxonomy import BY_SIGN, Sign

from .blows import BLOWS, FATAL
from .lives import ChaosLife
from .virtual import live

SEEDS = range(200)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Hundreds of lives tell their restarts; nobody reads it."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_every_sign_of_failure_can_be_dealt() -> None:
    assert sorted({*BLOWS, *FATAL}) == sorted(Sign)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_life_of_chaos_keeps_every_promise(seed: int) -> None:
    told = live(ChaosLife(seed).live())
    assert told.problems() == [], told


@pytest.mark.parametrize("sign", BLOWS)
def test_each_blow_interrupts_once_and_shows_its_sign(sign: Sign) -> None:
    life = ChaosLife(7, signs=(sign,), calm=True)
    told = live(life.live())
    assert told.problems() == [], told
    assert told.dealt == [sign.name]
    assert told.classes() == [BY_SIGN[ROOTS.get(sign, sign)].kind.value]


ROOTS = {Sign.CANNOT_STOP: Sign.SIGNALLED}
"""Where the blow shows its sign only on the way to the next round."""

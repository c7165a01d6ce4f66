"""The operator killed at every point at which it writes, just before and just after: the job never notices.

Here each point is taken once; `python -m tests.chaos points` takes every single write of the life.
"""

import logging
from collections.abc import Iterator

import pytest

from .mortal import Fate, When
from .points import POINTS, Outcome, point_of, whole_life
from .virtual import live


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Hundreds of lives tell their restarts; nobody reads it."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def undisturbed() -> Outcome:
    """The life in which no operator dies."""
    return live(whole_life(Fate()))


def test_a_life_whose_operator_lives_keeps_all_promises(undisturbed: Outcome) -> None:
    assert undisturbed.problems() == []
    assert undisturbed.operators == 1


def test_the_same_life_makes_the_same_writes_and_meets_every_point(undisturbed: Outcome) -> None:
    points = [point_of(write) for write in undisturbed.writes]
    assert sorted(set(points)) == sorted(POINTS)
    assert [point_of(write) for write in live(whole_life(Fate())).writes] == points


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("point", POINTS)
def test_an_operator_that_dies_loses_and_doubles_nothing(
    point: str, when: When, undisturbed: Outcome
) -> None:
    numbers = [n for n, write in enumerate(undisturbed.writes, start=1) if point_of(write) == point]
    # In the middle: of several agents some have been told, of several pods some are there.
    fate = Fate({numbers[len(numbers) // 2]: when})
    outcome = live(whole_life(fate))
    assert outcome.problems() == []
    assert point_of(outcome.writes[numbers[len(numbers) // 2] - 1]) == point
    last = point == POINTS_END and when is When.AFTER
    assert outcome.operators == (1 if last else 2)


POINTS_END = "the job's time after its end is over"

"""The operator killed at every point at which it writes, just before and just after: the job never notices.

Here each point is taken once; `python -m tests.chaos points` takes every single write of the life.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from .mortal import Fate, When
from .points import LIVES, POINTS, Outcome, point_of
from .virtual import live


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Hundreds of lives tell their restarts; nobody reads it."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


LAST = "the job's time after its end is over"


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Outcome]:
    """The lives in which no operator dies."""
    return {name: live(life(Fate())) for name, life in LIVES.items()}


def test_a_life_whose_operator_lives_keeps_all_promises(undisturbed: dict[str, Outcome]) -> None:
    for outcome in undisturbed.values():
        assert outcome.problems() == []
        assert outcome.operators == 1


def test_the_same_life_makes_the_same_writes_and_together_they_meet_every_point(
    undisturbed: dict[str, Outcome],
) -> None:
    for name, outcome in undisturbed.items():
        again = [point_of(write) for write in live(LIVES[name](Fate())).writes]
        assert again == [point_of(write) for write in outcome.writes]
    met = {point_of(write) for outcome in undisturbed.values() for write in outcome.writes}
    assert sorted(met) == sorted(POINTS)


@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("point", POINTS)
def test_an_operator_that_dies_loses_and_doubles_nothing(
    point: str, when: When, undisturbed: dict[str, Outcome]
) -> None:
    name, numbers = where(point, undisturbed)
    # In the middle: of several agents some have been told, of several pods some are there.
    number = numbers[len(numbers) // 2]
    outcome = live(LIVES[name](Fate({number: when})))
    assert outcome.problems() == []
    assert point_of(outcome.writes[number - 1]) == point
    assert outcome.operators == (1 if point == LAST and when is When.AFTER else 2)


def where(point: str, undisturbed: dict[str, Outcome]) -> tuple[str, list[int]]:
    """A life that meets the point, and the numbers of the writes at which it does."""
    for name, outcome in undisturbed.items():
        numbers = [n for n, write in enumerate(outcome.writes, start=1) if point_of(write) == point]
        if numbers:
            return name, numbers
    raise AssertionError(f"no life meets the point {point}")


def test_the_page_about_recovery_gives_a_reason_for_every_point() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recovery.md").read_text("utf-8")
    table = page.partition("## Where the operator may die")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert sorted(rows[1:]) == sorted(POINTS)

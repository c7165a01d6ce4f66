"""The model of effective training time, against the published table that the project's goals come from."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_api.ettr import (
    Interruptions,
    best_ettr,
    best_interval,
    ettr,
    mean_between,
    necessary_dead,
)

SMALL, LARGE = 1_875, 18_750
RATES = (2.3, 3.8, 6.5, 10)
STEP = 10.0
DIGIT = 0.00051
"""Half of the table's last digit, and a little for sums that end in 5."""

BEST = {
    "requeue in 10 min": ((600, 600), 20, (0.928, 0.898, 0.852, 0.799), (0.641, 0.506, 0.335, 0.200)),
    "requeue in 15 min": ((900, 900), 20, (0.914, 0.876, 0.816, 0.748), (0.552, 0.395, 0.219, 0.104)),
    "requeue in 20 min": ((1200, 1200), 20, (0.900, 0.855, 0.782, 0.701), (0.475, 0.308, 0.144, 0.054)),
    "15 min, asynchronous": ((900, 900), 2, (0.943, 0.912, 0.860, 0.799), (0.610, 0.449, 0.260, 0.129)),
    "in place and spares": ((165, 240), 1, (0.982, 0.974, 0.961, 0.945), (0.859, 0.788, 0.676, 0.556)),
    "in place, fast": ((90, 120), 0.5, (0.989, 0.984, 0.976, 0.966), (0.921, 0.880, 0.813, 0.735)),
    "process level": ((45, 75), 0.1, (0.995, 0.992, 0.988, 0.984), (0.954, 0.928, 0.885, 0.832)),
    "process level, fast": ((20, 30), 0.05, (0.997, 0.995, 0.993, 0.991), (0.978, 0.967, 0.947, 0.922)),
    "target": ((25, 25), 0.05, (0.997, 0.995, 0.993, 0.990), (0.981, 0.971, 0.954, 0.932)),
    "live replicas": ((30, 30), 0, (0.998, 0.997, 0.995, 0.992), (0.983, 0.972, 0.952, 0.927)),
}
# By stall of a checkpoint: 0.05, 0.1, 0.5, 1 s; None: no dead time is short enough.
NECESSARY = {
    2.3: ((157, 138, 60, 1), (89, 83, 58, 39)),
    3.8: ((87, 73, 12, None), (51, 47, 27, 13)),
    6.5: ((45, 34, None, None), (28, 24, 10, None)),
    10: ((25, 16, None, None), (16, 14, 2, None)),
}


def test_the_mean_time_between_interruptions() -> None:
    assert [round(mean_between(SMALL, r)) for r in RATES] == [20_035, 12_126, 7_089, 4_608]
    assert [round(mean_between(LARGE, r)) for r in RATES] == [2_003, 1_213, 709, 461]


@pytest.mark.parametrize("case", BEST)
def test_ettr_at_the_best_interval_is_the_tables(case: str) -> None:
    (dead_small, dead_large), stall, *columns = BEST[case]
    for nodes, dead, column in ((SMALL, dead_small, columns[0]), (LARGE, dead_large, columns[1])):
        for rate, value in zip(RATES, column, strict=True):
            what = Interruptions(mean_between(nodes, rate), dead, stall)
            assert best_ettr(what, STEP) == pytest.approx(value, abs=DIGIT), (nodes, rate)


def test_ettr_with_a_fixed_interval_is_the_tables() -> None:
    columns = {SMALL: (0.903, 0.851, 0.764, 0.663), LARGE: (0.387, 0.203, 0.059, 0.011)}
    for nodes, column in columns.items():
        found = [ettr(Interruptions(mean_between(nodes, rate), 900, 20), 1800) for rate in RATES]
        assert found == pytest.approx(list(column), abs=DIGIT)


def test_the_best_intervals_are_the_tables() -> None:
    for stall, nodes, column in (
        (1, SMALL, (200, 155, 118, 95)), (1, LARGE, (63, 49, 37, 30)),
        (0.1, SMALL, (63, 49, 38, 30)), (0.1, LARGE, (20, 16, 12, 10)),
    ):  # fmt: skip
        found = [best_interval(Interruptions(mean_between(nodes, rate), 0, stall)) for rate in RATES]
        assert [round(seconds) for seconds in found] == list(column)


@pytest.mark.parametrize("rate", NECESSARY)
def test_the_necessary_dead_time_is_the_tables(rate: float) -> None:
    for nodes, target, column in zip((SMALL, LARGE), (0.99, 0.95), NECESSARY[rate], strict=True):
        for stall, value in zip((0.05, 0.1, 0.5, 1), column, strict=True):
            found = necessary_dead(target, mean_between(nodes, rate), stall, STEP)
            assert (None if found is None else round(found)) == value, (nodes, stall)


@given(st.floats(1e-9, 1e3))
def test_the_best_interval_solves_the_equation_of_lambert_w(cost: float) -> None:
    """w e^w = -e^(-1 - C/M) with w = interval / M - 1, compared in the form that loses no digits."""
    x = best_interval(Interruptions(1.0, 0, cost))
    assert 0 < x <= 1
    if x < 0.999999:
        assert -math.log1p(-x) - x == pytest.approx(cost, rel=1e-6)


@given(st.floats(10, 1e6), st.floats(0.001, 100), st.floats(0.5, 2))
def test_no_other_interval_is_better(between: float, stall: float, factor: float) -> None:
    what = Interruptions(between, 0, stall)
    best = best_interval(what)
    assert ettr(what, best * factor) <= ettr(what, best) * (1 + 1e-12)


def test_a_slowdown_takes_its_share_of_every_second() -> None:
    what = Interruptions(7_089, 25, 0.05)
    assert ettr(what, 27, slowdown=0.1) == pytest.approx(0.9 * ettr(what, 27))


def test_an_interval_that_is_never_finished_trains_nothing() -> None:
    assert ettr(Interruptions(1.0, 0.0, 0.0), 1e6) == 0.0


@pytest.mark.parametrize("case", ["target", "in place and spares"])
def test_the_closed_form_is_what_a_plain_simulation_gives(case: str) -> None:
    """Written from the process, not from the formula: work, fail, recover (perhaps failing again), do again."""
    (_, dead), stall, *_ = BEST[case]
    what = Interruptions(mean_between(LARGE, 6.5), dead, stall)
    interval, rng = best_interval(what), random.Random(6)
    wall = kept = 0.0
    for _ in range(40_000):
        left = rng.expovariate(1 / what.mean_between)
        wall += left
        if left < what.dead:
            continue
        kept += (left - what.dead) // (interval + stall) * interval
    assert kept / wall == pytest.approx(ettr(what, interval), abs=0.004)

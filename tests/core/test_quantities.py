"""Quantities: the API server's reading, exact, both ways."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_operator.core.quantities import BadQuantity, format_quantity, parse_quantity, quantity_for_people

READINGS = {
    "8": 8000,
    "0": 0,
    "500m": 500,
    "1.5": 1500,
    ".5": 500,
    "2.": 2000,
    "+3": 3000,
    "-2": -2000,
    "1k": 1_000_000,
    "1Ki": 1_024_000,
    "64Gi": 64 * 1024**3 * 1000,
    "1.5Gi": 3 * 1024**3 * 500,
    "2E": 2 * 10**21,
    "2e3": 2_000_000,
    "2E3": 2_000_000,
    "1e-3": 1,
    "100u": 1,
    "1n": 1,
    "-1n": -1,
    "1500m": 1500,
    "7Ei": 7 * 2**60 * 1000,
}


@pytest.mark.parametrize(("text", "thousandths"), READINGS.items())
def test_a_quantity_is_read_as_the_api_server_reads_it(text: str, thousandths: int) -> None:
    assert parse_quantity(text) == thousandths


def test_numbers_are_read_like_their_text() -> None:
    assert [parse_quantity(2), parse_quantity(0.5), parse_quantity(1e22)] == [2000, 500, 10**25]


@pytest.mark.parametrize(
    "text", ["", " ", "m", ".", "1 Gi", "1gi", "1mi", "0x10", "1e", "1e1000000", "8GB", "nan", "٣", "1" * 80]
)
def test_what_is_no_quantity_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadQuantity, match="is not a quantity: write for example"):
        parse_quantity(text)


@pytest.mark.parametrize("written", [True, None, [], float("inf")])
def test_what_is_no_number_is_refused(written: object) -> None:
    with pytest.raises(BadQuantity):
        parse_quantity(written)  # type: ignore[arg-type]


@given(st.integers(-(10**24), 10**24))
def test_writing_and_reading_gives_the_same(thousandths: int) -> None:
    assert parse_quantity(format_quantity(thousandths)) == thousandths


@given(st.decimals(min_value=0, max_value=10**9, places=3), st.sampled_from(["", "k", "M", "G"]))
def test_decimal_suffixes_multiply_exactly(number: Decimal, suffix: str) -> None:
    factor = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[suffix]
    assert parse_quantity(f"{number:f}{suffix}") == number * factor * 1000


@given(st.integers(0, 10**15))
def test_what_is_finer_than_a_thousandth_is_rounded_up(nanos: int) -> None:
    assert (parse_quantity(f"{nanos}n") - 1) * 10**6 < nanos <= parse_quantity(f"{nanos}n") * 10**6


@pytest.mark.parametrize(
    ("resource", "written", "shown"),
    [
        ("nvidia.com/gpu", "8", "8"),
        ("cpu", "1500m", "1500m"),
        ("memory", "64Gi", "64Gi"),
        ("memory", "1.5Gi", "1.5Gi"),
        ("memory", "500", "500"),
        ("ephemeral-storage", "10Ti", "10Ti"),
        ("hugepages-2Mi", "4Mi", "4Mi"),
        ("memory", "1000000", "976.6Ki"),
    ],
)
def test_people_read_amounts_as_they_write_them(resource: str, written: str, shown: str) -> None:
    assert quantity_for_people(resource, parse_quantity(written)) == shown

"""Kubernetes quantities as whole thousandths of a unit: `500m` -> 500, `2` -> 2000, `1Ki` -> 1024000.

Integers only: sums over thousands of pods must come out exact.
"""

import re
from functools import lru_cache
from typing import Final

THOUSAND: Final = 1000

_SHAPE: Final = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?"
    r"(?P<suffix>[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?"
)
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_LONGEST: Final = 64


class BadQuantity(ValueError):
    """A text that is no Kubernetes quantity."""

    def __init__(self, written: object) -> None:
        super().__init__(f"{written!r} is not a quantity: write for example 8, 500m or 64Gi")


def parse_quantity(written: str | int | float) -> int:
    """Thousandths of the unit; what is finer is rounded away from zero, as the API server does.

    Raises `BadQuantity`.
    """
    if isinstance(written, bool) or not isinstance(written, str | int | float):
        raise BadQuantity(written)
    if isinstance(written, int):
        return written * THOUSAND
    return _parse(written if isinstance(written, str) else repr(written))


@lru_cache(maxsize=8192)
def _parse(text: str) -> int:
    shape = _SHAPE.fullmatch(text) if len(text) <= _LONGEST else None
    if shape is None:
        raise BadQuantity(text)
    whole, part = shape["whole"], shape["part"] or ""
    if not whole and not part:
        raise BadQuantity(text)
    suffix = shape["suffix"] or ""
    numerator, shift = int(whole + part), 3 - len(part)
    if suffix in _BINARY:
        numerator <<= _BINARY[suffix]
    elif suffix in _DECIMAL:
        shift += _DECIMAL[suffix]
    else:
        shift += int(suffix[1:])
    # Rounding up means rounding the magnitude, so the sign waits until the end.
    power: int = 10 ** abs(shift)
    amount = numerator * power if shift >= 0 else -(-numerator // power)
    return -amount if shape["sign"] == "-" else amount


def format_quantity(thousandths: int) -> str:
    """The shortest exact quantity in plain decimal: `2`, `1500m`. `parse_quantity` reads it back."""
    whole, rest = divmod(thousandths, THOUSAND)
    return f"{thousandths}m" if rest else str(whole)


def is_bytes(resource: str) -> bool:
    """True for resources that are counted in bytes."""
    return resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages-")


def quantity_for_people(resource: str, thousandths: int) -> str:
    """An amount as people write it: bytes in the largest binary unit with at most one decimal."""
    if not is_bytes(resource):
        return format_quantity(thousandths)
    value = thousandths / THOUSAND
    for suffix, bits in reversed(_BINARY.items()):
        if abs(value) >= 1 << bits:
            return f"{value / (1 << bits):.1f}".removesuffix(".0") + suffix
    return format_quantity(thousandths)

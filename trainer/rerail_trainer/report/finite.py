"""What JSON can say of a number. Torch-free."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """`value`, or None for a number that JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

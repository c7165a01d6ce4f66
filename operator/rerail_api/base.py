"""What every API model is made of: the base model, times, clipped texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.functional_serializers import PlainSerializer

INT32_MAX: Final = 2**31 - 1
LINE_LENGTH: Final = 512
INT53_MAX: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly."""


def json_name(field: str) -> str:
    """`num_nodes` -> `numNodes`; a trailing underscore (`class_`) only dodges a Python keyword."""
    head, *tail = field.rstrip("_").split("_")
    return head + "".join(part.capitalize() for part in tail)


class ApiModel(BaseModel):
    """A frozen piece of the API: camelCase in JSON, snake_case in Python, nothing unknown."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=json_name,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    def to_json(self) -> dict[str, Any]:
        """The object as the API server stores it: JSON names, times in UTC, no nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _in_utc(value: datetime) -> datetime:
    return value.astimezone(UTC)


def rfc3339(value: datetime) -> str:
    """An aware time as `2026-11-23T10:00:00Z`, with a fraction only where there is one."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


Time = Annotated[
    AwareDatetime,
    AfterValidator(_in_utc),
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
]
"""An aware point in time, always UTC in Python; RFC 3339 with `Z` in JSON."""


def clip(limit: int) -> Callable[[Any], Any]:
    """Cut a text at `limit` characters: a long foreign message must not lose a status write."""

    def cut(value: Any) -> Any:
        if isinstance(value, str) and len(value) > limit:
            return value[: limit - 1] + "…"
        return value

    return cut


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


Tag = Annotated[str, BeforeValidator(clip(64)), Field(max_length=64)]
Word = Annotated[str, BeforeValidator(clip(128)), Field(max_length=128)]
Name = Annotated[str, Field(max_length=253)]
Message = Annotated[str, BeforeValidator(clip(1024)), Field(max_length=1024)]
Line = Annotated[str, BeforeValidator(clip(LINE_LENGTH)), Field(max_length=LINE_LENGTH)]
Count = Annotated[int, Field(ge=0, le=INT53_MAX)]


def _in_milliseconds(value: float) -> float:
    return round(value, 3)


Seconds = Annotated[
    float,
    Field(ge=0),
    PlainSerializer(_in_milliseconds, return_type=float, when_used="json"),
]
"""A span of time; exact in Python, to the millisecond in JSON, which people read."""
FiniteOrNone = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A measured number; JSON knows no NaN, so one that is not finite counts as not measured."""

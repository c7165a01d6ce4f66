"""The pod template: a free object of which only the parts that Rerail reads are declared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StrictStr,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from rerail_api.contract import TRAINER_CONTAINER


class _OpenModel(BaseModel):
    """A part of a pod of which only some fields are declared; the rest passes through."""

    model_config = ConfigDict(extra="allow", frozen=True)


class EnvVarShape(_OpenModel):
    """One environment variable."""

    name: StrictStr = Field(min_length=1, max_length=256, description="Name of the environment variable.")


class ContainerShape(_OpenModel):
    """What Rerail reads of a container."""

    name: StrictStr = Field(
        min_length=1, max_length=63, description="Container name; trainer holds the ranks."
    )
    command: list[Annotated[StrictStr, Field(max_length=32_768)]] | None = Field(
        default=None,
        max_length=256,
        description="Program and arguments; required for the container named trainer.",
    )
    args: list[Annotated[StrictStr, Field(max_length=32_768)]] | None = Field(
        default=None, max_length=256, description="Further arguments, put after the command."
    )
    env: list[EnvVarShape] | None = Field(
        default=None, max_length=256, description="Environment, without the names Rerail sets."
    )


class VolumeShape(_OpenModel):
    """What Rerail reads of a volume."""

    name: StrictStr = Field(
        min_length=1, max_length=63, description="Volume name; rerail- is Rerail's prefix."
    )


class PodSpecShape(_OpenModel):
    """What Rerail reads of a pod spec; the fields bear a pod's own names."""

    containers: list[ContainerShape] = Field(
        min_length=1, max_length=16, description="Containers; one is named trainer."
    )
    volumes: list[VolumeShape] | None = Field(default=None, max_length=64, description="Volumes of the pod.")
    nodeName: StrictStr | None = Field(
        default=None, max_length=253, description="Refused: Rerail places the pods."
    )
    schedulerName: StrictStr | None = Field(
        default=None, max_length=253, description="Only default-scheduler, or left out."
    )
    restartPolicy: StrictStr | None = Field(
        default=None, max_length=16, description="Only Never, or left out."
    )


class TemplateMetaShape(BaseModel):
    """Labels and annotations for the pods."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: dict[str, Annotated[StrictStr, Field(max_length=63)]] | None = Field(
        default=None, max_length=64, description="Labels for the pods."
    )
    annotations: dict[str, Annotated[StrictStr, Field(max_length=262_144)]] | None = Field(
        default=None, max_length=64, description="Annotations for the pods."
    )


class TemplateShape(BaseModel):
    """A pod template as far as Rerail reads it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metadata: TemplateMetaShape | None = Field(
        default=None, description="Labels and annotations for the pods."
    )
    spec: PodSpecShape = Field(
        description="The pod spec; fields not named here are passed on as they are and checked "
        "by the API server before the gang is created."
    )


class _ShapedAs:
    """Validates a plain dict against TemplateShape, and keeps the dict word for word."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        shape = handler.generate_schema(TemplateShape)
        return core_schema.no_info_wrap_validator_function(
            self._check,
            shape,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda raw: raw),
        )

    @staticmethod
    def _check(raw: Any, check_shape: core_schema.ValidatorFunctionWrapHandler) -> Any:
        check_shape(raw)
        return raw

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(schema["schema"])


PodTemplate = Annotated[dict[str, Any], _ShapedAs()]
"""A pod template as the user wrote it: a dict, checked, never rewritten."""


class AmbiguousAccelerators(ValueError):
    """Several accelerator resources in the limits, so `auto` cannot say which counts ranks."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        super().__init__(
            f"the limits of container {TRAINER_CONTAINER} name several accelerators "
            f"({', '.join(self.names)}): set spec.numProcPerNode to a number"
        )


class BadAcceleratorCount(ValueError):
    """An accelerator limit that is not a whole number."""

    def __init__(self, name: str, written: object) -> None:
        super().__init__(
            f"limit {name} of container {TRAINER_CONTAINER} is {written!r}: write a whole number"
        )


def trainer_container(template: dict[str, Any]) -> dict[str, Any]:
    """The container that holds the ranks; KeyError where there is none (the rules refuse that)."""
    containers: list[dict[str, Any]] = template["spec"]["containers"]
    for container in containers:
        if container.get("name") == TRAINER_CONTAINER:
            return container
    raise KeyError(TRAINER_CONTAINER)


def trainer_command(template: dict[str, Any]) -> tuple[str, ...]:
    """The words that start a rank: the trainer container's command followed by its args."""
    container = trainer_container(template)
    return (*(container.get("command") or ()), *(container.get("args") or ()))


def accelerators(template: dict[str, Any], names: Iterable[str]) -> dict[str, int]:
    """The accelerator resources (of the given names) in the trainer container's limits.

    Raises `BadAcceleratorCount` where one is not a whole number.
    """
    limits: dict[str, Any] = (trainer_container(template).get("resources") or {}).get("limits") or {}
    return {name: _whole(name, limits[name]) for name in names if name in limits}


def _whole(name: str, written: object) -> int:
    try:
        return int(str(written))
    except ValueError:
        raise BadAcceleratorCount(name, written) from None


def accelerator_count(template: dict[str, Any], names: Iterable[str]) -> int:
    """What `numProcPerNode: auto` means: the one accelerator's count, 1 without any.

    Raises `AmbiguousAccelerators` where several of the names are in the limits.
    """
    found = {name: count for name, count in accelerators(template, names).items() if count > 0}
    if len(found) > 1:
        raise AmbiguousAccelerators(found)
    return next(iter(found.values()), 1)

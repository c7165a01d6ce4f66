"""The TrainingJob object as a whole."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import ConfigDict, Field

from rerail_api.base import ApiModel, Count, Name, Time, json_name
from rerail_api.spec import TrainingJobSpec
from rerail_api.status import TrainingJobStatus

SINGULAR: Final = "trainingjob"
SHORT_NAME: Final = "tj"


class ObjectMeta(ApiModel):
    """The parts of an object's metadata that Rerail reads; all others are left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=json_name, populate_by_name=True)

    name: Name = Field(min_length=1, description="Name of the job.")
    namespace: Name = Field(default="default", description="Namespace of the job.")
    uid: Name = Field(default="", description="Unique for ever; empty before the job is stored.")
    generation: Count = Field(default=0, description="Counts changes of the spec.")
    resource_version: Name = Field(default="", description="Version for guarded writes.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of the job.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations.")
    creation_timestamp: Time | None = Field(default=None, description="When it was stored.")
    deletion_timestamp: Time | None = Field(default=None, description="When its deletion was asked for.")


class TrainingJob(ApiModel):
    """One PyTorch training job that Rerail keeps training."""

    api_version: Literal["rerail.dev/v1alpha1"] = Field(
        default="rerail.dev/v1alpha1", description="Always rerail.dev/v1alpha1."
    )
    kind: Literal["TrainingJob"] = Field(default="TrainingJob", description="Always TrainingJob.")
    metadata: ObjectMeta = Field(description="Name, labels and the rest of an object's metadata.")
    spec: TrainingJobSpec = Field(description="What a person asks for.")
    status: TrainingJobStatus = Field(default=TrainingJobStatus(), description="What Rerail reports.")

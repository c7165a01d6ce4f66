"""The account of a job's time: where every second went, by stage and by class, and what the model expects."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from rerail_api.base import ApiModel, Count, Seconds, Time


class IncidentClass(StrEnum):
    """The taxonomy of what interrupts a job."""

    USER_ERROR = "UserError"
    OUT_OF_MEMORY = "OutOfMemory"
    BAD_DATA = "BadData"
    PROCESS_FAULT = "ProcessFault"
    GPU_FAULT = "GpuFault"
    NODE_LOSS = "NodeLoss"
    CONTAINER_LOSS = "ContainerLoss"
    NETWORK = "Network"
    HANG = "Hang"
    NUMERIC = "Numeric"
    PREEMPTION = "Preemption"
    UNPLACEABLE = "Unplaceable"
    CONTROL_PLANE = "ControlPlane"
    CHECKPOINT_FAULT = "CheckpointFault"
    RENDEZVOUS_FAULT = "RendezvousFault"
    DRAIN = "Drain"


class Stage(StrEnum):
    """The closed list of what a second of a job's wall clock can be spent on."""

    QUEUED = "queued"
    SUSPENDED = "suspended"
    PLACEMENT = "placement"
    START = "start"
    RENDEZVOUS = "rendezvous"
    LOAD = "load"
    COMPILE = "compile"
    PRODUCTIVE = "productive"
    REPLAY = "replay"
    CHECKPOINT_STALL = "checkpointStall"
    DETECTION = "detection"
    DECISION = "decision"
    STOP = "stop"


STAGES_OUTSIDE_ETTR: Final = frozenset({Stage.QUEUED, Stage.SUSPENDED})
StageSeconds = dict[Stage, Seconds]
ClassSeconds = dict[IncidentClass, Seconds]


class Forecast(ApiModel):
    """What a renewal model expects of the job, from its own figures; beside it stands what was measured."""

    interruptions_per_thousand_node_days: float = Field(
        ge=0,
        description="The job's own rate; before it has one, 6.5, which weighs as one interruption.",
    )
    dead_seconds: Seconds = Field(
        description="Mean seconds of an interruption without replay and saves; "
        "before the first is over, what rendezvous, load and compile of the start took."
    )
    stall_seconds: Seconds = Field(
        description="Seconds that training stood still per checkpoint, at least 0.05."
    )
    interval_seconds: Seconds = Field(
        description="Seconds of training between checkpoints that the model would choose, within the bounds "
        "of spec.checkpoint, else 10 to 3600."
    )
    ettr: float = Field(
        ge=0,
        le=1,
        description="ETTR that it predicts at the interval that the job keeps; "
        "before two checkpoints, at intervalSeconds.",
    )


class Ledger(ApiModel):
    """The job's wall clock, split; productiveSeconds + sum(lostSeconds) = wallSeconds."""

    wall_seconds: Seconds = Field(default=0.0, description="Seconds since creation.")
    productive_seconds: Seconds = Field(
        default=0.0, description="Seconds of stepping above the highest step seen before."
    )
    lost_seconds: StageSeconds = Field(default_factory=dict, description="All other seconds, by stage.")
    stage: Stage | None = Field(default=None, description="The stage that runs now.")
    stage_since: Time | None = Field(default=None, description="Up to when the seconds above are booked.")
    highest_step: Count | None = Field(default=None, description="Highest step ever seen.")
    checkpoints: Count = Field(default=0, description="Commits of checkpoints that were seen.")
    stall_before_round: Seconds = Field(
        default=0.0,
        description="Of checkpointStall, what was booked before the round that was released last.",
    )
    dead_seconds: Seconds = Field(
        default=0.0, description="Seconds of all interruptions that are over, without replay and saves."
    )
    lost_seconds_by_class: ClassSeconds = Field(
        default_factory=dict,
        description="Seconds of all interruptions that are over, by class: all stages while nodes were held.",
    )
    ettr: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Effective training time ratio: productive seconds over wall seconds, "
        "without queued and suspended.",
    )
    forecast: Forecast | None = Field(
        default=None, description="What the model expects, once the job has run; kept as the job ended."
    )

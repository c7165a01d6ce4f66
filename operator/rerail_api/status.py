"""What Rerail reports: the status of a TrainingJob. Counts, ranges and bounded lists only."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from rerail_api.base import (
    INT32_MAX,
    INT53_MAX,
    LINE_LENGTH,
    ApiModel,
    Count,
    FiniteOrNone,
    Line,
    Message,
    Name,
    Seconds,
    Tag,
    Time,
    Word,
    clip,
)
from rerail_api.contract import LOG_BYTES, LOG_LINES
from rerail_api.ledger import STAGES_OUTSIDE_ETTR as STAGES_OUTSIDE_ETTR
from rerail_api.ledger import Forecast as Forecast
from rerail_api.ledger import IncidentClass as IncidentClass
from rerail_api.ledger import Ledger as Ledger
from rerail_api.ledger import Stage as Stage
from rerail_api.ledger import StageSeconds as StageSeconds

MAX_INCIDENTS: Final = 16
MAX_EXCLUDED_NODES: Final = 64
MAX_STRAGGLERS: Final = 16


class Phase(StrEnum):
    """Where the job stands, for people; derived, and read by no decision."""

    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """The conditions a job can have."""

    SUSPENDED = "Suspended"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    COMPLETE = "Complete"
    FAILED = "Failed"
    CHECKPOINT_DURABLE = "CheckpointDurable"


TERMINAL_CONDITIONS: Final = (ConditionType.COMPLETE, ConditionType.FAILED)


class ConditionStatus(StrEnum):
    """A condition's value; what cannot be read is Unknown, never False."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Rung(StrEnum):
    """How the gang was repaired after an interruption."""

    IN_PLACE = "InPlace"
    SWAP = "Swap"
    RECREATE = "Recreate"


class Condition(ApiModel):
    """One condition, as everywhere in Kubernetes."""

    type: ConditionType = Field(description="What the condition is about.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: Word = Field(
        min_length=1,
        pattern=r"^[A-Za-z]([A-Za-z0-9]*)$",
        description="One word for machines, from the list in docs/reference/reasons.md.",
    )
    message: Message = Field(default="", description="One sentence for people.")
    last_transition_time: Time = Field(description="When status last changed.")
    observed_generation: Count | None = Field(
        default=None, description="metadata.generation that this was derived from."
    )


class NodeCounts(ApiModel):
    """The gang in numbers."""

    desired: Count = Field(default=0, description="Node ranks in the gang.")
    ready: Count = Field(default=0, description="Node ranks whose ranks all run.")
    spares: Count = Field(
        default=0, description="Spares that stand ready to take a node rank; counted in no other figure."
    )
    summary: Word = Field(default="", description="ready/desired, for the printed column.")


class RestartCounts(ApiModel):
    """Restarts of the gang, in one counter each."""

    total: Count = Field(default=0, description="All restarts, charged or free.")
    charged: Count = Field(default=0, description="Restarts charged to the job.")
    since_progress: Count = Field(default=0, description="Charged restarts since the job last made progress.")


class Progress(ApiModel):
    """What the ranks last reported; nothing is guessed."""

    step: Count | None = Field(default=None, description="Last finished step.")
    total_steps: Count | None = Field(default=None, description="Steps of the whole run.")
    tokens_per_second: FiniteOrNone = Field(
        default=None, ge=0, description="Tokens per second of the whole gang."
    )
    tokens: Count | None = Field(default=None, description="Tokens trained on so far.")
    loss: FiniteOrNone = Field(default=None, description="Loss at that step.")
    first_loss: FiniteOrNone = Field(default=None, description="Loss of the first step reported.")
    time: Time | None = Field(default=None, description="When the step was reported.")


class CheckpointMark(ApiModel):
    """The newest committed checkpoint."""

    step: Count = Field(description="Step it holds.")
    time: Time | None = Field(default=None, description="When its commit was reported.")


def _newest_lines(value: Any) -> Any:
    """Keep the last lines that fit the bounds: the end of a log holds the cause."""
    if not isinstance(value, list | tuple):
        return value
    kept: list[Any] = []
    left = LOG_BYTES
    for line in map(clip(LINE_LENGTH), reversed(value)):
        left -= len(str(line).encode("utf-8", "replace")) + 1
        if left < 0 or len(kept) == LOG_LINES:
            break
        kept.append(line)
    return tuple(reversed(kept))


LogLines = Annotated[tuple[Line, ...], BeforeValidator(_newest_lines)]


class Incident(ApiModel):
    """One interruption: what failed first, the evidence, and what it cost."""

    number: int = Field(ge=1, le=INT53_MAX, description="Counts up from 1 within the job.")
    round: Count = Field(description="The round that it ended.")
    class_: IncidentClass = Field(description="What kind of failure it was.")
    charged: bool = Field(default=False, description="Whether it was charged to the job.")
    rule: Tag | None = Field(default=None, description="Name of the user's rule that decided, if one did.")
    rung: Rung | None = Field(
        default=None, description="How it was repaired, as far as that had to go; none where the job ended."
    )
    fingerprint: Word = Field(
        default="", description="Class, code or signal, and exception type, in one word."
    )
    rank: Count | None = Field(default=None, description="The rank that failed first.")
    node_rank: Count | None = Field(default=None, description="Its node rank.")
    pod: Name | None = Field(default=None, description="Its pod.")
    node: Name | None = Field(default=None, description="Its node.")
    nodes_lost: Count | None = Field(
        default=None,
        description="Nodes of one topology domain that were lost with its own within ten seconds, its own "
        "included; none below three.",
    )
    exit_code: int | None = Field(
        default=None, ge=-INT32_MAX, le=INT32_MAX, description="Its exit code, if it exited."
    )
    signal: Tag | None = Field(
        default=None, description="The signal that ended it, as in SIGKILL, if one did."
    )
    exception: Word | None = Field(
        default=None, description="Type of the exception in its last lines, if one is there."
    )
    message: Line = Field(default="", description="One sentence for people.")
    log_lines: LogLines = Field(
        default=(),
        max_length=LOG_LINES,
        description="Its last lines, at most 2 KiB; kept in the newest incident only.",
    )
    progress_step: Count | None = Field(
        default=None, description="Last step finished before it; none without progress."
    )
    resumed_step: Count | None = Field(default=None, description="Step that the next round continued from.")
    steps_lost: Count | None = Field(default=None, description="Steps that had to be done again.")
    start_time: Time | None = Field(
        default=None,
        description="When its root happened, as far as that is known: seen, less the age that was told.",
    )
    resolved_time: Time | None = Field(
        default=None,
        description="When the job was past its last step again, was interrupted anew or suspended, or ended.",
    )
    stage_seconds: StageSeconds = Field(
        default_factory=dict,
        description="Seconds that it cost, by stage of the ledger.",
    )
    gpu_seconds_lost: Seconds | None = Field(
        default=None,
        description="These seconds times the accelerators of the gang, without suspended; none without any.",
    )


class SamePoint(ApiModel):
    """The poison counter: the same failure at the same progress point."""

    fingerprint: Word = Field(description="Fingerprint of the failure.")
    step: Count | None = Field(default=None, description="Progress point; none without progress.")
    count: Count = Field(default=1, description="How often in a row; at 3 the job fails.")


class ExcludedNode(ApiModel):
    """A node that this job stays away from for a while."""

    name: Name = Field(min_length=1, description="Name of the node.")
    reason: Tag = Field(default="", description="Why, in a few words.")
    until: Time | None = Field(default=None, description="Until when; none: for good.")


class Straggler(ApiModel):
    """A rank that computes slower than the others, which wait for it at every step."""

    rank: Count = Field(description="The rank.")
    node_rank: Count = Field(description="Its node rank.")
    node: Name | None = Field(default=None, description="Its node.")
    ratio: float = Field(
        ge=0, description="Seconds per step that it computes by itself, over the gang's median."
    )
    since: Time | None = Field(default=None, description="Since when it is named.")


class TrainingJobStatus(ApiModel):
    """What Rerail reports. `{}` is a job that nobody has looked at yet."""

    phase: Phase | None = Field(default=None, description="Where the job stands, for people.")
    reason: Word = Field(default="", description="Why it stands there, in one word.")
    message: Message = Field(default="", description="Why it stands there, in one sentence.")
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=len(ConditionType),
        description="Where the job stands, for machines.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )
    round: Count = Field(
        default=0,
        description="Generation of running processes; rises at every start, restart and resume, never falls.",
    )
    round_time: Time | None = Field(
        default=None,
        description="When the current round was opened; deadlines of failurePolicy.ladder count from here.",
    )
    released_round: Count = Field(
        default=0,
        description="The newest round whose barrier was released: its ranks were told to run.",
    )
    gang_round: Count = Field(
        default=0,
        description="The round in which the whole gang was last recreated: pods that hold their node rank "
        "for longer are replaced.",
    )
    template_revision: Name | None = Field(
        default=None, description="ControllerRevision that the pods are made from."
    )
    template_hash: Word | None = Field(default=None, description="Hash of that template.")
    nodes: NodeCounts = Field(default=NodeCounts(), description="The gang in numbers.")
    restarts: RestartCounts = Field(default=RestartCounts(), description="Restarts so far.")
    progress: Progress = Field(default=Progress(), description="What the ranks last reported.")
    last_checkpoint: CheckpointMark | None = Field(
        default=None, description="The newest committed checkpoint."
    )
    checkpoint_interval_seconds: Count | None = Field(
        default=None,
        description="Seconds of training between checkpoints that the ranks are told to keep; "
        "none: the program's own.",
    )
    resumed_from_step: Count | None = Field(
        default=None, description="Step that the current round continued from."
    )
    incidents: tuple[Incident, ...] = Field(
        default=(),
        max_length=MAX_INCIDENTS,
        description="The last interruptions, oldest first.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    same_point: SamePoint | None = Field(
        default=None, description="The last failure, counted while it repeats at the same point."
    )
    excluded_nodes: tuple[ExcludedNode, ...] = Field(
        default=(),
        max_length=MAX_EXCLUDED_NODES,
        description="Nodes that this job stays away from.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
    )
    stragglers: tuple[Straggler, ...] = Field(
        default=(),
        max_length=MAX_STRAGGLERS,
        description="Ranks of this round that compute slower than 1.1 times the gang's median, "
        "as far as the program tells.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["rank"],
        },
    )
    ledger: Ledger = Field(default=Ledger(), description="The job's wall clock, split.")
    start_time: Time | None = Field(
        default=None,
        description="When all ranks first ran; anew after a suspension, as for a Job. "
        "activeDeadlineSeconds counts from here.",
    )
    admitted_time: Time | None = Field(default=None, description="When the gang was last given its nodes.")
    completion_time: Time | None = Field(
        default=None, description="When the job completed or failed; never changed again."
    )
    observed_generation: Count = Field(
        default=0, description="metadata.generation that this status was derived from."
    )
    schema_hash: Word | None = Field(
        default=None, description="Schema of the operator that wrote this status."
    )

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type, or None."""
        return next((c for c in self.conditions if c.type is kind), None)

    def is_true(self, kind: ConditionType) -> bool:
        """Whether the condition of that type is there and True."""
        found = self.condition(kind)
        return found is not None and found.status is ConditionStatus.TRUE

    @property
    def finished(self) -> bool:
        """Complete or Failed; a finished job never runs again."""
        return any(self.is_true(kind) for kind in TERMINAL_CONDITIONS)

    @property
    def finished_at(self) -> datetime | None:
        """When the job ended, if it did."""
        return self.completion_time if self.finished else None

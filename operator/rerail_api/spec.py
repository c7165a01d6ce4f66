"""What a person asks for: the spec of a TrainingJob, and readers for its pod template."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from rerail_api.base import INT32_MAX, ApiModel
from rerail_api.template import PodTemplate, accelerator_count

MAX_NODES: Final = 20_000
MAX_SPARES: Final = 1_000
MAX_PROCS_PER_NODE: Final = 64
MAX_RULES: Final = 20
AUTO: Final = "auto"
MAX_INTERVAL_SECONDS: Final = 86_400
SHORTEST_AUTO_SECONDS: Final = 10
LONGEST_AUTO_SECONDS: Final = 3600


class Launcher(StrEnum):
    """Who starts the ranks of a node."""

    PER_RANK = "PerRank"
    PER_NODE = "PerNode"


class WarmStart(StrEnum):
    """Whether ranks are forked from an interpreter that has imported torch already."""

    AUTO = "Auto"
    NEVER = "Never"


class ResumePolicy(StrEnum):
    """What a first round does with checkpoints that are already there."""

    AUTO = "Auto"
    NEVER = "Never"


class ExitCodeOperator(StrEnum):
    """How a rule compares the root rank's exit code with its values."""

    IN = "In"
    NOT_IN = "NotIn"


class RuleAction(StrEnum):
    """What a matched failure rule does."""

    FAIL_JOB = "FailJob"
    IGNORE = "Ignore"
    COUNT = "Count"


IntervalSeconds = Annotated[int, Field(ge=1, le=MAX_INTERVAL_SECONDS)]
CheckpointInterval = IntervalSeconds | Literal["auto"]


class CheckpointSpec(ApiModel):
    """Where checkpoints live inside the container, how often they are made, how long a save may take."""

    path: str = Field(
        default="/checkpoints",
        min_length=1,
        max_length=512,
        description="Absolute folder inside the trainer container that holds the checkpoints; "
        "the volume behind it is the template's. Handed to ranks as RERAIL_CHECKPOINT_DIR.",
    )
    resume: ResumePolicy = Field(
        default=ResumePolicy.AUTO,
        description="Auto: the first round continues from the newest readable checkpoint in the "
        "folder. Never: it starts from step 0. Later rounds always continue.",
    )
    grace_seconds: int = Field(
        default=120,
        ge=1,
        le=3600,
        description="Seconds between SIGTERM and SIGKILL when the job is asked to save and stop.",
    )
    interval: CheckpointInterval | None = Field(
        default=None,
        description="Seconds of training between two checkpoints, 1 to 86400, told to the ranks; auto: what "
        "the model of the ledger would choose, told anew when that has moved by more than a fifth. None by "
        "default: the program's own.",
    )
    min_interval_seconds: IntervalSeconds | None = Field(
        default=None,
        description="With interval auto: never less than so many seconds; 10 by default.",
    )
    max_interval_seconds: IntervalSeconds | None = Field(
        default=None,
        description="With interval auto: never more than so many seconds; 3600 by default.",
    )

    @property
    def auto_bounds(self) -> tuple[int, int]:
        """Between which seconds `auto` chooses; a bound that is written moves the other default aside."""
        least, most = self.min_interval_seconds, self.max_interval_seconds
        low = least if least is not None else min(SHORTEST_AUTO_SECONDS, most or SHORTEST_AUTO_SECONDS)
        return low, most if most is not None else max(LONGEST_AUTO_SECONDS, low)


def _each_once(values: tuple[int, ...]) -> tuple[int, ...]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"write {value} once")
    return values


class ExitCodeMatch(ApiModel):
    """A test on the exit code of the rank that failed first."""

    operator: ExitCodeOperator = Field(
        description="In: the code is one of the values. NotIn: it is none of them."
    )
    values: Annotated[tuple[Annotated[int, Field(ge=1, le=255)], ...], AfterValidator(_each_once)] = Field(
        min_length=1,
        max_length=255,
        description="Exit codes, 1 to 255 (128 + n for signal n). 0 is success, never a failure.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class FailureRule(ApiModel):
    """One rule of a failure policy; it sees the root cause only, never its victims."""

    name: str = Field(
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="Name shown in the incident that the rule decided; unique in the policy.",
    )
    on_exit_codes: ExitCodeMatch = Field(description="Matches on the exit code of the first failing rank.")
    action: RuleAction = Field(
        description="FailJob: the job fails at once. Ignore: restart, charged to nobody. "
        "Count: restart, charged against maxRestarts."
    )


def _each_name_once(rules: tuple[FailureRule, ...]) -> tuple[FailureRule, ...]:
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"name rule {name!r} once")
    return rules


MAX_RUNG_LIMIT: Final = 16
RungLimit = Annotated[int, Field(ge=0, le=MAX_RUNG_LIMIT)]
RungDeadline = Annotated[int, Field(ge=1, le=86_400)]


class InPlaceRung(ApiModel):
    """Restart the processes, in the same pods."""

    limit: RungLimit = Field(
        default=2,
        description="How often a node rank may fail in place without progress before its pod is swapped.",
    )
    deadline_seconds: RungDeadline = Field(
        default=60,
        description="Seconds for all agents to stand at the barrier; then pods that do not are swapped.",
    )


class SwapRung(ApiModel):
    """Replace the failed pods, by spares first."""

    limit: RungLimit = Field(
        default=3,
        description="How often a node rank may be swapped without progress before the gang is recreated.",
    )
    deadline_seconds: RungDeadline = Field(
        default=300,
        description="Seconds for all agents to stand at the barrier; then the gang is recreated.",
    )


class RecreateRung(ApiModel):
    """Replace every pod of the gang."""

    limit: RungLimit = Field(
        default=2,
        description="How often the gang may be recreated without progress before the job fails; "
        "what is charged to nobody never fails it.",
    )
    deadline_seconds: RungDeadline = Field(
        default=600,
        description="Seconds for all agents to stand at the barrier; then all nodes are given back.",
    )


class Ladder(ApiModel):
    """The repairs from the cheapest to the dearest, each with a limit and a deadline."""

    in_place: InPlaceRung = Field(
        default=InPlaceRung(), description="Restart the processes, in the same pods."
    )
    swap: SwapRung = Field(default=SwapRung(), description="Replace the failed pods, by spares first.")
    recreate: RecreateRung = Field(default=RecreateRung(), description="Replace every pod of the gang.")


class FailurePolicy(ApiModel):
    """How often and for which failures the job is restarted."""

    max_restarts: int = Field(
        default=10,
        ge=0,
        le=10_000,
        description="Charged restarts without progress in between before the job fails. "
        "Node loss, preemption and drain are never charged.",
    )
    hang_seconds: int | None = Field(
        default=None,
        ge=1,
        le=INT32_MAX,
        description="Seconds of training without a step after which the ranks count as hung and start again; "
        "also for programs that name no phases, from their first step on. None by default: four times the "
        "99th percentile of a step, at least 45 s, for programs that name their phases; no limit for others.",
    )
    rules: Annotated[tuple[FailureRule, ...], AfterValidator(_each_name_once)] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Own rules, first match wins; the built-in taxonomy follows them.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
    )
    ladder: Ladder = Field(
        default=Ladder(),
        description="When a repair that did not help gives way to the next: in place, swap, recreate, fail.",
    )


ProcsPerNode = Annotated[int, Field(ge=1, le=MAX_PROCS_PER_NODE)] | Literal["auto"]


class TrainingJobSpec(ApiModel):
    """What a person asks for."""

    num_nodes: int = Field(
        default=1,
        ge=1,
        le=MAX_NODES,
        description="Number of worker pods; each gets a node of its own. All are placed or none.",
    )
    spares: int = Field(
        default=0,
        ge=0,
        le=MAX_SPARES,
        description="Pods beside the gang that hold a node and wait at the barrier to take the place of "
        "a lost one. Placed where there is room once the gang runs, given up first when another job "
        "needs the room; may change at any time.",
    )
    num_proc_per_node: ProcsPerNode = Field(
        default="auto",
        description="Ranks per node, 1 to 64, or auto: the count of the one accelerator resource "
        "in the trainer container's limits, 1 where there is none.",
    )
    launcher: Launcher = Field(
        default=Launcher.PER_RANK,
        description="PerRank: the command is started once per rank. PerNode: once per node, for "
        "torchrun and the like, which start the ranks themselves.",
    )
    warm_start: WarmStart = Field(
        default=WarmStart.AUTO,
        description="Auto: where the command is a Python program that speaks of torch, each pod keeps an "
        "interpreter that has imported torch, and a restart begins after the import. Never: every start "
        "imports anew, for programs that set variables before they import torch.",
    )
    template: PodTemplate = Field(
        description="The pod of a worker, as in a Job. The container named trainer holds the "
        "ranks and must state its command; it needs Python 3.9 or newer in its image.",
    )
    checkpoint: CheckpointSpec = Field(
        default=CheckpointSpec(),
        description="Where checkpoints live and how long a save may take on stop.",
    )
    failure_policy: FailurePolicy = Field(
        default=FailurePolicy(),
        description="How often and for which failures the job is restarted.",
    )
    startup_deadline_seconds: int = Field(
        default=900,
        ge=1,
        le=INT32_MAX,
        description="Seconds from admission until all ranks must run; then the gang gives everything back.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=INT32_MAX,
        description="Seconds from the first start after which the job fails, done or not. None by default.",
    )
    suspend: bool = Field(
        default=False,
        description="True: save, stop and give all nodes back; false again: go on from the last "
        "checkpoint. Belongs to people: Rerail never writes it.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=INT32_MAX,
        description="Seconds after the end until the job is deleted. None by default: kept.",
    )

    def procs_per_node(self, accelerator_names: Iterable[str]) -> int:
        """Ranks per node; `auto` is resolved against the operator's accelerator names.

        Raises `AmbiguousAccelerators` or `BadAcceleratorCount` (both ValueError, both say what
        to write instead) where the limits do not name one whole number of one accelerator.
        """
        if isinstance(self.num_proc_per_node, int):
            return self.num_proc_per_node
        return accelerator_count(self.template, accelerator_names)

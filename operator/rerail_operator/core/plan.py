"""What a pass decides to do: frozen actions, the status to publish, notes, and when to look again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from rerail_api.status import TrainingJobStatus

from .world import Placement, Release


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Create the pod of a node rank or a spare, pinned to its node; named by job, UID, round and slot."""

    name: str
    node: str
    node_rank: int  # or SPARE
    slot: int
    round: int


@dataclass(frozen=True, slots=True)
class PromoteSpare:
    """A spare takes a node rank from `round` on: one label patch, guarded by the pod's UID and version."""

    name: str
    uid: str
    resource_version: str
    node_rank: int
    round: int


@dataclass(frozen=True, slots=True)
class DeletePod:
    name: str
    uid: str
    grace_seconds: int | None = None  # None: the pod's own grace period
    why: str = ""


@dataclass(frozen=True, slots=True)
class DeleteGang:
    """Delete every pod of this job UID, by label buckets. `grace_seconds` None: the pods' own."""

    grace_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class FreezeTemplate:
    """Store the template as ControllerRevision `name`; the agent's ConfigMap beside it."""

    name: str
    template_hash: str


@dataclass(frozen=True, slots=True)
class DryRunPod:
    """One strict server-side dry run of the gang's pod, before any is created."""

    node: str


@dataclass(frozen=True, slots=True)
class OrderJoin:
    """Tell these agents to come to the barrier of `round`, stopping whatever they run."""

    pod_uids: tuple[str, ...]
    round: int


@dataclass(frozen=True, slots=True)
class OrderRun:
    """Release the barrier: each agent starts its ranks."""

    releases: Mapping[str, Release]  # pod UID -> release
    round: int


@dataclass(frozen=True, slots=True)
class Advise:
    """Tell these agents' running ranks how many seconds to train between checkpoints; 0: as they like."""

    pod_uids: tuple[str, ...]
    round: int
    checkpoint_seconds: int


@dataclass(frozen=True, slots=True)
class AskStacks:
    """Ask these agents where their ranks stand that make no step after `step`; nothing is stopped."""

    pod_uids: tuple[str, ...]
    round: int
    step: int | None


@dataclass(frozen=True, slots=True)
class OrderFinish:
    pod_uids: tuple[str, ...]
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """The TTL has passed: delete the TrainingJob itself (background)."""


Action = (
    CreatePod
    | PromoteSpare
    | DeletePod
    | DeleteGang
    | FreezeTemplate
    | DryRunPod
    | OrderJoin
    | OrderRun
    | Advise
    | AskStacks
    | OrderFinish
    | DeleteJob
)


class Level(StrEnum):
    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Note:
    """One outcome, once: from it the event, the log line and the metric are rendered."""

    reason: str
    message: str
    level: Level = Level.NORMAL


@dataclass(frozen=True, slots=True)
class Plan:
    """The outcome of one pass.

    `intent` True: `status` must be written (guarded by resourceVersion) and read back *before* any action;
    the actions of such a plan are empty: the next pass, on the written status, acts.
    `placement` is what this plan claims on nodes, by node rank, spares by slot; the shell holds it until the
    pods are seen.
    """

    status: TrainingJobStatus | None
    actions: tuple[Action, ...] = ()
    intent: bool = False
    notes: tuple[Note, ...] = ()
    requeue_after: timedelta | None = None
    placement: Placement | None = None
    because: str = ""  # the step that decided, in words, for `rerail explain`
    memory: Mapping[str, datetime] = field(default_factory=dict)  # handed to the next pass; loss is harmless

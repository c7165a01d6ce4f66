"""What one pass over a job has seen. Frozen; parsed at the edge; unreadable is a value, never a crash."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from rerail_api.contract import AgentState
from rerail_api.v1alpha1 import TrainingJob

SPARE = -1
"""The node rank of a pod that holds none: a spare."""

Resources = Mapping[str, int]
"""Resource name -> amount in thousandths of its unit (milli-cores, milli-bytes, milli-GPUs)."""


class PodPhase(StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class Termination:
    """How the trainer container ended, as the API server tells it."""

    exit_code: int
    signal: int | None = None
    reason: str = ""  # Error, OOMKilled, ContainerCannotRun, Completed, Evicted ...
    message: str = ""  # the termination message (the agent's JSON) or the tail of the log


@dataclass(frozen=True, slots=True)
class Pod:
    """One worker pod of the job, living, dying or dead."""

    name: str
    uid: str
    node_rank: int  # or SPARE
    since_round: int  # since when it holds its node rank; a spare: since it was made
    birth_round: int
    slot: int
    phase: PodPhase
    node: str  # the node it is pinned to (and bound to, once `bound`)
    bound: bool = False
    deleting: bool = False
    created: datetime | None = None
    termination: Termination | None = None
    unschedulable: str = ""  # kube-scheduler's sentence while PodScheduled is False
    waiting: str = ""  # "ImagePullBackOff: ..." while the container cannot start
    disruption: str = ""  # reason of the DisruptionTarget condition
    bad_device: str = ""  # "nvidia.com/gpu GPU-abc" while the kubelet calls one that it holds Unhealthy
    template_hash: str = ""
    # Moves with every write of anybody, and says nothing: it only guards our own.
    resource_version: str = field(default="", compare=False)
    # Neither ended nor being deleted: it holds, or will hold, its node rank. Worked out once, asked often.
    alive: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lives = not self.deleting and self.phase in (PodPhase.PENDING, PodPhase.RUNNING)
        object.__setattr__(self, "alive", lives)

    @property
    def spare(self) -> bool:
        """Holds a node and no node rank."""
        return self.node_rank == SPARE

    @property
    def ended(self) -> bool:
        return self.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)


@dataclass(frozen=True, slots=True)
class Exit:
    """First failing rank of a node, as its agent reports it."""

    exit_code: int | None
    signal: int | None = None
    rank: int | None = None
    local_rank: int | None = None
    ordered: bool = False
    exception: str | None = None
    last_line: str = ""
    lines: tuple[str, ...] = ()
    contract: bool = False
    same_on_all: bool = False
    at: datetime | None = None  # leader's clock: when the report came, less the age it told


@dataclass(frozen=True, slots=True)
class Progress:
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    first_loss: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    checkpoint_step: int | None = None
    resumed_from: int | None = None
    stall_seconds: float | None = None  # since the process began
    phase: str | None = None
    contract: bool = False
    at: datetime | None = None  # leader's clock
    moved_at: datetime | None = None  # leader's clock: when step or phase last changed
    step_seconds_p99: float | None = None

    @property
    def says_where(self) -> bool:
        """Whether it tells of a step or a phase; most agents only hear which contract their ranks keep."""
        return self.step is not None or self.phase is not None


@dataclass(frozen=True, slots=True)
class Place:
    """Ranks that stand alike, as their agent was told or saw. States: T stopped, D in the kernel, or ""."""

    ranks: tuple[int, ...]
    state: str = ""
    where: str = ""
    waits: str = ""  # the collective that they wait in
    told: bool = False  # the program said so itself: no `waits` is its word


@dataclass(frozen=True, slots=True)
class Stacks:
    """Where the ranks of a node stand that make no step after `step`."""

    step: int | None
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Probe:
    """What peers found who were asked to connect to an agent that is not heard."""

    asked: int  # peers asked: two, or one where no more could be
    reached: int = 0
    mute: int = 0  # the machine took the connect, the agent did not answer it
    refused: int = 0
    timed_out: int = 0
    at: datetime | None = None  # leader's clock: when they were asked


@dataclass(frozen=True, slots=True)
class SlowRank:
    """A rank that computed slower than the gang's median in some of the last windows."""

    rank: int
    ratio: float  # to the gang's median: the middle one of its windows
    lasting: bool  # in all of them


@dataclass(frozen=True, slots=True)
class Left:
    """The last word of a round that an agent has left for a later one."""

    round: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class Agent:
    """The coordinator's picture of one agent. Gone from the world once its pod is gone."""

    pod_uid: str
    state: AgentState
    round: int
    connected: bool
    last_seen: datetime  # lags while connected: it is asked of those only that are not
    address: str = ""
    port: int = 0
    release: "Release | None" = None
    exit: Exit | None = None
    progress: Progress | None = None
    ranks_alive: int = 0
    advised: int | None = (
        None  # seconds between checkpoints that its ranks were told; None: it takes no advice
    )
    probe: Probe | None = None  # of this silence: gone as soon as the agent is heard again
    stacks: Stacks | None = None
    left: Left | None = None  # as far as this leader heard it

    def told_of(self, round_: int) -> Progress | None:
        """What it said last of its ranks in that round."""
        if self.round == round_:
            return self.progress
        return self.left.progress if self.left is not None and self.left.round == round_ else None


@dataclass(frozen=True, slots=True)
class Release:
    """Under what a node's ranks run; the same for all nodes of a round but for `node_rank`."""

    round: int
    node_rank: int
    num_nodes: int
    nproc: int
    master_addr: str
    master_port: int
    min_step: int = 0
    checkpoint_seconds: int = 0  # of training between checkpoints; 0: as the program likes


class Effect(StrEnum):
    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


@dataclass(frozen=True, slots=True)
class Taint:
    key: str
    effect: Effect
    value: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A node with what is left on it after every bound pod, our pinned pods and planned ones."""

    name: str
    ready: bool | None  # None: the node controller has lost sight of it (Unknown)
    schedulable: bool = True
    taints: tuple[Taint, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    allocatable: Resources = field(default_factory=dict)
    free: Resources = field(default_factory=dict)
    deleting: bool = False
    not_ready_since: datetime | None = None
    trouble: str = ""  # "GpuUnhealthy (XidError)" while a condition says so that the operator is to heed
    struck: str = ""  # what is held against it across jobs: taken only where there is no other


@dataclass(frozen=True, slots=True)
class Nodes:
    """The cluster's nodes as one immutable snapshot."""

    by_name: Mapping[str, Node]

    def get(self, name: str) -> Node | None:
        return self.by_name.get(name)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each node rank goes: node_rank -> node name."""

    nodes: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a gang has no place now: one typed reason with numbers."""

    reason: str  # InsufficientNodes, NeverFits, WaitingForOlderJob, WaitingForSpares, ClusterSettling
    message: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """The API server's no to one of our writes, kept until the spec or the round changes."""

    action: str  # DryRun, CreatePod, EnsureObject
    message: str
    at: datetime
    retriable: bool = False  # quota: may pass later; a typo: never
    pod_name: str = ""


@dataclass(frozen=True, slots=True)
class World:
    """Everything `decide` may look at. `job` is None when the object is gone: only tear-down is left."""

    uid: str
    job: TrainingJob | None
    invalid: str = ""  # why the stored object does not parse; the job is then None but not gone
    pods: tuple[Pod, ...] = ()
    agents: Mapping[str, Agent] = field(default_factory=dict)  # by pod UID
    nodes: Nodes = field(default_factory=lambda: Nodes({}))
    offer: Placement | Refusal | None = None  # the admission pass's answer for a queued job
    template_frozen: bool = False  # the revision named in status was read back
    dry_run_passed: bool = False  # the strict dry run of this template revision went through
    rejections: tuple[Rejection, ...] = ()
    leading_since: datetime | None = None  # agents get time to come back after a hand-over
    claim: Placement | None = None  # what this job's last plan claimed, not all of it seen yet
    memory: Mapping[str, datetime] = field(default_factory=dict)  # what the last plan asked to remember
    slow: tuple[SlowRank, ...] | None = None  # None: ranks do not tell, or not long enough
    accelerators: tuple[str, ...] = ()  # resource names that count as accelerators
    called_in: frozenset[str] = frozenset()  # spares (pod UIDs) whose room another job needs
    room_for_spares: bool = True  # whether no job waits that the nodes left over could serve

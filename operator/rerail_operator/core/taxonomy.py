"""The taxonomy of failures as one table: from the sign that fired to class, answer, price and blame.

Everything that depends on what kind of failure it was is a column here; `evidence` finds signs, `restarts`
and `repair` read the columns. The user's own rules come before the table (`restarts.judge`).
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum, StrEnum

from rerail_api.contract import ExitCode
from rerail_api.status import IncidentClass


class Cause(IntEnum):
    """Kinds of cause, strongest first: of several faults the strongest is the root."""

    ORDERED = 0
    LOST = 1
    SIGNAL = 2
    CODE = 3
    EXIT = 4
    STANDSTILL = 5


class Sign(StrEnum):
    """What can be seen of a failure; each has its row in the table. The value says it in words."""

    POD_DELETED = "the pod was deleted, or the ranks were told to stop"
    POD_PREEMPTED = "DisruptionTarget: preempted"
    POD_DRAINED = "DisruptionTarget: evicted, tainted or ended by the kubelet"
    NODE_GONE = "the node is not ready or gone, and its agent is silent"
    NODE_UNREACHABLE = "the agent is silent, and two peers (or the only one) cannot reach its machine"
    AGENT_SILENT = "the agent has been silent for 20 s while the node says that it is ready"
    FROZEN = "the agent is silent, and its machine takes the connects of peers but never answers"
    DEVICE_BAD = (
        "a rank, container or step fails where the kubelet or the node's conditions call a device bad"
    )
    CANNOT_STOP = "processes survive SIGKILL for 15 s"
    OUT_OF_MEMORY = "the kubelet says OOMKilled"
    CONTAINER_GONE = "the agent is silent, and its machine refuses the connects of peers"
    CONTAINER_ENDED = "the container ended without a word of its agent"
    SIGNALLED = "a signal that nobody of ours sent ended a rank"
    BAD_CONFIG = "exit code 64"
    DATA_MISMATCH = "exit code 65"
    NO_CHECKPOINT = "exit code 66"
    PROGRAM_GIVES_UP = "exit codes 67 to 69"
    RETRY_IN_PLACE = "exit code 80"
    LEAVE_NODE = "exit code 81"
    NON_FINITE = "exit code 82"
    BAD_DATA_SHARD = "exit code 83"
    WATCHDOG = "exit code 84"
    RENDEZVOUS_FAILED = "exit code 85"
    DO_NOT_REQUEUE = "exit code 93"
    OTHER_EXIT = "any other exit code"
    NO_STEP = "no step for too long, though every agent talks"


class Action(StrEnum):
    """The cheapest answer that can help."""

    IN_PLACE = "in place"  # the processes start again, in the same pods
    NEW_POD = "new pod"  # the container is gone; the node is well
    OTHER_NODE = "other node"
    FAIL = "the job fails"


class Witness(StrEnum):
    """Whose word it is that the node is to blame: how far that word may reach."""

    NOBODY = "no"
    PROGRAM = "by its program"  # of the job's own processes: leaves out the node for this job only
    CLUSTER = "yes"  # what no program of a job can make up


@dataclass(frozen=True, slots=True)
class Row:
    """What follows from one sign.

    `free`: charged to nobody. `poison`: how often the same at one point ends the job; None: it never does.
    `away`: how long this job stays away from the node, from the `away_from`-th time at one point on.
    """

    sign: Sign
    kind: IncidentClass
    cause: Cause
    action: Action
    free: bool = False
    poison: int | None = 3
    away: timedelta | None = None
    away_from: int = 1
    witness: Witness = Witness.NOBODY
    codes: tuple[int, ...] = ()

    @property
    def mark(self) -> str:
        """How the fingerprints of such failures begin.

        Whether the cluster or a program blamed the device, the class does not say; no program can write this.
        """
        return self.kind.value + ("/device" if self.sign is Sign.DEVICE_BAD else "")

    def action_at(self, count: int) -> Action:
        """The answer to the `count`-th of the same failure at one point."""
        if self.away is not None and count >= self.away_from:
            return Action.OTHER_NODE
        return self.action

    def away_at(self, count: int) -> timedelta | None:
        """How long the node is left out at the `count`-th of the same failure at one point."""
        return self.away if count >= self.away_from else None


BROKEN = timedelta(minutes=30)
"""Away from a node on which something does not work."""
GONE = timedelta(minutes=2)
"""Away from a node that went: none that is still gone is taken, this only damps flapping."""
CROWDED = timedelta(minutes=2)
"""Away from a node whose memory was full twice: short, for it may be the only one."""

_K, _C, _A, _W = IncidentClass, Cause, Action, Witness

TABLE: tuple[Row, ...] = (
    # nobody's fault: never charged, never poison
    Row(Sign.POD_DELETED, _K.PREEMPTION, _C.ORDERED, _A.NEW_POD, free=True, poison=None),
    Row(Sign.POD_PREEMPTED, _K.PREEMPTION, _C.ORDERED, _A.NEW_POD, free=True, poison=None),
    Row(Sign.POD_DRAINED, _K.DRAIN, _C.ORDERED, _A.OTHER_NODE, free=True, poison=None, away=GONE),
    # the machine
    Row(
        Sign.NODE_GONE,
        _K.NODE_LOSS,
        _C.LOST,
        _A.OTHER_NODE,
        free=True,
        poison=None,
        away=GONE,
        witness=_W.CLUSTER,
    ),
    # No program can keep its machine from taking a connect.
    Row(
        Sign.NODE_UNREACHABLE,
        _K.NODE_LOSS,
        _C.LOST,
        _A.OTHER_NODE,
        free=True,
        poison=None,
        away=GONE,
        witness=_W.CLUSTER,
    ),
    # A job can silence its own agent (by starving it), so this alone speaks for no other job.
    Row(
        Sign.AGENT_SILENT,
        _K.NETWORK,
        _C.LOST,
        _A.OTHER_NODE,
        free=True,
        away=GONE,
        witness=_W.PROGRAM,
    ),
    Row(Sign.FROZEN, _K.CONTAINER_LOSS, _C.LOST, _A.OTHER_NODE, free=True, away=GONE, witness=_W.PROGRAM),
    # Joined evidence: it explains a failure, and is none by itself.
    Row(
        Sign.DEVICE_BAD,
        _K.GPU_FAULT,
        _C.LOST,
        _A.OTHER_NODE,
        free=True,
        away=BROKEN,
        witness=_W.CLUSTER,
    ),
    Row(
        Sign.CANNOT_STOP,
        _K.CONTAINER_LOSS,
        _C.LOST,
        _A.OTHER_NODE,
        away=BROKEN,
        witness=_W.PROGRAM,
    ),
    # the container
    Row(Sign.OUT_OF_MEMORY, _K.OUT_OF_MEMORY, _C.LOST, _A.NEW_POD, away=CROWDED, away_from=2),
    Row(Sign.CONTAINER_GONE, _K.CONTAINER_LOSS, _C.LOST, _A.NEW_POD),
    Row(Sign.CONTAINER_ENDED, _K.CONTAINER_LOSS, _C.LOST, _A.NEW_POD),
    # the process
    Row(Sign.SIGNALLED, _K.PROCESS_FAULT, _C.SIGNAL, _A.IN_PLACE),
    Row(Sign.BAD_CONFIG, _K.USER_ERROR, _C.CODE, _A.FAIL, codes=(ExitCode.BAD_CONFIG,)),
    Row(Sign.DATA_MISMATCH, _K.USER_ERROR, _C.CODE, _A.FAIL, codes=(ExitCode.DATA_MISMATCH,)),
    Row(Sign.NO_CHECKPOINT, _K.CHECKPOINT_FAULT, _C.CODE, _A.FAIL, codes=(ExitCode.NO_CHECKPOINT,)),
    Row(Sign.PROGRAM_GIVES_UP, _K.USER_ERROR, _C.CODE, _A.FAIL, codes=(67, 68, 69)),
    Row(Sign.RETRY_IN_PLACE, _K.PROCESS_FAULT, _C.CODE, _A.IN_PLACE, codes=(ExitCode.RETRY_IN_PLACE,)),
    Row(
        Sign.LEAVE_NODE,
        _K.GPU_FAULT,
        _C.CODE,
        _A.OTHER_NODE,
        free=True,
        away=BROKEN,
        witness=_W.PROGRAM,
        codes=(ExitCode.LEAVE_NODE,),
    ),
    Row(Sign.NON_FINITE, _K.NUMERIC, _C.CODE, _A.IN_PLACE, codes=(ExitCode.NON_FINITE,)),
    Row(Sign.BAD_DATA_SHARD, _K.BAD_DATA, _C.CODE, _A.IN_PLACE, codes=(ExitCode.BAD_DATA_SHARD,)),
    Row(Sign.WATCHDOG, _K.HANG, _C.CODE, _A.IN_PLACE, witness=_W.PROGRAM, codes=(ExitCode.HANG,)),
    Row(
        Sign.RENDEZVOUS_FAILED,
        _K.RENDEZVOUS_FAULT,
        _C.CODE,
        _A.IN_PLACE,
        free=True,
        codes=(ExitCode.RENDEZVOUS_FAILED,),
    ),
    Row(Sign.DO_NOT_REQUEUE, _K.USER_ERROR, _C.CODE, _A.FAIL, codes=(ExitCode.DO_NOT_REQUEUE,)),
    Row(Sign.OTHER_EXIT, _K.PROCESS_FAULT, _C.EXIT, _A.IN_PLACE),
    Row(Sign.NO_STEP, _K.HANG, _C.STANDSTILL, _A.IN_PLACE, witness=_W.PROGRAM),
)

BY_SIGN: dict[Sign, Row] = {row.sign: row for row in TABLE}
BY_CODE: dict[int, Row] = {code: row for row in TABLE for code in row.codes}
"""Our exit codes; binding only for programs that declare the contract."""

DEVICE_EXPLAINS = frozenset(
    {
        Sign.CANNOT_STOP,
        Sign.FROZEN,
        Sign.CONTAINER_GONE,
        Sign.CONTAINER_ENDED,
        Sign.SIGNALLED,
        Sign.RETRY_IN_PLACE,
        Sign.LEAVE_NODE,
        Sign.NON_FINITE,
        Sign.WATCHDOG,
        Sign.RENDEZVOUS_FAILED,
        Sign.OTHER_EXIT,
        Sign.NO_STEP,
    }
)
"""What a bad device can bring about; user errors, bad data, full memory, lost machines have other causes."""


def witness_of(kind: IncidentClass) -> Witness:
    """How far an incident of that class may speak against its node: as far as the weakest of its signs."""
    found = [row.witness for row in TABLE if row.kind is kind]
    return min(found, key=list(Witness).index, default=Witness.NOBODY)


def in_words(row: Row) -> tuple[str, ...]:
    """The cells of a row for people: sign, class, answer, charged, limit, away, against the node."""
    away = f"{int(row.away.total_seconds() // 60)} min" if row.away is not None else ""
    if away and row.away_from > 1:
        away += f", from time {row.away_from} on"
    final = row.action is Action.FAIL
    return (
        row.sign.value,
        row.kind.value,
        row.action.value,
        "" if final else "no" if row.free else "yes",
        "" if final else str(row.poison or "none"),
        away,
        row.witness.value,
    )

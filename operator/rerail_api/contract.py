"""What operator, agent and trainer agree on: names, exit codes, progress lines, the agent's protocol.

Standard library only and readable by Python 3.9: this file travels inside the agent's zipapp into images
that hold nothing of ours.

The agent's protocol (version 1)
--------------------------------
One connection per agent, newline-delimited JSON objects, each at most ``MAX_FRAME_BYTES``. Both directions
are level-triggered: the agent always sends its *whole* state, the coordinator always sends the *whole* order,
so a lost or repeated message changes nothing.

Agent -> coordinator::

    {"kind": "hello", "v": 1, "token": "...", "job": "ns/name", "job_uid": "...", "pod": "...",
     "pod_uid": "...", "report": REPORT,          first message, within AUTHENTICATE_SECONDS
     "can": ["probe"]}                            what it understands beyond version 1's first form
    {"kind": "report", "report": REPORT}          at every change and every HEARTBEAT_SECONDS
    {"kind": "probed", "id": 12, "outcome": ProbeOutcome}     the answer to a probe, within PROBE_SECONDS

    REPORT = {
      "state": AgentState,          what the agent is doing
      "round": 3,                   the round this state belongs to (0 = none yet)
      "term": 7,                    highest leader term seen
      "release": RELEASE | null,    the release under which ranks run or ran in that round
      "address": "10.1.2.3", "port": 29511,   rendezvous offer of this node for that round (state Ready)
      "exit": EXIT | null,          first failing rank of that round on this node
      "ranks_alive": 2,
      "progress": {...} | null,     newest progress line of this round (see below)
      "progress_age": 0.4,          seconds since that line was read
      "busy": {"3": [12, 0.042]},   of ranks that tell it: windows so far, own seconds per step in the newest
      "moved_age": 0.4,             seconds since step or phase last changed
      "step_seconds_p99": 0.31 | null,   99th percentile of the last steps; null before TIMED_STEPS of them
      "stacks": STACKS | null,      the answer to "stacks"; null again once a step has been made
      "probe_port": 40123,          port on which the agent takes connects of its peers and hangs up
      "checkpoint_seconds": 118     what its ranks were told last (0: nothing); missing: it takes no advice
    }
    EXIT = {
      "rank": 3, "local_rank": 1,   rank is null when the ranks are not ours (launcher PerNode)
      "exit_code": 1 | null, "signal": 9 | null,   one of the two
      "ordered": false,             true when the agent had sent the signal or a stop was under way
      "exception": "ValueError" | null, "last_line": "...", "lines": ["..."],  the last LOG_LINES lines
      "age": 0.02,                  seconds since the exit, on the agent's own clock
      "contract": true,             the program declared our exit-code table in its progress lines
      "codes": {"0": 0, "1": -9},   every local rank that has ended: exit code, or minus the signal
      "same_on_all": true           every local rank ended with the same code and last line
    }
    STACKS = {"step": 40, "places": [PLACE, ...]}      alike ranks share a place; at most STACK_PLACES
    PLACE = {
      "ranks": [0, 2, 3],
      "state": "T" | "D" | "",      stopped by a signal or a tracer; waiting in the kernel; neither
      "where": "loop.py:83 update > ...",       innermost lines of Python, or what the kernel says, or ""
      "waits": "gloo:all_reduce number 41 ...", collective that these ranks wait in; "" in none
      "told": true                  the program said so itself: an empty "waits" is its word
    }

Coordinator -> agent::

    {"kind": "welcome", "v": 1, "term": 7}
    {"kind": "redirect", "address": "host:port"}      a standby names the leader (or "" when unknown)
    {"kind": "refuse", "reason": "..."}               not retried faster than once in 10 s
    {"kind": "ping", "term": 7}                       every HEARTBEAT_SECONDS
    {"kind": "advice", "term": 7, "round": 4, "checkpoint_seconds": 118}
        only to agents that report what they were told: written to the file that the ranks of that round find
        in RERAIL_ADVICE; 0: as the program likes
    {"kind": "order", "term": 7, "do": "join",   "round": 4}
        stop what runs of an older round (abort: KILL at once), clean up, pick a port, report Ready(4)
    {"kind": "order", "term": 7, "do": "run",    "round": 4, "release": RELEASE}
        only valid in state Ready(4): start the ranks
    {"kind": "order", "term": 7, "do": "stop",   "round": 4, "mode": "save" | "abort", "grace": 120}
        save = TERM to the rank processes, grace, KILL; abort = KILL; then report Stopped(4)
    {"kind": "order", "term": 7, "do": "finish", "code": 0, "message": "..."}
        end the agent process with this code (ranks still alive are stopped first: abort)
    {"kind": "probe", "term": 7, "id": 12, "address": "10.1.2.4", "port": 40123}
        only to agents that can "probe": connect to this peer, which is not heard, and tell what came of it
    {"kind": "stacks", "term": 7, "round": 4, "step": 40 | null}
        say in reports where the ranks of that round stand, within STACKS_SECONDS; nothing is stopped. Ranks
        that catch SIGUSR1 get it, and those of them that catch SIGUSR2 that one: ours print stacks and
        collectives then

    RELEASE = {"round": 4, "node_rank": 1, "num_nodes": 4, "nproc": 8, "master_addr": "10.1.2.3",
               "master_port": 29511, "min_step": 1150,
               "checkpoint_seconds": 118}    of training between checkpoints; 0 or missing: as it likes

An agent ignores an order with a term lower than the highest it has seen, and one of a round lower than its
own.
"""

from enum import Enum, IntEnum
from typing import Any

GROUP = "rerail.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "TrainingJob"
PLURAL = "trainingjobs"

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 64 * 1024
HEARTBEAT_SECONDS = 2.0
SILENT_SECONDS = 10.0
PROBE_SECONDS = 2.0
AUTHENTICATE_SECONDS = 5.0
RECONNECT_JITTER_SECONDS = 3.0
CANNOT_STOP_SECONDS = 15.0
STACKS_SECONDS = 5.0
STACK_PLACES = 16
TIMED_STEPS = 4
UNLED_COMPLETION_SECONDS = 600.0
UNLED_FAILURE_SECONDS = 10.0
LOG_LINES = 20
LOG_BYTES = 2048
PROGRESS_FILE_BYTES = 1024 * 1024

LABEL_JOB = f"{GROUP}/job-name"
LABEL_JOB_UID = f"{GROUP}/job-uid"
LABEL_NODE_RANK = f"{GROUP}/node-rank"
LABEL_SINCE_ROUND = f"{GROUP}/since-round"
LABEL_BIRTH_ROUND = f"{GROUP}/birth-round"
LABEL_SLOT = f"{GROUP}/slot"
LABEL_BUCKET = f"{GROUP}/bucket"
LABEL_MANAGED = "app.kubernetes.io/managed-by"
MANAGED_BY = "rerail"
BUCKETS = 16
ANNOTATION_TEMPLATE_HASH = f"{GROUP}/template-hash"
ANNOTATION_SCHEMA_HASH = f"{GROUP}/schema-hash"

TRAINER_CONTAINER = "trainer"
VOLUME_PREFIX = "rerail-"
AGENT_MOUNT = "/var/run/rerail/agent"
IDENTITY_MOUNT = "/var/run/rerail/identity"
AGENT_FILE = "agent.pyz"
CA_FILE = "ca.crt"
TOKEN_FILE = "token"  # noqa: S105 - a file name, not a secret
TOKEN_AUDIENCE = "rerail"  # noqa: S105 - an audience, not a secret


class Env:
    """Environment variables set by Rerail: the first block for the agent, the rest for the ranks."""

    COORDINATOR = "RERAIL_COORDINATOR"  # host:port
    COORDINATOR_TLS = "RERAIL_COORDINATOR_TLS"  # "1" or "0" (rerail run on loopback)
    COORDINATOR_NAME = "RERAIL_COORDINATOR_NAME"  # server name in the certificate
    CA_FILE = "RERAIL_CA_FILE"
    TOKEN_FILE = "RERAIL_TOKEN_FILE"  # noqa: S105 - the name of a variable
    POD = "RERAIL_POD"
    POD_UID = "RERAIL_POD_UID"
    POD_IP = "RERAIL_POD_IP"
    NODE = "RERAIL_NODE"
    NPROC = "RERAIL_NPROC"
    LAUNCHER = "RERAIL_LAUNCHER"
    WARM_START = "RERAIL_WARM_START"  # Auto or Never
    GRACE_SECONDS = "RERAIL_GRACE_SECONDS"
    TERMINATION_LOG = "RERAIL_TERMINATION_LOG"

    JOB = "RERAIL_JOB"  # namespace/name
    JOB_UID = "RERAIL_JOB_UID"
    CHECKPOINT_DIR = "RERAIL_CHECKPOINT_DIR"
    RESUME = "RERAIL_RESUME"  # Auto or Never
    ROUND = "RERAIL_ROUND"
    MIN_STEP = "RERAIL_MIN_STEP"
    PROGRESS = "RERAIL_PROGRESS"
    CHECKPOINT_SECONDS = "RERAIL_CHECKPOINT_SECONDS"  # not set: as the program likes
    ADVICE = "RERAIL_ADVICE"  # file that holds the same, as it changes while the ranks run

    RANK = "RANK"
    LOCAL_RANK = "LOCAL_RANK"
    WORLD_SIZE = "WORLD_SIZE"
    LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"
    GROUP_RANK = "GROUP_RANK"
    GROUP_WORLD_SIZE = "GROUP_WORLD_SIZE"
    MASTER_ADDR = "MASTER_ADDR"
    MASTER_PORT = "MASTER_PORT"
    ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


RESERVED_ENV = (
    *sorted(value for name, value in vars(Env).items() if name.isupper() and value.startswith("RERAIL_")),
    Env.RANK,
    Env.LOCAL_RANK,
    Env.WORLD_SIZE,
    Env.LOCAL_WORLD_SIZE,
    Env.GROUP_RANK,
    Env.GROUP_WORLD_SIZE,
    Env.MASTER_ADDR,
    Env.MASTER_PORT,
)
"""Variables a template may not set; a name beginning with PET_ is reserved for launcher PerNode too."""


class ExitCode(IntEnum):
    """Exit codes of a rank: one table for trainer, agent and operator. Any other code is judged by cause."""

    DONE = 0
    BAD_CONFIG = 64
    DATA_MISMATCH = 65
    NO_CHECKPOINT = 66
    PREEMPTED_SAVED = 75
    PREEMPTED_NOT_SAVED = 76
    RETRY_IN_PLACE = 80
    LEAVE_NODE = 81
    NON_FINITE = 82
    BAD_DATA_SHARD = 83
    HANG = 84
    RENDEZVOUS_FAILED = 85
    DO_NOT_REQUEUE = 93


class AgentState(str, Enum):
    """What an agent is doing; always reported with the round it belongs to."""

    IDLE = "Idle"  # connected or connecting, nothing started, at no barrier
    READY = "Ready"  # at the barrier of the round, no descendant alive
    RUNNING = "Running"  # ranks started, none has failed
    FAILED = "Failed"  # a rank has ended with an error; others may still run
    STOPPING = "Stopping"
    STOPPED = "Stopped"  # stopped by order, no descendant alive
    DONE = "Done"  # every rank ended with 0
    STUCK = "Stuck"  # descendants survive KILL for longer than CANNOT_STOP_SECONDS


class ProbeOutcome(str, Enum):
    """What came of connecting to a peer's probe port. To hang up is the peer's answer."""

    REACHED = "reached"
    MUTE = "mute"  # the kernel took the connect, as it does for a process that is stopped; no answer came
    REFUSED = "refused"  # the machine answers, and nothing listens there any more
    TIMEOUT = "timeout"  # the machine does not answer, or there is no way there
    UNKNOWN = "unknown"  # this agent could not try


class ProgressPhase(str, Enum):
    """Phases a program may name in its progress lines."""

    INIT = "init"
    COMPILE = "compile"
    TRAIN = "train"
    EVAL = "eval"
    SAVE = "save"


ADVICE_CHECKPOINT_SECONDS = "checkpoint_seconds"
"""Key in the JSON object of the file RERAIL_ADVICE: whole seconds, or null for as the program likes."""

PROGRESS_FIELDS: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "total_steps": (int,),
    "loss": (int, float),
    "first_loss": (int, float),  # the agent fills it in: the first loss that it read in this round
    "tokens": (int,),
    "tokens_per_second": (int, float),
    "checkpoint_step": (int,),
    "resumed_from": (int,),
    "stall_seconds": (int, float),  # in which this process stood still for saves, since it began
    "phase": (str,),
    "contract": (int,),
}


def clean_progress(line: Any) -> "dict[str, Any] | None":
    """Known fields of a progress line with the right type; None when `line` is no progress line.

    Only ``step`` is needed, except that a line may name a ``phase`` or declare the ``contract`` before the
    first step. Non-finite
    numbers are dropped: JSON on the API server cannot hold them.
    """
    if not isinstance(line, dict):
        return None
    clean: dict[str, Any] = {}
    for field, types in PROGRESS_FIELDS.items():
        value = line.get(field)
        if isinstance(value, bool) or not isinstance(value, types):
            continue
        if isinstance(value, float) and value - value != 0.0:
            continue
        clean[field] = value
    return clean if clean.keys() & {"step", "phase", "contract"} else None


def clean_busy(line: Any) -> "tuple[int, float] | None":
    """A rank and its own seconds per step, from a line of the progress file; None when it tells none.

    Any rank may append ``{"rank": 3, "busy_seconds": 0.42, "busy_steps": 10}``: the seconds that it computed
    by itself, waiting for nobody, in its last steps. Ten steps and two seconds make a good window.
    """
    if not isinstance(line, dict):
        return None
    rank, seconds, steps = _count(line.get("rank")), line.get("busy_seconds"), _count(line.get("busy_steps"))
    if rank is None or not steps or isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return None
    return (rank, seconds / steps) if 0 <= seconds < 1e9 else None


def _count(value: Any) -> "int | None":
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 2**31 else None

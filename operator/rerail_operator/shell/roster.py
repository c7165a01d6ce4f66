"""The picture of all agents: what each last said and what it was last told. No sockets here.

Rebuilt from the agents' hellos after a restart; nothing in it is needed to be right.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from rerail_api.contract import (
    LOG_BYTES,
    LOG_LINES,
    STACK_PLACES,
    AgentState,
    ProbeOutcome,
    clean_progress,
)
from rerail_operator.core.stragglers import WINDOWS
from rerail_operator.core.world import Agent, Exit, Left, Place, Probe, Progress, Release, Stacks

from .frames import ExitFrame, ReleaseFrame, ReportFrame, StacksFrame

Order = dict[str, Any]

# An agent repeats a progress line with a growing age, and arrival jitters: this near it is the same line.
SAME_INSTANT = timedelta(seconds=1)
MOST_RANKS = 256
_RUN_SEEN = frozenset(AgentState) - {AgentState.IDLE, AgentState.READY}
_STOP_SEEN = frozenset({AgentState.STOPPING, AgentState.STOPPED, AgentState.STUCK})
_OBEYING = frozenset({AgentState.STOPPING, AgentState.STOPPED, AgentState.READY, AgentState.RUNNING})


class Link(Protocol):
    """The open connection of an agent."""

    def write(self, message: Order) -> None: ...

    def write_frame(self, frame: bytes) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Inquiry:
    """Peers asked about one silent agent, by pod UID, and what each has answered."""

    number: int
    at: datetime
    asked: float  # monotonic seconds
    answers: dict[str, ProbeOutcome | None]

    @property
    def complete(self) -> bool:
        return all(self.answers.values())


@dataclass(slots=True)
class Record:
    """One agent by pod UID; outlives its connection, until `forget`."""

    job_uid: str
    said: Agent
    last_seen: datetime
    heard: float  # monotonic seconds of the last message
    link: Link | None = None
    silent: bool = False
    probe_port: int = 0
    can_probe: bool = False
    busy: dict[int, tuple[int, tuple[float, ...]]] = field(default_factory=dict)
    inquiry: Inquiry | None = None
    probe: Probe | None = None
    order: Order | None = None
    order_sent: float = float("-inf")

    @property
    def connected(self) -> bool:
        return self.link is not None and not self.silent

    def agent(self) -> Agent:
        """What a pass sees. While the agent is connected nobody asks when it was heard last: its record is
        then made anew for what it says only, not for every heartbeat of thousands."""
        said, connected = self.said, self.connected
        same = said.probe is self.probe and (connected or said.last_seen is self.last_seen)
        if not same or said.connected != connected:
            self.said = replace(said, connected=connected, last_seen=self.last_seen, probe=self.probe)
        return self.said

    def note_busy(self, told: Mapping[str, tuple[int, float]], fresh: bool) -> None:
        """Own seconds per step in windows of the ranks of this node; `fresh`: another round's than before."""
        if fresh:
            self.busy = {}
        for name, (number, seconds) in told.items():
            rank = int(name) if name.isdecimal() else -1
            seen, windows = self.busy.get(rank, (0, ()))
            if rank >= 0 and number != seen and len(self.busy) < MOST_RANKS:
                self.busy[rank] = (number, (*windows[1 - WINDOWS :], seconds))

    def hear(self, now: datetime, monotonic: float) -> None:
        """A message came: whatever was suspected is over."""
        self.last_seen, self.heard = now, monotonic
        self.silent, self.inquiry, self.probe = False, None, None


class Roster:
    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._jobs: dict[str, dict[str, Record]] = {}
        self._at_it: dict[str, set[str]] = {}  # job UID -> pods told something that they do not show yet

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def get(self, pod_uid: str) -> Record | None:
        return self._records.get(pod_uid)

    def agents(self, job_uid: str) -> Mapping[str, Agent]:
        """A copy; agents that have never said hello are absent."""
        return {uid: record.agent() for uid, record in self._jobs.get(job_uid, {}).items()}

    def jobs(self) -> Iterator[Collection[Record]]:
        """The records of each job."""
        return (siblings.values() for siblings in self._jobs.values())

    def busy(self, job_uid: str, round_: int) -> dict[int, tuple[float, ...]]:
        """Own seconds per step of the job's ranks in that round, oldest window first, as far as they tell."""
        return {
            rank: windows
            for record in self._jobs.get(job_uid, {}).values()
            if record.connected and record.said.round == round_
            for rank, (_, windows) in record.busy.items()
        }

    def put(self, job_uid: str, agent: Agent, link: Link, monotonic: float) -> Record:
        """A hello: the newest connection of a pod is the pod's; what it was told before is kept."""
        record = Record(job_uid, agent, agent.last_seen, monotonic, link)
        if (known := self.forget(agent.pod_uid)) is not None and known.job_uid == job_uid:
            record.order = known.order
        self._records[agent.pod_uid] = record
        self._jobs.setdefault(job_uid, {})[agent.pod_uid] = record
        return record

    def told(self, record: Record) -> None:
        """The agent was given a new order."""
        if record.order is not None and not is_reflected(record.order, record.said):
            self._at_it.setdefault(record.job_uid, set()).add(record.said.pod_uid)

    def heard(self, record: Record, before: Agent) -> bool:
        """Whether what the agent now says is only what it was told to do, while others are still at it."""
        said, at_it = record.said, self._at_it.get(record.job_uid)
        if at_it is None or said.pod_uid not in at_it or said.state not in _OBEYING:
            return False
        if is_fault(before, said):
            return False
        if record.order is None or is_reflected(record.order, said):
            self.gone(record)
        return record.job_uid in self._at_it

    def gone(self, record: Record) -> None:
        """Nobody waits for this agent any more."""
        at_it = self._at_it.get(record.job_uid)
        if at_it is not None:
            at_it.discard(record.said.pod_uid)
            if not at_it:
                del self._at_it[record.job_uid]

    def forget(self, pod_uid: str) -> Record | None:
        record = self._records.pop(pod_uid, None)
        if record is not None:
            self.gone(record)
            siblings = self._jobs[record.job_uid]
            del siblings[pod_uid]
            if not siblings:
                del self._jobs[record.job_uid]
        return record


def observe_report(pod_uid: str, report: ReportFrame, now: datetime, known: Agent | None = None) -> Agent:
    """A report in the core's words, ages turned into leader time.

    `known`: the agent as seen before; instants of what it merely repeats are taken over from it, so that the
    same facts give the same record.
    """
    left = known.left if known is not None else None
    if known is not None and known.round != report.round:
        left = Left(known.round, known.progress) if known.progress is not None else left
        known = None
    return Agent(
        pod_uid=pod_uid,
        state=report.state,
        round=report.round,
        connected=True,
        last_seen=now,
        address=report.address or "",
        port=report.port or 0,
        release=_release(report.release),
        exit=_exit(report.exit, now, known.exit if known else None),
        progress=_progress(report, now, known.progress if known else None),
        ranks_alive=report.ranks_alive,
        advised=report.checkpoint_seconds,
        stacks=_stacks(report.stacks),
        left=left,
    )


def _release(frame: ReleaseFrame | None) -> Release | None:
    if frame is None:
        return None
    return Release(
        round=frame.round,
        node_rank=frame.node_rank,
        num_nodes=frame.num_nodes,
        nproc=frame.nproc,
        master_addr=frame.master_addr,
        master_port=frame.master_port,
        min_step=frame.min_step,
        checkpoint_seconds=frame.checkpoint_seconds,
    )


def _exit(frame: ExitFrame | None, now: datetime, known: Exit | None) -> Exit | None:
    if frame is None:
        return None
    seen = Exit(
        exit_code=frame.exit_code,
        signal=frame.signal,
        rank=frame.rank,
        local_rank=frame.local_rank,
        ordered=frame.ordered,
        exception=frame.exception,
        last_line=(frame.last_line or "")[:LOG_BYTES],
        lines=bounded_lines(frame.lines),
        contract=frame.contract,
        same_on_all=frame.same_on_all,
        at=now - timedelta(seconds=frame.age),
    )
    # the first telling of an exit has the least delay in it; details may be filled in later
    if known is not None and _who_and_how(seen) == _who_and_how(known):
        return replace(seen, at=known.at)
    return seen


def _who_and_how(seen: Exit) -> tuple[int | None, int | None, int | None]:
    return seen.rank, seen.exit_code, seen.signal


def bounded_lines(lines: list[str]) -> tuple[str, ...]:
    """The last LOG_LINES lines, at most LOG_BYTES characters in all; a line cut in front says so."""
    kept: list[str] = []
    left = LOG_BYTES
    for line in reversed(lines[-LOG_LINES:]):
        if left <= 1:
            break
        kept.append(line if len(line) <= left else "…" + line[-(left - 1) :])
        left -= len(kept[-1])
    return tuple(reversed(kept))


def _progress(report: ReportFrame, now: datetime, known: Progress | None) -> Progress | None:
    fields = clean_progress(report.progress)
    if fields is None:
        return None
    fields["contract"] = bool(fields.get("contract"))
    at = now - timedelta(seconds=report.progress_age or 0.0)
    moved_at = None if report.moved_age is None else now - timedelta(seconds=report.moved_age)
    if known is not None and (known.step, known.phase) == (fields.get("step"), fields.get("phase")):
        moved_at = (
            known.moved_at
        )  # told twice is not moved twice, and the first telling came with least delay
    seen = Progress(**fields, at=at, moved_at=moved_at, step_seconds_p99=report.step_seconds_p99)
    if known is not None and known.at is not None and at < known.at + SAME_INSTANT:
        unmoved = replace(seen, at=known.at)
        return known if unmoved == known else seen
    return seen


def _stacks(frame: StacksFrame | None) -> Stacks | None:
    if frame is None:
        return None
    places = frame.places[:STACK_PLACES]
    return Stacks(
        frame.step,
        tuple(
            Place(tuple(p.ranks), p.state[:1], p.where[:LOG_BYTES], p.waits[:LOG_BYTES], p.told)
            for p in places
        ),
    )


def is_fault(before: Agent, after: Agent) -> bool:
    """Whether a report tells of a failed rank that nobody had told to stop, or tells more of it."""
    return after.exit is not None and not after.exit.ordered and after.exit != before.exit


def is_transition(before: Agent, after: Agent) -> bool:
    """Whether a report says something that a pass must see at once; progress alone can wait a moment."""
    return _facts(before) != _facts(after)


def _facts(agent: Agent) -> tuple[object, ...]:
    """All that an agent says but its progress; a tuple, because every heartbeat is compared."""
    return (
        agent.state,
        agent.round,
        agent.connected,
        agent.ranks_alive,
        agent.address,
        agent.port,
        agent.release,
        agent.exit,
        agent.stacks,
    )


def is_reflected(order: Order, agent: Agent) -> bool:
    """Whether the agent's own words show that it has taken this order in."""
    wanted = order.get("round", 0)
    match order.get("do"):
        case "finish":
            return False  # its answer is the end of the connection
        case "join":
            return agent.round > wanted or (agent.round == wanted and agent.state is not AgentState.IDLE)
        case "run":
            return agent.round > wanted or (agent.round == wanted and agent.state in _RUN_SEEN)
        case "stop":
            return agent.round > wanted or (agent.round == wanted and agent.state in _STOP_SEEN)
        case _:
            return False

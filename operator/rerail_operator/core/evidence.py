"""What speaks for a fault: one look at every seat."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from rerail_api.contract import AgentState
from rerail_api.status import IncidentClass

from .devices import said_against
from .gang import Seat
from .lastwords import last_words
from .silence import SUSPECT, Meaning, Silence, hear, just_took_over, silence_of
from .taxonomy import BY_CODE, BY_SIGN, DEVICE_EXPLAINS, Cause, Row, Sign
from .world import Exit, Pod, PodPhase, Termination, World


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that ended, or will end, a node rank's part in the round."""

    sign: Sign
    node_rank: int
    at: datetime
    message: str
    pod: Pod | None = None
    exit: Exit | None = None
    silence: Silence | None = None  # where nothing else speaks for it
    first: Sign | None = None  # what it looked like before the word of the cluster was joined with it

    @property
    def row(self) -> Row:
        """What follows from it, but for what the user's rules say."""
        return BY_SIGN[self.sign]

    @property
    def cause(self) -> Cause:
        return self.row.cause

    @property
    def kind(self) -> IncidentClass:
        return self.row.kind

    @property
    def node(self) -> str | None:
        return self.pod.node if self.pod is not None else None

    @property
    def key(self) -> str:
        """Under which the first sight of this fault is remembered."""
        cause = BY_SIGN[self.first or self.sign].cause  # stays the same when the cluster's word comes later
        return f"fault/{self.node_rank}/{self.pod.uid if self.pod else 'gone'}/{cause.name}"

    @property
    def stood_still(self) -> bool:
        """Whether it was found by its want of steps."""
        return (self.first or self.sign) is Sign.NO_STEP


def find_faults(world: World, taken: Iterable[Seat], now: datetime) -> tuple[Fault, ...]:
    """Every fault that counts against the current round, each with the time it was first seen."""
    assert world.job is not None  # noqa: S101 - narrowing; callers hold a live job
    status = world.job.status
    found: list[Fault] = []
    seats_ = tuple(taken)
    for seat in seats_:
        fault = _seat_fault(world, seat, status.round, status.released_round, now)
        if fault is not None:
            found.append(fault)
    found = hold_if_ours(world, found, seats_, now)
    return tuple(joined(world, replace(f, at=min(f.at, world.memory.get(f.key, f.at)))) for f in found)


def joined(world: World, fault: Fault) -> Fault:
    """The fault; a device's, where the cluster calls its device or node bad and that explains it."""
    if fault.sign not in DEVICE_EXPLAINS:
        return fault
    why = said_against(world.nodes, fault.pod, fault.node)
    if not why:
        return fault
    return replace(fault, sign=Sign.DEVICE_BAD, first=fault.sign, message=f"{fault.message}; {why}")


def hold_if_ours(world: World, found: list[Fault], taken: tuple[Seat, ...], now: datetime) -> list[Fault]:
    """The faults without the silences that do not count; those that do although many are silent say why."""
    if all(fault.silence is None for fault in found):
        return found
    quiet = hear(world, taken, now)  # once, not per silent agent: thousands may fall silent together
    kept = []
    for fault in found:
        if fault.silence is None:
            kept.append(fault)
        elif quiet.counts(fault.silence, now):
            kept.append(replace(fault, message=fault.message + quiet.why()))
    return kept


def _seat_fault(world: World, seat: Seat, round_: int, released: int, now: datetime) -> Fault | None:
    pod = seat.pod
    if pod is None:
        if released != round_:
            return None
        return Fault(
            Sign.POD_DELETED,
            seat.node_rank,
            now,
            f"the pod of node rank {seat.node_rank} is gone: it was deleted by force",
        )
    if _is_well(seat, pod):
        return None
    # A dead pod of an older round is already accounted for: opening this round was the answer to it.
    if not seat.filled and pod.since_round < round_ and released != round_:
        return None
    if finished_with_zero(seat, round_):
        return None
    return (
        _disrupted(seat, pod, round_, now)
        or _node_lost(world, seat, pod, now)
        or _container_ended(seat, pod, round_, now)
        or _rank_failed(seat, pod, round_)
        or _agent_stuck(seat, pod, now)
        or _agent_silent(world, seat, pod, now)
    )


def unfit(world: World, seat: Seat, now: datetime) -> Fault | None:
    """What keeps this seat's pod from serving in any round, whatever its ranks did in the last one."""
    pod = seat.pod
    if pod is None or _is_well(seat, pod):
        return None
    return (
        (_disrupted(seat, pod, None, now) if pod.disruption else None)
        or _node_lost(world, seat, pod, now)
        or _agent_stuck(seat, pod, now)
        or _agent_silent(world, seat, pod, now)
    )


def _is_well(seat: Seat, pod: Pod) -> bool:
    """Whether nothing speaks against this seat: its pod runs and is to stay, its agent is there and has told
    of no exit. Of thousands of seats all but a few are well, and are asked nothing more."""
    agent = seat.agent
    return (
        agent is not None
        and agent.connected
        and agent.exit is None
        and agent.state is not AgentState.STUCK
        and pod.phase is PodPhase.RUNNING
        and not pod.deleting
        and not pod.disruption
    )


def finished_with_zero(seat: Seat, round_: int) -> bool:
    """Whether this node's ranks of the round all ended with 0: told by the agent, or by its last words."""
    agent, pod = seat.agent, seat.pod
    if agent is not None and agent.round == round_ and agent.state is AgentState.DONE:
        return True
    if pod is None or pod.phase is not PodPhase.SUCCEEDED or pod.termination is None:
        return False
    words = last_words(pod.termination)
    return words is not None and words.round == round_ and words.state is AgentState.DONE


DRAINS = frozenset({"EvictionByEvictionAPI", "DeletionByTaintManager", "TerminationByKubelet"})


def _told(seat: Seat, round_: int | None) -> Exit | None:
    """What the agent says of that round; an exit of an older one was answered when this one was opened."""
    return seat.agent.exit if seat.agent is not None and seat.agent.round == round_ else None


def _disrupted(seat: Seat, pod: Pod, round_: int | None, now: datetime) -> Fault | None:
    told = _told(seat, round_)
    if not pod.disruption and not pod.deleting:
        if told is None or not told.ordered:
            return None
        return Fault(
            Sign.POD_DELETED,
            seat.node_rank,
            told.at or now,
            f"pod {pod.name} was told to stop",
            pod,
            told,
        )
    sign, why = Sign.POD_DELETED, pod.disruption or "it was deleted"
    if pod.disruption:
        sign = Sign.POD_DRAINED if pod.disruption in DRAINS else Sign.POD_PREEMPTED
    return Fault(sign, seat.node_rank, now, f"pod {pod.name} on {pod.node}: {why}", pod, told)


def _node_lost(world: World, seat: Seat, pod: Pod, now: datetime) -> Fault | None:
    if not pod.bound or pod.ended:
        return None
    node, agent = world.nodes.get(pod.node), seat.agent
    if node is not None and node.ready is True:
        return None
    if agent is not None and (agent.connected or now - agent.last_seen < SUSPECT):
        return None
    if agent is None and pod.phase is PodPhase.RUNNING and just_took_over(world, now):
        return None
    what = f"node {pod.node} is " + ("gone from the cluster" if node is None else "not ready")
    at, beat = now, ""
    if agent is not None:
        at = agent.last_seen
        beat = f", its agent was last heard of {(now - at).total_seconds():.0f} s ago"
    return Fault(
        Sign.NODE_GONE,
        seat.node_rank,
        at,
        f"{what}{beat}; its log is gone with it",
        pod,
    )


OUT_OF_MEMORY = "OOMKilled"


def _container_ended(seat: Seat, pod: Pod, round_: int, now: datetime) -> Fault | None:
    if not pod.ended:
        return None
    ending = pod.termination
    told = _told(seat, round_)
    words = last_words(ending) if ending is not None else None
    if told is None and words is not None and words.round == round_:
        told = words.exit
    if ending is not None and ending.reason == OUT_OF_MEMORY:
        return Fault(
            Sign.OUT_OF_MEMORY,
            seat.node_rank,
            now,
            f"the container of {pod.name} was killed: out of memory",
            pod,
            told or _log_tail(ending),
        )
    if told is not None:
        return _from_exit(seat.node_rank, pod, told, now)
    if ending is None:
        return Fault(
            Sign.CONTAINER_ENDED,
            seat.node_rank,
            now,
            f"pod {pod.name} failed without a container status",
            pod,
        )
    return Fault(
        Sign.CONTAINER_ENDED,
        seat.node_rank,
        now,
        f"the container of {pod.name} ended with code {ending.exit_code} ({ending.reason or 'no reason'})"
        " and without a word of its agent",
        pod,
        _log_tail(ending),
    )


def _log_tail(ending: Termination) -> Exit:
    lines = tuple(ending.message.splitlines()[-20:]) if last_words(ending) is None else ()
    return Exit(
        exit_code=ending.exit_code, signal=ending.signal, last_line=lines[-1] if lines else "", lines=lines
    )


def _rank_failed(seat: Seat, pod: Pod, round_: int) -> Fault | None:
    told = _told(seat, round_)
    if told is None or seat.agent is None:
        return None
    return _from_exit(seat.node_rank, pod, told, seat.agent.last_seen)


def _from_exit(node_rank: int, pod: Pod, told: Exit, now: datetime) -> Fault:
    at = told.at or now
    if told.ordered:
        return Fault(
            Sign.POD_DELETED,
            node_rank,
            at,
            f"pod {pod.name} was told to stop",
            pod,
            told,
        )
    who = f"rank {told.rank}" if told.rank is not None else f"a rank of node rank {node_rank}"
    if told.signal is not None:
        return Fault(
            Sign.SIGNALLED,
            node_rank,
            at,
            f"{who} was killed by signal {told.signal} on {pod.node}",
            pod,
            told,
        )
    what = f"{who} exited with code {told.exit_code} on {pod.node}"
    if told.exception:
        what += f" ({told.exception})"
    row = BY_CODE.get(told.exit_code or 0) if told.contract else None
    return Fault(row.sign if row is not None else Sign.OTHER_EXIT, node_rank, at, what, pod, told)


def _agent_stuck(seat: Seat, pod: Pod, now: datetime) -> Fault | None:
    if seat.agent is None or seat.agent.state is not AgentState.STUCK:
        return None
    return Fault(
        Sign.CANNOT_STOP,
        seat.node_rank,
        now,
        f"processes in {pod.name} cannot be stopped; the pod is replaced",
        pod,
    )


MEANT: dict[Meaning, Sign] = {
    Meaning.NODE_LOST: Sign.NODE_UNREACHABLE,
    Meaning.CONTAINER_GONE: Sign.CONTAINER_GONE,
    Meaning.FROZEN: Sign.FROZEN,
    Meaning.UNHEARD: Sign.AGENT_SILENT,
}


def _agent_silent(world: World, seat: Seat, pod: Pod, now: datetime) -> Fault | None:
    """An agent that should be there and is silent; whether that counts, `hold_if_ours` says."""
    found = silence_of(world, seat, now)
    if found is None:
        return None
    return Fault(MEANT[found.meaning], seat.node_rank, found.since, found.words, pod, silence=found)

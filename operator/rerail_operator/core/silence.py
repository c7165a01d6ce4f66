"""Lost or only silent: what an agent's silence means, after what its peers found and how many are silent."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from rerail_api.contract import AgentState

from .gang import Seat, more_than_few
from .world import Agent, Pod, PodPhase, Probe, World

SUSPECT = timedelta(seconds=6)
"""Three missed heartbeats: from here on peers are asked."""
SILENT_IS_LOST = timedelta(seconds=20)
"""Silence after which an agent counts as lost though its peers reach it, or there is none to ask."""
OWN_NETWORK = timedelta(seconds=120)
"""How long more silent agents than a few are waited for, as our own network: no switch or route takes
longer to come back, and one node that hangs may be among them."""
HEARING_NOBODY = timedelta(seconds=600)
"""How long while no agent at all is heard: a restart would end ranks that may well run, and could not start
others, for they would not reach us either."""


class Meaning(StrEnum):
    """What a silence is taken for."""

    NODE_LOST = "node lost"  # the machine answers no peer
    CONTAINER_GONE = "container gone"  # the machine refuses the connects of peers: nothing listens there
    FROZEN = "frozen"  # the machine takes the connects of peers, and the agent answers none
    UNHEARD = "unheard"  # for too long, whatever peers say


@dataclass(frozen=True, slots=True)
class Silence:
    """An agent's silence that lasts too long for what is known of it."""

    since: datetime
    meaning: Meaning
    words: str


def silence_of(world: World, seat: Seat, now: datetime) -> Silence | None:
    """This seat's silence, when it means something by itself; whether it counts, `Quiet` says."""
    heard = _quiet_since(world, seat)
    if heard is None or seat.pod is None:
        return None
    known = now - _known_since(world, heard)
    probe = seat.agent.probe if seat.agent is not None else None
    meaning = _found(probe) if known >= SUSPECT else None
    if meaning is None and known >= SILENT_IS_LOST:
        meaning = Meaning.UNHEARD
    if meaning is None:
        return None
    lasts = f"silent for {(now - heard).total_seconds():.0f} s"
    return Silence(heard, meaning, _words(meaning, seat.pod, lasts, probe))


def _found(probe: Probe | None) -> Meaning | None:
    """What peers agree on; None where they do not, or reach it."""
    if probe is None:
        return None
    if probe.timed_out == probe.asked:
        return Meaning.NODE_LOST
    if probe.refused == probe.asked:
        return Meaning.CONTAINER_GONE
    return Meaning.FROZEN if probe.timed_out + probe.mute == probe.asked else None


def _words(meaning: Meaning, pod: Pod, lasts: str, probe: Probe | None) -> str:
    who = _peers(probe.asked) if probe is not None else ""
    match meaning:
        case Meaning.NODE_LOST:
            return (
                f"node {pod.node} is lost: the agent of {pod.name} has been {lasts} and {who} cannot reach it"
                "; its log is gone with it"
            )
        case Meaning.CONTAINER_GONE:
            return (
                f"the container of {pod.name} is gone: {lasts}, and {pod.node} refused the connect of {who}"
            )
        case Meaning.FROZEN:
            return (
                f"the container of {pod.name} on {pod.node} is frozen: {lasts}, and it gave {who} no answer"
            )
        case Meaning.UNHEARD:
            return f"the agent of {pod.name} on {pod.node} has been {lasts}{_tried(probe)}"


def step_without_a_word(world: World, behind: Iterable[Seat], now: datetime) -> bool:
    """Whether all that these seats lack is a word of their agents, while steps are made that need them."""
    assert world.job is not None  # noqa: S101 - narrowing; callers hold a live job
    round_, moved = world.job.status.round, _last_move(world)
    return all(
        seat.filled
        and agent is not None
        and not agent.connected
        and (agent.state, agent.round) == (AgentState.RUNNING, round_)
        and _moves_since(agent.last_seen, moved, now)
        for seat, agent in ((seat, seat.agent) for seat in behind)
    )


def found_about(agent: Agent | None) -> str:
    """What peers found about an agent that is not heard, to be put behind a sentence."""
    return _tried(agent.probe) if agent is not None else ""


def just_took_over(world: World, now: datetime) -> bool:
    """Whether agents may still be on their way to this leader."""
    return world.leading_since is not None and now - world.leading_since < SILENT_IS_LOST


def is_container_gone(agent: Agent | None) -> bool:
    """Whether peers found the agent's node alive and nothing listening there."""
    return agent is not None and not agent.connected and _found(agent.probe) is Meaning.CONTAINER_GONE


def _tried(probe: Probe | None) -> str:
    """What peers found that could not agree, to be put behind a sentence; "" where nobody was asked."""
    if probe is None:
        return ""
    if probe.reached:
        return f", though {_peers(probe.reached)} reached it"
    refused = f"{probe.refused} {'was' if probe.refused == 1 else 'were'} refused"
    return f"; of {_peers(probe.asked)}, {probe.timed_out} could not reach it, {refused}"


def _peers(number: int) -> str:
    return f"{number} peer{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Quiet:
    """The silences of one gang together: which of them count."""

    moved: datetime | None  # when a connected agent last told of a step
    many: bool
    patience: timedelta

    def counts(self, silence: Silence, now: datetime) -> bool:
        """Not while steps are made that need its ranks, and not while too many are silent."""
        if _moves_since(silence.since, self.moved, now):
            return False
        return not self.many or now - silence.since >= self.patience

    def held(self) -> str:
        """What to add to a job whose agents are waited for because many are silent; "" where few are."""
        return "; so many are silent at once that it is taken for our own network" if self.many else ""

    def why(self) -> str:
        """What to add to a silence that counts although many are silent; "" where few are."""
        if not self.many:
            return ""
        return f"; so many were silent at once that it was waited for, {self.patience.total_seconds():.0f} s"


def hear(world: World, taken: Iterable[Seat], now: datetime) -> Quiet:
    """How quiet the gang is."""
    size = silent = 0
    moved = _last_move(world)
    for seat in taken:
        size += 1
        heard = _quiet_since(world, seat)
        if heard is None or now - _known_since(world, heard) < SUSPECT or _is_explained(world, seat):
            continue
        silent += not _moves_since(heard, moved, now)
    somebody = any(agent.connected for agent in world.agents.values())
    return Quiet(moved, more_than_few(silent, size), OWN_NETWORK if somebody else HEARING_NOBODY)


def _quiet_since(world: World, seat: Seat) -> datetime | None:
    """When an agent was last heard that should be there and is not; None where all is well."""
    assert world.job is not None  # noqa: S101 - narrowing; callers hold a live job
    pod, agent, status = seat.pod, seat.agent, world.job.status
    if pod is None or pod.phase is not PodPhase.RUNNING or (agent is not None and agent.connected):
        return None
    if agent is not None and agent.state is AgentState.DONE and agent.round == status.round:
        return None  # it has nothing to tell any more
    if agent is not None:
        return agent.last_seen
    if status.released_round != status.round or world.leading_since is None:
        # Never heard of: a container that is starting, unless an earlier leader released its ranks.
        return None
    return world.leading_since


def _known_since(world: World, heard: datetime) -> datetime:
    """Since when this leader knows of a silence: agents need a while to find it."""
    return max(heard, world.leading_since or heard)


def _is_explained(world: World, seat: Seat) -> bool:
    """Whether something else than a network tells why this agent is not heard."""
    pod = seat.pod
    if pod is None or pod.deleting or pod.disruption:
        return True
    node = world.nodes.get(pod.node)
    return node is None or node.ready is not True


def _last_move(world: World) -> datetime | None:
    told = (a.progress.at for a in world.agents.values() if a.connected and a.progress is not None)
    return max((at for at in told if at is not None), default=None)


def _moves_since(then: datetime, moved: datetime | None, now: datetime) -> bool:
    """Whether steps are still being made that nobody could make without the agent silent since `then`."""
    return moved is not None and moved > then + SUSPECT and now - moved < SILENT_IS_LOST

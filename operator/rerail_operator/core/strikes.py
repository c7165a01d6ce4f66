"""Strikes: what interruptions of all jobs say about single nodes, and which nodes are avoided for it.

One incident gives its node at most one strike, whoever leads: the key is (job UID, incident number). How far
the word of an incident reaches, the taxonomy says: what the cluster saw counts alone, what the processes of a
job can make up counts only where jobs of two namespaces say it. Strikes end after a week, or by a person.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction
from typing import Final

from rerail_api.status import Incident, IncidentClass
from rerail_api.v1alpha1 import TrainingJob

from .taxonomy import BY_SIGN, Sign, Witness, witness_of
from .topology import Domain, domain
from .world import Node, Nodes

WINDOW: Final = timedelta(days=7)
STRUCK_AT: Final = 3
"""Strikes within the window from which on a node is avoided."""
ONE_IN: Final = 20
"""No more than one node in so many is avoided, counted among nodes with the same extended resources."""
PER_NODE: Final = 8
MAX_NODES: Final = 1000
"""The newest strikes are kept; of the nodes those that were struck last."""
CONFIRMED_WITHIN: Final = timedelta(minutes=5)
"""How long after an incident the API server may still say that the node is not Ready, or gone."""
TOGETHER: Final = timedelta(seconds=10)
"""What happened to one node within this time happened to it once, however many jobs ran on it."""
DOMAIN_NODES: Final = 3
"""So many nodes of one topology domain within `TOGETHER` fell by one cause: they share one strike."""

_BY_DEVICE: Final = BY_SIGN[Sign.DEVICE_BAD].mark.split("/")
_WITNESS: Final = {kind: witness_of(kind) for kind in IncidentClass}


@dataclass(frozen=True, slots=True)
class Strike:
    """One incident held against one node."""

    at: datetime
    kind: IncidentClass
    namespace: str
    job: str
    uid: str  # the job's
    number: int  # the incident's, within the job
    domain: Domain = ()  # where the node stood
    seen: bool = True  # by the API server; False: only processes of the job say so
    among: int = 1  # nodes that the incident took with it: they share the strike

    @property
    def witness(self) -> Witness:
        """Peers of a job tell sooner than the API server that a node is lost, and could make it up."""
        return Witness.CLUSTER if self.seen else Witness.PROGRAM

    @property
    def key(self) -> tuple[str, int]:
        return (self.uid, self.number)


@dataclass(frozen=True, slots=True)
class Record:
    """All that is held against one node, oldest first; nothing from before `cleared` is."""

    strikes: tuple[Strike, ...] = ()
    cleared: datetime | None = None

    @property
    def newest(self) -> datetime | None:
        """When anything was last written here."""
        times = [*(strike.at for strike in self.strikes[-1:]), *([self.cleared] if self.cleared else [])]
        return max(times, default=None)


Book = Mapping[str, Record]
"""Node name -> its record."""


@dataclass(frozen=True, slots=True)
class Account:
    """What one job's incidents say of nodes: the last word about every one of `numbers`."""

    uid: str
    numbers: frozenset[int] = frozenset()
    strikes: tuple[tuple[str, Strike], ...] = ()  # (node, strike)


class State(StrEnum):
    """Where a node with strikes stands."""

    WATCHED = "watched"
    STRUCK = "avoided"
    LET_IN = "let in"
    GONE = "gone"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the record of a node comes to now."""

    state: State
    weight: Fraction
    since: datetime | None = None  # when its strikes first weighed enough to avoid it
    until: datetime | None = None  # when they no longer will
    why: str = ""


# -- writing ----------------------------------------------------------------------------------------------


def account_of(job: TrainingJob, nodes: Nodes) -> Account:
    """The job's incidents as strikes; an incident that speaks against no node takes its strike back."""
    meta, found = job.metadata, []
    for incident in job.status.incidents:
        if incident.node is None or incident.start_time is None:
            continue
        if _WITNESS[incident.class_] is Witness.NOBODY:
            continue
        node = nodes.get(incident.node)
        strike = Strike(
            # Whole seconds: what is read back must equal what was written.
            incident.start_time.replace(microsecond=0),
            incident.class_,
            meta.namespace,
            meta.name,
            meta.uid,
            incident.number,
            _place(node),
            _is_seen(incident, node),
            incident.nodes_lost or 1,
        )
        found.append((incident.node, strike))
    return Account(meta.uid, frozenset(i.number for i in job.status.incidents), tuple(found))


def _is_seen(incident: Incident, node: Node | None) -> bool:
    """Whether the API server says so: of a device at once, of a lost node by what it says of the node now."""
    if incident.fingerprint.split("/")[:2] == _BY_DEVICE:
        return True
    return _WITNESS[incident.class_] is Witness.CLUSTER and not (node is not None and node.ready)


def told(job: TrainingJob, nodes: Nodes, now: datetime) -> tuple[object, ...]:
    """What an account of this job would be made from: a new one is due when this has changed."""
    incidents = job.status.incidents
    last = incidents[-1] if incidents else None
    fresh = last is not None and last.start_time is not None and now - last.start_time < CONFIRMED_WITHIN
    node = nodes.get(last.node or "") if last is not None and fresh else None
    ready = node is not None and node.ready is True
    return tuple([*((i.number, i.class_, i.node, i.nodes_lost) for i in incidents), fresh and not ready])


def _place(node: Node | None) -> Domain:
    place = domain(node) if node is not None else ()
    return place if any(place) else ()


def entered(book: Book, accounts: Iterable[Account], now: datetime) -> Book:
    """The book with these accounts in it, within its bounds. To enter an account twice changes nothing."""
    numbers = {account.uid: account.numbers for account in accounts}
    fresh: dict[str, list[Strike]] = {}
    for account in accounts:
        for node, strike in account.strikes:
            fresh.setdefault(node, []).append(strike)
    pages: dict[str, Record] = {}
    for node in book.keys() | fresh.keys():
        before = book.get(node, Record())
        known = {strike.key: strike for strike in before.strikes}
        kept = [s for s in before.strikes if s.number not in numbers.get(s.uid, ())]
        new = [_with_memory(strike, known.get(strike.key)) for strike in fresh.get(node, ())]
        pages[node] = replace(before, strikes=(*kept, *new))
    return bounded(pages, now)


def _with_memory(strike: Strike, known: Strike | None) -> Strike:
    """Where a node stood is still known when it is gone, and that it was lost when it is Ready again."""
    if known is None or known.kind is not strike.kind:
        return strike
    return replace(strike, domain=strike.domain or known.domain, seen=strike.seen or known.seen)


def bounded(book: Book, now: datetime) -> Book:
    """The book without what is over; of each node the newest 8 strikes, of the nodes the last 1,000."""
    pages: list[tuple[datetime, str, Record]] = []
    for node, record in book.items():
        cleared = record.cleared if record.cleared and record.cleared > now - WINDOW else None
        open_since = max(now - WINDOW, cleared or now - WINDOW)
        left = _told_once(s for s in record.strikes if s.at > open_since)
        page = Record(tuple(left[-PER_NODE:]), cleared)
        if (newest := page.newest) is not None:
            pages.append((newest, node, page))
    pages.sort(key=lambda page: (page[0], page[1]), reverse=True)
    return {node: page for _, node, page in sorted(pages[:MAX_NODES], key=lambda page: page[1])}


def _told_once(strikes: Iterable[Strike]) -> list[Strike]:
    """In order of time; of what happened at once one word of the cluster, and one of each namespace."""
    kept: list[Strike] = []
    since, voices = None, set[str]()
    for strike in sorted(strikes, key=lambda s: (s.at, s.key)):
        if since is None or strike.at - since > TOGETHER:
            since, voices = strike.at, set()
        voice = "" if strike.witness is Witness.CLUSTER else strike.namespace
        if voice not in voices:
            kept.append(strike)
        voices.add(voice)
    return kept


def cleared(book: Book, node: str, now: datetime) -> Book:
    """The book after a person has let this node in again: what happened until now no longer counts."""
    record = book.get(node, Record())
    # Clocks differ: what stands in the book has happened.
    at = max([now.replace(microsecond=0), *(strike.at for strike in record.strikes)])
    return bounded({**book, node: Record((), at)}, max(now, at))


# -- judging ----------------------------------------------------------------------------------------------


def verdicts(book: Book, nodes: Nodes, now: datetime) -> dict[str, Verdict]:
    """Every node of the book judged; never more than 5 % of like nodes are avoided."""
    book = bounded(book, now)
    weights = _weights(book)
    found = {node: _judged(node, record, weights, now) for node, record in book.items()}
    pools: dict[frozenset[str], list[str]] = {}
    for name, verdict in found.items():
        node = nodes.get(name)
        if node is None:
            found[name] = replace(verdict, state=State.GONE, why="no node of this name is there")
        elif verdict.state is State.STRUCK:
            pools.setdefault(_kind(node), []).append(name)
    limits = _limits(nodes) if pools else {}  # a look at every node of the cluster
    for pool, struck in pools.items():
        # The freshest evidence weighs most: who was struck first is let in first.
        struck.sort(key=lambda name: (found[name].since or now, name), reverse=True)
        size, limit = limits[pool]
        for name in struck[limit:]:
            why = f"{_many(len(struck))} struck, and at most {limit} of {size} like nodes (5 %) are avoided"
            found[name] = replace(found[name], state=State.LET_IN, why=why)
    return found


def avoided_nodes(found: Mapping[str, Verdict]) -> dict[str, str]:
    """The nodes that no job is to be placed on while there are others, with the reason in a few words."""
    return {name: in_words(v) for name, v in found.items() if v.state is State.STRUCK}


def in_words(verdict: Verdict) -> str:
    """How much is held against a node."""
    return f"{number(verdict.weight)} strike{'' if verdict.weight == 1 else 's'} in {WINDOW.days} days"


def number(weight: Fraction) -> str:
    """A weight for people: 3, 0.33."""
    return f"{float(weight):.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class _Weights:
    """What strikes weigh: each 1, or its share where a whole domain fell at once."""

    shares: Mapping[tuple[str, tuple[str, int]], int] = field(default_factory=dict)

    def together(self, node: str, strikes: Iterable[Strike]) -> Fraction:
        listed = list(strikes)
        spoke = {s.namespace for s in listed if s.witness is Witness.PROGRAM}
        total, since = Fraction(0), None
        for strike in listed:
            if len(spoke) < 2 and strike.witness is Witness.PROGRAM:
                continue
            if since is None or strike.at - since > TOGETHER:
                since = strike.at
                total += Fraction(1, max(strike.among, self.shares.get((node, strike.key), 1)))
        return total


def _judged(node: str, record: Record, weights: _Weights, now: datetime) -> Verdict:
    strikes = record.strikes
    weight = weights.together(node, strikes)
    if not strikes:
        return Verdict(State.CLEARED, weight, why=f"by hand at {record.cleared:%Y-%m-%d %H:%M} UTC")
    if weight < STRUCK_AT:
        silent = weight == 0
        why = "one namespace's programs say so, nobody else" if silent else ""
        return Verdict(State.WATCHED, weight, why=why)
    grown = (strikes[:count] for count in range(1, len(strikes) + 1))
    since = next(part[-1].at for part in grown if weights.together(node, part) >= STRUCK_AT)
    shrunk = range(1, len(strikes) + 1)
    last = next(c for c in shrunk if weights.together(node, strikes[c:]) < STRUCK_AT)
    return Verdict(State.STRUCK, weight, since, strikes[last - 1].at + WINDOW)


def _weights(book: Book) -> _Weights:
    """Nodes of one domain that fell within ten seconds share one strike, in the narrowest such domain."""
    falls: dict[Domain, list[tuple[datetime, str]]] = {}
    for node, record in book.items():
        for strike in record.strikes:
            for place in _domains(strike):
                falls.setdefault(place, []).append((strike.at, node))
    for fallen in falls.values():
        fallen.sort()
    shares: dict[tuple[str, tuple[str, int]], int] = {}
    for node, record in book.items():
        for strike in record.strikes:
            for place in _domains(strike):
                count = _fallen_with(falls[place], strike.at)
                if count >= DOMAIN_NODES:
                    shares[(node, strike.key)] = count
                    break
    return _Weights(shares)


def _domains(strike: Strike) -> list[Domain]:
    """The domains in which the node stood, narrowest first."""
    return [strike.domain[:level] for level in range(len(strike.domain), 0, -1) if strike.domain[level - 1]]


def _fallen_with(fallen: list[tuple[datetime, str]], at: datetime) -> int:
    first = bisect_left(fallen, at - TOGETHER, key=lambda fall: fall[0])
    last = bisect_right(fallen, at + TOGETHER, key=lambda fall: fall[0])
    return len({node for _, node in fallen[first:last]})


def _kind(node: Node) -> frozenset[str]:
    """What tells nodes apart that cannot stand in for one another: their extended resources (GPUs, NICs)."""
    return frozenset(name for name, amount in node.allocatable.items() if "/" in name and amount > 0)


def _limits(nodes: Nodes) -> dict[frozenset[str], tuple[int, int]]:
    """By kind of node: how many there are, and how many of them may be avoided."""
    sizes: dict[frozenset[str], int] = {}
    for node in nodes.by_name.values():
        kind = _kind(node)
        sizes[kind] = sizes.get(kind, 0) + 1
    return {kind: (size, size // ONE_IN) for kind, size in sizes.items()}


def _many(count: int) -> str:
    return "1 is" if count == 1 else f"{count} are"

"""Asks peers about an agent that is not heard: is it gone, or is only the way between it and us?

Asking is all that happens here; what the answers mean is decided in `core.silence`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from rerail_api.contract import PROBE_SECONDS, ProbeOutcome
from rerail_operator.core.world import Probe

from .clock import Clock
from .frames import Probed
from .roster import Inquiry, Record, Roster

PEERS = 2
AT_ONCE = 64
"""Silent agents of one job asked about in one look: more at once are our own network, and may wait."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds."""

    suspect: float  # of silence, before anybody is asked
    fresh: float  # of silence, up to which an agent is asked about others
    probe: float = PROBE_SECONDS
    slack: float = 1.0  # for question and answer to travel

    @property
    def answers(self) -> float:
        return self.probe + self.slack

    @property
    def again(self) -> float:
        """After which peers are asked anew, for as long as the silence lasts."""
        return 2 * self.answers


class Inquiries:
    """Every open question; `look` often, for a question is asked no sooner than that."""

    def __init__(self, roster: Roster, patience: Patience, clock: Clock, tell: Callable[[str], None]) -> None:
        self._roster = roster
        self._patience = patience
        self._clock = clock
        self._tell = tell
        self._numbers = count(1)
        self._open: dict[int, Record] = {}

    def look(self, now: float, term: int) -> None:
        """Ask about every agent that has been silent for too long; `now` in monotonic seconds."""
        for records in self._roster.jobs():
            silent = [record for record in records if self._is_due(record, now)]
            if silent:
                peers = [record for record in records if self._can_tell(record, now)]
                for suspect in silent[:AT_ONCE]:
                    self._ask(suspect, self._choose(peers), term)

    def answered(self, peer: Record, probed: Probed) -> None:
        """A peer has tried."""
        suspect = self._open.get(probed.id)
        inquiry = suspect.inquiry if suspect is not None else None
        if suspect is None or inquiry is None or inquiry.number != probed.id:
            return  # heard in the meantime, or asked anew
        uid = peer.said.pod_uid
        if uid not in inquiry.answers:
            return  # nobody has asked it
        inquiry.answers[uid] = _outcome(probed.outcome)
        if inquiry.complete:
            del self._open[inquiry.number]
            suspect.probe = _sum(inquiry)
            self._tell(suspect.job_uid)

    def _is_due(self, record: Record, now: float) -> bool:
        if record.connected or now - record.heard < self._patience.suspect:
            return False
        if not record.probe_port or not record.said.address:
            return False
        if record.order is not None and record.order.get("do") == "finish":
            return False  # its silence is what it was told to
        inquiry = record.inquiry
        if inquiry is None:
            return True
        wait = self._patience.again if inquiry.complete else self._patience.answers
        return now - inquiry.asked >= wait

    def _can_tell(self, record: Record, now: float) -> bool:
        return record.connected and record.can_probe and now - record.heard < self._patience.fresh

    def _choose(self, peers: Sequence[Record]) -> list[Record]:
        """Two of them, others each time: one that lies about everybody is soon outvoted."""
        first = next(self._numbers) * PEERS
        return [peers[(first + index) % len(peers)] for index in range(min(PEERS, len(peers)))]

    def _ask(self, suspect: Record, peers: list[Record], term: int) -> None:
        if suspect.inquiry is not None:
            self._open.pop(suspect.inquiry.number, None)
        if not peers:
            return
        number = next(self._numbers)
        answers: dict[str, ProbeOutcome | None] = {peer.said.pod_uid: None for peer in peers}
        suspect.inquiry = Inquiry(number, self._clock.now(), self._clock.monotonic(), answers)
        self._open[number] = suspect
        where = {"address": suspect.said.address, "port": suspect.probe_port}
        for peer in peers:
            if peer.link is not None:
                peer.link.write({"kind": "probe", "term": term, "id": number, **where})


def _outcome(told: str) -> ProbeOutcome:
    try:
        return ProbeOutcome(told)
    except ValueError:
        return ProbeOutcome.UNKNOWN  # of a later agent


def _sum(inquiry: Inquiry) -> Probe:
    told = list(inquiry.answers.values())
    return Probe(
        asked=len(told),
        reached=told.count(ProbeOutcome.REACHED),
        mute=told.count(ProbeOutcome.MUTE),
        refused=told.count(ProbeOutcome.REFUSED),
        timed_out=told.count(ProbeOutcome.TIMEOUT),
        at=inquiry.at,
    )

"""Notes as Kubernetes Events: what `kubectl describe tj` shows. Aggregated, rate limited, in the background.

A pass only puts notes into a queue. Events are for people: what cannot be posted is dropped, and said once.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from rerail_api.contract import API_VERSION, KIND
from rerail_api.job import TrainingJob
from rerail_operator.core.plan import Note

from .clock import Clock
from .cluster import AlreadyExists, Cluster, ClusterError, Kind, NotFound, Object, Unavailable

log = logging.getLogger(__name__)

COMPONENT = "rerail"
MESSAGE_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class EventLimits:
    """Seconds, and numbers of events."""

    same_within: float = 600.0  # an equal note within this time counts the event up
    distinct: int = 10  # messages of one job and reason; more of them are told by the last event
    queue: int = 1000
    per_second: float = 10.0
    burst: int = 50
    tries: int = 3
    retry: float = 1.0


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One note about one job, as it happened."""

    namespace: str
    job: str
    job_uid: str
    note: Note
    at: datetime
    name: str  # of the event that tells it: the same at every try, so that a lost reply makes no second one


@dataclass(slots=True)
class Posted:
    """An event that is there and can be counted up."""

    namespace: str
    name: str
    count: int
    last: float


@dataclass(slots=True)
class Bucket:
    """A token bucket; says how long to wait for the next token."""

    rate: float
    size: int
    filled_at: float
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = float(self.size)

    def take(self, now: float) -> float:
        self.tokens = min(float(self.size), self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        self.tokens -= 1.0
        return max(0.0, -self.tokens / self.rate)


class EventRecorder:
    """`record` from passes; `run` posts until cancelled; `flush` before the end."""

    def __init__(
        self, cluster: Cluster, clock: Clock, instance: str, limits: EventLimits | None = None
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._instance = instance
        self._limits = limits or EventLimits()
        self._waiting: deque[Occurrence] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._posted: dict[tuple[str, str], dict[str, Posted]] = {}
        self._bucket = Bucket(self._limits.per_second, self._limits.burst, clock.monotonic())
        self._troubles: set[str] = set()
        self.dropped = 0

    def record(self, job: TrainingJob, notes: Iterable[Note]) -> None:
        """Never waits and never fails. When the queue is full the oldest note is dropped."""
        meta = job.metadata
        for note in notes:
            if len(self._waiting) >= self._limits.queue:
                self._waiting.popleft()
                self._drop("the queue of events is full")
            name = f"{meta.name}.{secrets.token_hex(8)}"
            now = self._clock.now()
            self._waiting.append(Occurrence(meta.namespace, meta.name, meta.uid, note, now, name))
            self._idle.clear()
            self._wake.set()

    async def run(self) -> None:
        while True:
            while self._waiting:
                await asyncio.sleep(self._bucket.take(self._clock.monotonic()))
                await self._post(self._waiting.popleft())
            self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def flush(self, seconds: float = 2.0) -> None:
        """Wait until all is posted, at most `seconds`; `run` has to be running."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            self._drop("the process ended before they were posted", len(self._waiting))

    # -- inside -------------------------------------------------------------------------------------------

    async def _post(self, seen: Occurrence) -> None:
        for attempt in range(1, self._limits.tries + 1):
            try:
                await self._post_once(seen)
            except Unavailable as error:
                if attempt == self._limits.tries:
                    self._drop(f"the API server cannot be reached ({error})")
                else:
                    await asyncio.sleep(max(error.retry_after or 0.0, self._limits.retry * attempt))
            except ClusterError as error:
                self._drop(f"{type(error).__name__}: {error}")
                return
            else:
                return

    async def _post_once(self, seen: Occurrence) -> None:
        self._forget_old()
        same_reason = self._posted.setdefault((seen.job_uid, seen.note.reason), {})
        posted = same_reason.get(seen.note.message)
        if posted is None and len(same_reason) >= self._limits.distinct:
            posted = max(reversed(same_reason.values()), key=lambda event: event.last)
        if posted is not None and await self._count_up(posted, seen):
            return
        try:
            await self._cluster.create(Kind.EVENT, seen.namespace, self._event(seen))
        except AlreadyExists:
            log.debug("event %s was there already: the reply to its creation had been lost", seen.name)
        same_reason[seen.note.message] = Posted(seen.namespace, seen.name, 1, self._clock.monotonic())

    async def _count_up(self, posted: Posted, seen: Occurrence) -> bool:
        """False when the event is gone (they live for an hour by default)."""
        patch = {
            "count": posted.count + 1,
            "lastTimestamp": _time(seen.at),
            "message": seen.note.message[:MESSAGE_LENGTH],
        }
        try:
            await self._cluster.patch(Kind.EVENT, posted.namespace, posted.name, patch)
        except NotFound:
            return False
        posted.count += 1
        posted.last = self._clock.monotonic()
        return True

    def _event(self, seen: Occurrence) -> Object:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": seen.name, "namespace": seen.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": seen.namespace,
                "name": seen.job,
                "uid": seen.job_uid,
            },
            "type": seen.note.level.value,
            "reason": seen.note.reason,
            "message": seen.note.message[:MESSAGE_LENGTH],
            "count": 1,
            "firstTimestamp": _time(seen.at),
            "lastTimestamp": _time(seen.at),
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance,
        }

    def _forget_old(self) -> None:
        oldest = self._clock.monotonic() - self._limits.same_within
        for key, events in list(self._posted.items()):
            for message in [message for message, event in events.items() if event.last < oldest]:
                del events[message]
            if not events:
                del self._posted[key]

    def _drop(self, why: str, number: int = 1) -> None:
        self.dropped += number
        if number and why not in self._troubles and len(self._troubles) < 100:
            self._troubles.add(why)
            log.warning("events are dropped (told once): %s", why)


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")

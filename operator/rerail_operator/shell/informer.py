"""One informer: list, then watch, for ever; it misses no deletion and never falls silent unnoticed.

Clean end of a watch: reconnect from the last version, no relist. Expired: list again and tell the
difference, deletions included. Silence (no event, no bookmark) for `SILENCE_SECONDS`: reconnect; a server
that accepts the watch again is alive, and one that does not is an error.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from logging import getLogger
from typing import Any, Generic, Protocol, TypeVar, cast

from rerail_operator.shell.cluster import Change, ClusterError, Expired, Unavailable
from rerail_operator.shell.streams import Seen, Selection, Streams, version_number

log = getLogger(__name__)

SILENCE_SECONDS = 70.0
"""The API server sends a bookmark about once a minute, except where nothing has ever happened; a stream that
is silent for longer may be dead."""

BACK_OFF_SECONDS = 0.25
BACK_OFF_CAP_SECONDS = 5.0
BREATH = 256
"""Events after which other tasks get a turn: a burst of thousands must not hold up the Lease."""


class HasUid(Protocol):
    @property
    def uid(self) -> str: ...


Record = TypeVar("Record", bound=HasUid)
Changed = Callable[[Record | None, Record | None], None]
"""Told (before, after) of every difference: None before = new, None after = gone."""


@dataclass(frozen=True, slots=True)
class Reading(Generic[Record]):
    """What an informer reads and what it keeps of it."""

    selection: Selection
    model: type[Any]
    record: Callable[[Any], Record]


class Informer(Generic[Record]):
    """The objects of one selection by UID. All calls from one event loop."""

    def __init__(self, streams: Streams, reading: Reading[Record], changed: Changed[Record]) -> None:
        self._streams = streams
        self._reading = reading
        self._changed = changed
        self._records: dict[str, Record] = {}
        self._noted: dict[str, int] = {}
        self._version = ""
        self._heard = self._refused = time.monotonic()
        self._failures = 0
        self._synced = asyncio.Event()

    @property
    def records(self) -> Mapping[str, Record]:
        return self._records

    @property
    def synced(self) -> bool:
        """True once a complete list has been read."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        await self._synced.wait()

    def age(self) -> float:
        """Seconds since the stream last said anything: an event, a bookmark, a list."""
        return time.monotonic() - self._heard

    def stalled(self) -> float:
        """Seconds since this informer last heard anything or was refused: what is stuck is ours, not the API
        server's. For liveness; an API server that is away is no reason to be killed."""
        return time.monotonic() - max(self._heard, self._refused)

    def note(self, record: Record, resource_version: str) -> None:
        """Take over the reply to a write of ours, unless the stream is already past it."""
        version = version_number(resource_version)
        if version <= max(version_number(self._version), self._noted.get(record.uid, 0)):
            return
        self._noted[record.uid] = version
        self._put(record)

    async def run(self) -> None:
        """Follow the stream until cancelled; every failure of the cluster is waited out."""
        while True:
            try:
                if not self._version:
                    await self._relist()
                await self._follow()
            except Expired:
                log.info("%s: the watch has expired, listing again", self._reading.selection.kind)
                self._version = ""
                await self._back_off(None)
            except ClusterError as error:
                await self._back_off(error)

    async def _relist(self) -> None:
        reading = self._reading
        snapshot = await self._streams.list_as(reading.selection, reading.model, reading.record)
        at = version_number(snapshot.version)
        self._noted = {uid: version for uid, version in self._noted.items() if version > at}
        listed = {record.uid: record for record in snapshot.objects}
        # Deletions first: an object of the same name that has come since must find its place free.
        for uid in [uid for uid in self._records if uid not in listed and uid not in self._noted]:
            self._drop(uid)
        for uid, record in listed.items():
            if uid not in self._noted:
                self._put(record)
        self._version = snapshot.version
        self._alive()
        self._synced.set()

    async def _follow(self) -> None:
        reading, began, turns = self._reading, time.monotonic(), 0
        watch = self._streams.watch_as(reading.selection, self._version, reading.model, reading.record)
        # Both adapters' watches are generators; closing them closes the connection.
        async with aclosing(cast(Any, watch)) as events:
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(SILENCE_SECONDS) as silence:
                    async for seen in events:
                        self._take(seen)
                        turns += 1
                        silence.reschedule(loop.time() + SILENCE_SECONDS)
                        if turns % BREATH == 0:
                            await asyncio.sleep(0)
            except TimeoutError:
                log.debug("%s: silent, following anew", self._reading.selection.kind)
        if time.monotonic() - began < BACK_OFF_SECONDS:
            # A server that ends every watch at once must not be asked in a tight loop.
            await asyncio.sleep(BACK_OFF_SECONDS)

    def _take(self, seen: Seen[Record]) -> None:
        self._alive()
        self._version = seen.version
        record = seen.object
        if record is None:
            return
        if self._noted and (noted := self._noted.get(record.uid)) is not None:
            if version_number(seen.version) < noted:
                return  # we hold a later reply of the server
            del self._noted[record.uid]
        if seen.change is Change.DELETED:
            self._drop(record.uid)
        else:
            self._put(record)

    def _put(self, record: Record) -> None:
        before = self._records.get(record.uid)
        if before == record:
            return
        self._records[record.uid] = record
        self._changed(before, record)

    def _drop(self, uid: str) -> None:
        before = self._records.pop(uid, None)
        if before is not None:
            self._changed(before, None)

    def _alive(self) -> None:
        self._heard = time.monotonic()
        self._failures = 0

    async def _back_off(self, error: ClusterError | None) -> None:
        self._failures += 1
        self._refused = time.monotonic()
        delay = min(BACK_OFF_CAP_SECONDS, BACK_OFF_SECONDS * 2 ** min(self._failures - 1, 8))
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        if isinstance(error, Unavailable) and error.retry_after:
            delay = max(delay, error.retry_after)
        if error is not None and self._failures in (1, 10, 100):
            log.warning("%s: stream interrupted: %s", self._reading.selection.kind, error)
        await asyncio.sleep(delay)

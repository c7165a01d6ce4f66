"""An operator's hold on the world that ends at a chosen write: just before it takes effect, or just after.

Whatever the operator had begun beside that write is cut off with it, as SIGKILL does: no call of a dead operator
takes effect, and none ever returns to it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn, cast

from rerail_operator.shell.cluster import Kind, Listing, Object, Unavailable, WatchEvent
from rerail_operator.shell.memory import MemoryCluster


class When(StrEnum):
    """On which side of the write the operator ends."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Write:
    """One thing that an operator does to the world: a write to the API server, or an order to an agent."""

    verb: str
    kind: str
    body: Object
    before: Object | None = None  # the job as the server held it, for a status write


@dataclass(slots=True)
class Fate:
    """Counts writes over all lives of the operator, and ends one of them at each chosen one."""

    ends: Mapping[int, When] = field(default_factory=dict)
    """Numbers of writes, counted from 1, and on which side of each an operator dies."""
    writes: list[Write] = field(default_factory=list)

    def strikes(self, write: Write) -> When | None:
        """Count this write; whether it is somebody's last."""
        self.writes.append(write)
        return self.ends.get(len(self.writes))


class Outage:
    """An API server that is away for a while: nothing is answered, and what was asked may have happened or not."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self.now = False
        self._asked = 0

    def begin(self) -> None:
        self.now = True
        self._cluster.end_watches(Unavailable("the connection was lost"))

    def end(self) -> None:
        self.now = False
        self._cluster.end_watches()

    def loses_the_call(self) -> bool:
        """Of the calls that are not answered every third still takes effect."""
        self._asked += 1
        return self._asked % 3 != 0


class MortalCluster:
    """The Cluster port of one operator's life."""

    def __init__(self, cluster: MemoryCluster, fate: Fate, outage: Outage) -> None:
        self._cluster = cluster
        self._fate = fate
        self._outage = outage
        self.dead = False
        self.death = asyncio.Event()

    def die(self) -> None:
        """From here on nothing that this operator does takes effect."""
        self.dead = True
        self.death.set()

    async def create(self, kind: Kind, namespace: str, obj: Object, *, dry_run: bool = False) -> Object:
        write = Write("dry run" if dry_run else "create", kind.value, obj)
        return await self._written(write, self._cluster.create(kind, namespace, obj, dry_run=dry_run))

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return await self._read(self._cluster.get(kind, namespace, name))

    async def replace(self, kind: Kind, namespace: str, obj: Object, *, status: bool = False) -> Object:
        before = await self._cluster.get(kind, namespace, obj["metadata"]["name"]) if status else None
        write = Write("status" if status else "replace", kind.value, obj, before)
        return await self._written(write, self._cluster.replace(kind, namespace, obj, status=status))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        return await self._written(
            Write("patch", kind.value, patch), self._cluster.patch(kind, namespace, name, patch)
        )

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        call = self._cluster.delete(kind, namespace, name, uid=uid, grace_seconds=grace_seconds)
        await self._written(Write("delete", kind.value, {"name": name}), call)

    async def delete_collection(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], *, grace_seconds: int | None = None
    ) -> None:
        call = self._cluster.delete_collection(kind, namespace, labels, grace_seconds=grace_seconds)
        await self._written(Write("delete collection", kind.value, dict(labels)), call)

    async def list(self, kind: Kind, labels: str = "", fields: str = "") -> Listing:
        return await self._read(self._cluster.list(kind, labels, fields))

    async def watch(
        self, kind: Kind, resource_version: str, labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        await self._read(asyncio.sleep(0))
        async with aclosing(cast(Any, self._cluster.watch(kind, resource_version, labels, fields))) as events:
            async for event in events:
                if self.dead:
                    await _for_ever()
                yield event

    def ordered(self, write: Write, send: Callable[[], bool]) -> bool:
        """An order to one agent; it needs no API server and returns at once."""
        if self.dead:
            return False
        strikes = self._fate.strikes(write)
        if strikes is When.BEFORE:
            self.die()
            return False
        told = send()
        if strikes is When.AFTER:
            self.die()
        return told

    async def _read(self, call: Coroutine[Any, Any, Any]) -> Any:
        if self.dead or self._outage.now:
            call.close()
            await self._no_answer()
        found = await call
        if self.dead:
            await _for_ever()
        return found

    async def _written(self, write: Write, call: Coroutine[Any, Any, Any]) -> Any:
        strikes = None if self.dead else self._fate.strikes(write)
        if strikes is When.BEFORE:
            self.die()
        if self.dead or (self._outage.now and self._outage.loses_the_call()):
            call.close()
            await self._no_answer()
        try:
            done = await call
        finally:
            if strikes is When.AFTER:  # also where the server has refused it: nobody hears the refusal
                self.die()
        if self.dead or self._outage.now:
            await self._no_answer()
        return done

    async def _no_answer(self) -> NoReturn:
        if self.dead:
            await _for_ever()
        await asyncio.sleep(0.05)
        raise Unavailable("503: the server is currently unable to handle the request")


async def _for_ever() -> NoReturn:
    """What a call of a dead process returns."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody ends this wait but a cancellation")

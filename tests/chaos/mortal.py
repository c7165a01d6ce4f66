"""An operator's hold on the world that ends at a chosen write: just before it takes effect, or just after.

Whatever the operator had begun beside that write is cut off with it, as SIGKILL does: no call of a dead operator
takes effect, and none ever returns to it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn

from rerail_operator.shell.cluster import Kind, Listing, Object, WatchEvent
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
    """Counts writes over all lives of the operator, and ends one of them at the chosen one."""

    at: int | None = None
    """The number of the write, counted from 1; None: nobody dies."""
    when: When = When.BEFORE
    writes: list[Write] = field(default_factory=list)
    on_death: Callable[[], None] = lambda: None

    def strikes(self, write: Write) -> bool:
        """Count this write; whether it is the one."""
        self.writes.append(write)
        return self.at == len(self.writes)


class MortalCluster:
    """The Cluster port of one operator's life."""

    def __init__(self, cluster: MemoryCluster, fate: Fate) -> None:
        self._cluster = cluster
        self._fate = fate
        self.dead = False

    def die(self) -> None:
        """From here on nothing that this operator does takes effect."""
        if not self.dead:
            self.dead = True
            self._fate.on_death()

    async def create(self, kind: Kind, namespace: str, obj: Object, *, dry_run: bool = False) -> Object:
        write = Write("dry run" if dry_run else "create", kind.value, obj)
        return await self._written(write, self._cluster.create(kind, namespace, obj, dry_run=dry_run))

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return await self._read(self._cluster.get(kind, namespace, name))

    async def replace(self, kind: Kind, namespace: str, obj: Object, *, status: bool = False) -> Object:
        before = await self._cluster.get(kind, namespace, obj["metadata"]["name"])
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
        async for event in self._cluster.watch(kind, resource_version, labels, fields):
            if self.dead:
                await _for_ever()
            yield event

    def ordered(self, write: Write, send: Callable[[], bool]) -> bool:
        """An order to one agent; it needs no API server and returns at once."""
        if self.dead:
            return False
        strikes = self._fate.strikes(write)
        if strikes and self._fate.when is When.BEFORE:
            self.die()
            return False
        told = send()
        if strikes:
            self.die()
        return told

    async def _read(self, call: Coroutine[Any, Any, Any]) -> Any:
        if self.dead:
            call.close()
            await _for_ever()
        found = await call
        if self.dead:
            await _for_ever()
        return found

    async def _written(self, write: Write, call: Coroutine[Any, Any, Any]) -> Any:
        strikes = not self.dead and self._fate.strikes(write)
        if strikes and self._fate.when is When.BEFORE:
            self.die()
        if self.dead:
            call.close()
            await _for_ever()
        done = await call
        if strikes:
            self.die()
        if self.dead:
            await _for_ever()
        return done


async def _for_ever() -> NoReturn:
    """What a call of a dead process returns."""
    await asyncio.get_running_loop().create_future()
    raise AssertionError("nobody ends this wait but a cancellation")

"""An in-memory cluster behind the Cluster port: for `rerail run`, where processes are pods, and for tests.

It behaves like an API server with a scheduler for pinned pods and a garbage collector for what a deleted
job owned; the contract suite holds it to a real one. A kubelet is whoever watches pods and calls
`set_pod_status` and `confirm_deleted`. One event loop only.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

from rerail_operator.shell.clock import Clock
from rerail_operator.shell.cluster import (
    Change,
    ClusterError,
    Conflict,
    Kind,
    Listing,
    NotFound,
    Object,
    WatchEvent,
)
from rerail_operator.shell.memory_faults import FaultKind, Faults
from rerail_operator.shell.memory_server import MemoryOptions, MemoryServer
from rerail_operator.shell.memory_store import copy_of
from rerail_operator.shell.memory_writes import (
    event_of,
)

Result = TypeVar("Result")

__all__ = ["MemoryCluster", "MemoryOptions"]

BOOKMARK_SECONDS = 30.0


class MemoryCluster:
    """The Cluster port in memory, plus what a kubelet and a test need (below the port's methods)."""

    def __init__(self, clock: Clock, options: MemoryOptions | None = None) -> None:
        self._server = MemoryServer(clock, options or MemoryOptions())
        self._watch_end: ClusterError | None = None
        self._watch_epoch = 0
        self.faults = Faults()

    # The port.

    async def create(self, kind: Kind, namespace: str, obj: Object, *, dry_run: bool = False) -> Object:
        return await self._served("create", kind, lambda: self._server.create(kind, namespace, obj, dry_run))

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return await self._served("get", kind, lambda: self._server.stored(kind, namespace, name))

    async def replace(self, kind: Kind, namespace: str, obj: Object, *, status: bool = False) -> Object:
        return await self._served("replace", kind, lambda: self._server.replace(kind, namespace, obj, status))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        return await self._served("patch", kind, lambda: self._server.patch(kind, namespace, name, patch))

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        def work() -> None:
            stored = self._server.stored(kind, namespace, name)
            if uid is not None and stored["metadata"]["uid"] != uid:
                raise NotFound(f"{kind} {namespace}/{name} has another UID than {uid}")
            self._server.delete(kind, stored, grace_seconds)

        await self._served("delete", kind, work)

    async def delete_collection(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], *, grace_seconds: int | None = None
    ) -> None:
        selector = ",".join(f"{key}={value}" for key, value in labels.items())

        def work() -> None:
            for stored in self._server.store.select(kind, selector):
                if stored["metadata"].get("namespace", "") == namespace:
                    self._server.delete(kind, stored, grace_seconds)

        await self._served("delete_collection", kind, work)

    async def list(self, kind: Kind, labels: str = "", fields: str = "") -> Listing:
        def work() -> Listing:
            found = self._server.store.select(kind, labels, fields)
            return Listing([copy_of(obj) for obj in found], str(self._server.store.version))

        return await self._served("list", kind, work)

    async def watch(
        self, kind: Kind, resource_version: str, labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        await self._served("watch", kind, lambda: None)
        at, epoch, written = int(resource_version or self._server.store.version), self._watch_epoch, None
        try:
            written = self._server.store.subscribe()
            loop = asyncio.get_running_loop()
            said = loop.time()
            while True:
                written.clear()
                if epoch != self._watch_epoch:
                    if self._watch_end is not None:
                        raise self._watch_end
                    return
                for entry in self._server.since(at):
                    at = entry.version
                    if entry.kind is kind and (seen := event_of(entry, labels, fields)):
                        said = loop.time()
                        yield seen
                # Writes of other kinds wake this watch too; its reader waits for a word of its own.
                if not await _set_within(written, said + BOOKMARK_SECONDS - loop.time()):
                    said = loop.time()
                    yield WatchEvent(Change.BOOKMARK, {"metadata": {"resourceVersion": str(at)}})
        finally:
            if written is not None:
                self._server.store.unsubscribe(written)

    # What a kubelet, a node controller and a test do.

    def set_pod_status(self, uid: str, status: Object) -> None:
        """Write a pod's status as its kubelet does: keys replaced, conditions merged by type.

        Raises NotFound when the pod is gone.
        """
        self._server.set_status(Kind.POD, self._server.by_uid(Kind.POD, uid), status)

    def set_node_status(self, name: str, status: Object) -> None:
        """Write a node's status in the same way. Raises NotFound."""
        self._server.set_status(Kind.NODE, self._server.stored(Kind.NODE, "", name), status)
        self._server.schedule()

    def confirm_deleted(self, pod_uid: str) -> None:
        """The kubelet says that nothing of a deleted pod runs any more. Gone already: nothing to do.

        Raises Conflict for a pod that nobody has deleted.
        """
        try:
            pod = self._server.by_uid(Kind.POD, pod_uid)
        except NotFound:
            return
        if "deletionTimestamp" not in pod["metadata"]:
            raise Conflict(f"pod {pod['metadata']['name']} is not being deleted")
        self._server.remove(Kind.POD, pod)

    def restore(self, kind: Kind, saved: Object) -> None:
        """Put an object back as an earlier cluster held it: UID, times and status included."""
        self._server.store.put(kind, copy_of(saved))

    def end_watches(self, error: ClusterError | None = None) -> None:
        """End all open watches: cleanly, or with `error`."""
        self._watch_end = error
        self._watch_epoch += 1
        self._server.store.wake()

    def compact(self) -> None:
        """Forget the history: every watch that is behind has expired."""
        self._server.store.forget()

    async def _served(self, verb: str, kind: Kind, work: Callable[[], Result]) -> Result:
        await asyncio.sleep(0)  # a real call lets others run, too
        fault = self.faults.take(verb, kind)
        if fault and fault.what is not FaultKind.LOST_REPLY:
            raise fault.error()
        result = work()
        if fault:
            raise fault.error()
        return copy_of(result) if isinstance(result, dict) else result


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    # Not wait_for: up to Python 3.11 it swallows a cancellation that comes together with the event.
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True

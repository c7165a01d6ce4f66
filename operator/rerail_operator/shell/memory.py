"""An in-memory cluster behind the Cluster port: for `rerail run`, where processes are pods, and for tests.

It behaves like an API server with a scheduler for pinned pods and a garbage collector for what a deleted
job owned; the contract suite holds it to a real one. A kubelet is whoever watches pods and calls
`set_pod_status` and `confirm_deleted`. One event loop only.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from rerail_api.base import rfc3339

from rerail_operator.shell.clock import Clock
from rerail_operator.shell.cluster import (
    AlreadyExists,
    Change,
    ClusterError,
    Conflict,
    Expired,
    Kind,
    Listing,
    NotFound,
    Object,
    Rejected,
    Unavailable,
    WatchEvent,
)
from rerail_operator.shell.memory_faults import FaultKind, Faults
from rerail_operator.shell.memory_scheduler import pinned_node, refusal
from rerail_operator.shell.memory_schema import admit_job, check_job, refuse_unknown, without_nulls
from rerail_operator.shell.memory_store import Entry, Store, copy_of, place_of
from rerail_operator.shell.memory_writes import (
    check_preconditions,
    event_of,
    merged,
    scheduled_condition,
    why_unbound,
    with_status_of,
)

Result = TypeVar("Result")

BOOKMARK_SECONDS = 30.0
DEFAULT_GRACE_SECONDS = 30
SERVER_OWNED = (
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "resourceVersion",
)
TERMINAL_PHASES = ("Succeeded", "Failed")


def _new_uid() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """How an in-memory cluster departs from a real one."""

    ignore_resources: bool = False  # bind a pinned pod even where its requests do not fit
    history: int = 20_000  # writes that a watch may be behind
    new_uid: Callable[[], str] = _new_uid


class MemoryCluster:
    """The Cluster port in memory, plus what a kubelet and a test need (below the port's methods)."""

    def __init__(self, clock: Clock, options: MemoryOptions | None = None) -> None:
        self._clock = clock
        self._options = options or MemoryOptions()
        self._store = Store(self._options.history)
        self._watch_end: ClusterError | None = None
        self._watch_epoch = 0
        self.faults = Faults()

    # The port.

    async def create(self, kind: Kind, namespace: str, obj: Object, *, dry_run: bool = False) -> Object:
        return await self._served("create", kind, lambda: self._create(kind, namespace, obj, dry_run))

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        return await self._served("get", kind, lambda: self._stored(kind, namespace, name))

    async def replace(self, kind: Kind, namespace: str, obj: Object, *, status: bool = False) -> Object:
        return await self._served("replace", kind, lambda: self._replace(kind, namespace, obj, status))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        return await self._served("patch", kind, lambda: self._patch(kind, namespace, name, patch))

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
            stored = self._stored(kind, namespace, name)
            if uid is not None and stored["metadata"]["uid"] != uid:
                raise NotFound(f"{kind} {namespace}/{name} has another UID than {uid}")
            self._delete(kind, stored, grace_seconds)

        await self._served("delete", kind, work)

    async def delete_collection(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], *, grace_seconds: int | None = None
    ) -> None:
        selector = ",".join(f"{key}={value}" for key, value in labels.items())

        def work() -> None:
            for stored in self._store.select(kind, selector):
                if stored["metadata"].get("namespace", "") == namespace:
                    self._delete(kind, stored, grace_seconds)

        await self._served("delete_collection", kind, work)

    async def list(self, kind: Kind, labels: str = "", fields: str = "") -> Listing:
        def work() -> Listing:
            found = self._store.select(kind, labels, fields)
            return Listing([copy_of(obj) for obj in found], str(self._store.version))

        return await self._served("list", kind, work)

    async def watch(
        self, kind: Kind, resource_version: str, labels: str = "", fields: str = ""
    ) -> AsyncIterator[WatchEvent]:
        await self._served("watch", kind, lambda: None)
        at, epoch, written = int(resource_version or self._store.version), self._watch_epoch, None
        try:
            written = self._store.subscribe()
            while True:
                written.clear()
                if epoch != self._watch_epoch:
                    if self._watch_end is not None:
                        raise self._watch_end
                    return
                for entry in self._since(at):
                    at = entry.version
                    if entry.kind is kind and (seen := event_of(entry, labels, fields)):
                        yield seen
                if not await _set_within(written, BOOKMARK_SECONDS):
                    yield WatchEvent(Change.BOOKMARK, {"metadata": {"resourceVersion": str(at)}})
        finally:
            if written is not None:
                self._store.unsubscribe(written)

    # What a kubelet, a node controller and a test do.

    def set_pod_status(self, uid: str, status: Object) -> None:
        """Write a pod's status as its kubelet does: keys replaced, conditions merged by type.

        Raises NotFound when the pod is gone.
        """
        self._set_status(Kind.POD, self._by_uid(Kind.POD, uid), status)

    def set_node_status(self, name: str, status: Object) -> None:
        """Write a node's status in the same way. Raises NotFound."""
        self._set_status(Kind.NODE, self._stored(Kind.NODE, "", name), status)
        self._schedule()

    def confirm_deleted(self, pod_uid: str) -> None:
        """The kubelet says that nothing of a deleted pod runs any more. Gone already: nothing to do.

        Raises Conflict for a pod that nobody has deleted.
        """
        try:
            pod = self._by_uid(Kind.POD, pod_uid)
        except NotFound:
            return
        if "deletionTimestamp" not in pod["metadata"]:
            raise Conflict(f"pod {pod['metadata']['name']} is not being deleted")
        self._remove(Kind.POD, pod)

    def restore(self, kind: Kind, saved: Object) -> None:
        """Put an object back as an earlier cluster held it: UID, times and status included."""
        self._store.put(kind, copy_of(saved))

    def end_watches(self, error: ClusterError | None = None) -> None:
        """End all open watches: cleanly, or with `error`."""
        self._watch_end = error
        self._watch_epoch += 1
        self._store.wake()

    def compact(self) -> None:
        """Forget the history: every watch that is behind has expired."""
        self._store.forget()

    # How it is done: all of it synchronous, so that a call is atomic.

    async def _served(self, verb: str, kind: Kind, work: Callable[[], Result]) -> Result:
        await asyncio.sleep(0)  # a real call lets others run, too
        fault = self.faults.take(verb, kind)
        if fault and fault.what is not FaultKind.LOST_REPLY:
            raise fault.error()
        result = work()
        if fault:
            raise fault.error()
        return copy_of(result) if isinstance(result, dict) else result

    def _stored(self, kind: Kind, namespace: str, name: str) -> Object:
        place = ("" if kind is Kind.NODE else namespace, name)
        if (found := self._store.get(kind, place)) is None:
            raise NotFound(f'{kind} "{name}" not found')
        return found

    def _by_uid(self, kind: Kind, uid: str) -> Object:
        found = self._store.find(uid)
        if found is None or found[0] is not kind:
            raise NotFound(f"no {kind} has the UID {uid}")
        return found[1]

    def _create(self, kind: Kind, namespace: str, given: Object, dry_run: bool) -> Object:
        obj: Object = copy_of(given)
        refuse_unknown(kind, obj)
        metadata = self._new_metadata(kind, namespace, obj)
        if kind in (Kind.JOB, Kind.POD):
            obj.pop("status", None)  # a subresource: only its own writes change it
        if kind is Kind.JOB:
            metadata["generation"] = 1
            check_job(None, admit_job(obj))
        else:
            obj = without_nulls(obj)
        if kind is Kind.POD:
            obj.setdefault("spec", {}).setdefault("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
            obj["status"] = {"phase": "Pending"}
        if self._store.get(kind, place_of(obj)) is not None:
            raise AlreadyExists(f'{kind} "{metadata["name"]}" already exists')
        if dry_run:
            return obj
        stored = self._store.put(kind, obj)
        if kind is Kind.POD:
            self._bind(stored)
        elif kind is Kind.NODE:
            self._schedule()
        return stored

    def _new_metadata(self, kind: Kind, namespace: str, obj: Object) -> Object:
        metadata: Object = obj.setdefault("metadata", {})
        if kind is Kind.NODE:
            metadata.pop("namespace", None)
        elif metadata.setdefault("namespace", namespace) != namespace:
            raise Rejected(f"the namespace of the object does not match the request: {namespace}")
        uid = self._options.new_uid()
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uid.replace("-", "")[:5]
        if not metadata.get("name"):
            raise Rejected(f"{kind} is invalid: metadata.name: name or generateName is required")
        metadata |= {"uid": uid, "creationTimestamp": self._now()}
        metadata.pop("resourceVersion", None)
        metadata.pop("deletionTimestamp", None)
        return metadata

    def _replace(self, kind: Kind, namespace: str, given: Object, status: bool) -> Object:
        obj: Object = copy_of(given)
        metadata = obj["metadata"]
        stored = self._stored(kind, namespace, metadata["name"])
        if not metadata.get("resourceVersion") and kind in (Kind.JOB, Kind.LEASE):
            raise Rejected("metadata.resourceVersion: must be specified for an update")
        check_preconditions(stored, metadata)
        if status:
            return self._write(kind, stored, {**copy_of(stored), "status": obj.get("status", {})})
        return self._write(kind, stored, with_status_of(stored, obj, kind))

    def _patch(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        stored = self._stored(kind, namespace, name)
        check_preconditions(stored, patch.get("metadata") or {})
        after = merged(copy_of(stored), copy_of(patch))
        return self._write(kind, stored, with_status_of(stored, after, kind))

    def _write(self, kind: Kind, stored: Object, obj: Object) -> Object:
        """Put the next version of a stored object; a write that changes nothing makes no version."""
        metadata = obj["metadata"] = dict(obj["metadata"])
        metadata |= {key: stored["metadata"][key] for key in SERVER_OWNED if key in stored["metadata"]}
        if kind is Kind.JOB:
            admit_job(obj)
            if obj.get("spec") != stored.get("spec"):
                metadata["generation"] += 1
            check_job(stored, obj)
        elif kind is Kind.POD and obj.get("spec") != stored.get("spec"):
            raise Rejected(f'Pod "{metadata["name"]}" is invalid: spec: pod updates may not change it')
        if obj == stored:
            return stored
        written = self._store.put(kind, obj)
        if "deletionTimestamp" in metadata and not metadata.get("finalizers") and kind is not Kind.POD:
            self._remove(kind, written)
        elif kind is Kind.NODE:
            self._schedule()
        return written

    def _set_status(self, kind: Kind, stored: Object, status: Object) -> None:
        obj: Object = copy_of(stored)
        new: Object = copy_of(status)
        old = obj.get("status") or {}
        if "conditions" in new:
            by_type = {entry["type"]: entry for entry in [*old.get("conditions", []), *new["conditions"]]}
            new["conditions"] = list(by_type.values())
        obj["status"] = without_nulls({**old, **new})
        if obj != stored:
            self._store.put(kind, obj)
        if kind is Kind.POD and new.get("phase") in TERMINAL_PHASES:
            self._schedule()

    def _delete(self, kind: Kind, stored: Object, grace_seconds: int | None) -> None:
        grace = self._grace(kind, stored, grace_seconds)
        if not grace and not stored["metadata"].get("finalizers"):
            self._remove(kind, stored)
            return
        obj: Object = copy_of(stored)
        metadata = obj["metadata"]
        before = metadata.get("deletionGracePeriodSeconds")
        if "deletionTimestamp" in metadata and (before is None or before <= grace):
            return  # a second delete can only shorten the grace
        metadata["deletionTimestamp"] = rfc3339(self._clock.now() + timedelta(seconds=grace))
        metadata["deletionGracePeriodSeconds"] = grace
        self._store.put(kind, obj)

    def _grace(self, kind: Kind, stored: Object, asked: int | None) -> int:
        if kind is not Kind.POD:
            return 0
        # No kubelet knows an unbound pod, and nothing of an ended one runs: nobody would confirm.
        if not stored["spec"].get("nodeName") or stored["status"].get("phase") in TERMINAL_PHASES:
            return 0
        own: int = stored["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
        return own if asked is None else asked

    def _remove(self, kind: Kind, stored: Object) -> None:
        self._store.remove(kind, stored)
        if kind in (Kind.POD, Kind.NODE):
            self._schedule()
        if kind is Kind.JOB:
            self._collect(stored["metadata"]["uid"])

    def _collect(self, owner_uid: str) -> None:
        """Delete what the gone object owned, as the garbage collector does in the background."""
        for kind, obj in self._store.everything():
            owners = obj["metadata"].get("ownerReferences") or ()
            if owners and all(owner["uid"] == owner_uid for owner in owners):
                self._delete(kind, obj, None)

    def _schedule(self) -> None:
        """Try again to bind every pod that waits."""
        for pod in self._store.select(Kind.POD, fields="spec.nodeName=,status.phase=Pending"):
            self._bind(pod)

    def _bind(self, pod: Object) -> None:
        """Bind the pod to the node it is pinned to; or write down why not, once per reason."""
        name = pinned_node(pod)
        if not name or "deletionTimestamp" in pod["metadata"]:
            return
        node = self._store.get(Kind.NODE, ("", name))
        others = (
            []
            if self._options.ignore_resources
            else self._store.select(
                Kind.POD, fields=f"spec.nodeName={name},status.phase!=Succeeded,status.phase!=Failed"
            )
        )
        why = refusal(pod, node, others, self._options.ignore_resources)
        if why and why == why_unbound(pod):
            return
        bound: Object = copy_of(pod)
        if not why:
            bound["spec"]["nodeName"] = name
        bound["status"]["conditions"] = [scheduled_condition(why, self._now())]
        self._store.put(Kind.POD, bound)

    def _since(self, at: int) -> Sequence[Entry]:
        if at < self._store.oldest:
            raise Expired(f"too old resource version: {at} ({self._store.oldest})")
        if at > self._store.version:
            raise Unavailable(f"too large resource version: {at}, current: {self._store.version}", 1.0)
        return self._store.after(at)

    def _now(self) -> str:
        return rfc3339(self._clock.now().replace(microsecond=0))


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True

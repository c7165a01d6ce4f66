"""The in-memory API server: what each write means, its scheduler for pinned pods, its garbage collector.

All of it is synchronous, so that a call is atomic; `memory.MemoryCluster` puts the port in front of it.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from rerail_api.base import rfc3339
from rerail_operator.shell.clock import Clock
from rerail_operator.shell.cluster import (
    AlreadyExists,
    Expired,
    Kind,
    NotFound,
    Object,
    Rejected,
    Unavailable,
)
from rerail_operator.shell.memory_scheduler import pinned_node, refusal
from rerail_operator.shell.memory_schema import admit_job, check_job, refuse_unknown, without_nulls
from rerail_operator.shell.memory_store import Entry, Store, copy_of, place_of
from rerail_operator.shell.memory_writes import (
    check_preconditions,
    merged,
    scheduled_condition,
    why_unbound,
    with_status_of,
)

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


class MemoryServer:
    """Objects in, objects out, or a ClusterError. What it returns is the stored object itself: copy it."""

    def __init__(self, clock: Clock, options: MemoryOptions) -> None:
        self._clock = clock
        self._options = options
        self.store = Store(options.history)

    def stored(self, kind: Kind, namespace: str, name: str) -> Object:
        place = ("" if kind is Kind.NODE else namespace, name)
        if (found := self.store.get(kind, place)) is None:
            raise NotFound(f'{kind} "{name}" not found')
        return found

    def by_uid(self, kind: Kind, uid: str) -> Object:
        found = self.store.find(uid)
        if found is None or found[0] is not kind:
            raise NotFound(f"no {kind} has the UID {uid}")
        return found[1]

    def create(self, kind: Kind, namespace: str, given: Object, dry_run: bool) -> Object:
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
        if self.store.get(kind, place_of(obj)) is not None:
            raise AlreadyExists(f'{kind} "{metadata["name"]}" already exists')
        if dry_run:
            return obj
        stored = self.store.put(kind, obj)
        if kind is Kind.POD:
            self._bind(stored)
        elif kind is Kind.NODE:
            self.schedule()
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

    def replace(self, kind: Kind, namespace: str, given: Object, status: bool) -> Object:
        obj: Object = copy_of(given)
        metadata = obj["metadata"]
        stored = self.stored(kind, namespace, metadata["name"])
        if not metadata.get("resourceVersion") and kind in (Kind.JOB, Kind.LEASE):
            raise Rejected("metadata.resourceVersion: must be specified for an update")
        check_preconditions(stored, metadata)
        if status:
            return self._write(kind, stored, {**copy_of(stored), "status": obj.get("status", {})})
        return self._write(kind, stored, with_status_of(stored, obj, kind))

    def patch(self, kind: Kind, namespace: str, name: str, patch: Object) -> Object:
        stored = self.stored(kind, namespace, name)
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
        written = self.store.put(kind, obj)
        if "deletionTimestamp" in metadata and not metadata.get("finalizers") and kind is not Kind.POD:
            self.remove(kind, written)
        elif kind is Kind.NODE:
            self.schedule()
        return written

    def set_status(self, kind: Kind, stored: Object, status: Object) -> None:
        obj: Object = copy_of(stored)
        new: Object = copy_of(status)
        old = obj.get("status") or {}
        if "conditions" in new:
            by_type = {entry["type"]: entry for entry in [*old.get("conditions", []), *new["conditions"]]}
            new["conditions"] = list(by_type.values())
        obj["status"] = without_nulls({**old, **new})
        if obj != stored:
            self.store.put(kind, obj)
        if kind is Kind.POD and new.get("phase") in TERMINAL_PHASES:
            self.schedule()

    def delete(self, kind: Kind, stored: Object, grace_seconds: int | None) -> None:
        current = self.store.get(kind, place_of(stored))
        if current is None or current["metadata"]["uid"] != stored["metadata"]["uid"]:
            return  # an earlier deletion of the same collection took it along
        stored = current
        grace = self._grace(kind, stored, grace_seconds)
        if not grace and not stored["metadata"].get("finalizers"):
            self.remove(kind, stored)
            return
        obj: Object = copy_of(stored)
        metadata = obj["metadata"]
        before = metadata.get("deletionGracePeriodSeconds")
        if "deletionTimestamp" in metadata and (before is None or before <= grace):
            return  # a second delete can only shorten the grace
        metadata["deletionTimestamp"] = rfc3339(self._clock.now() + timedelta(seconds=grace))
        metadata["deletionGracePeriodSeconds"] = grace
        self.store.put(kind, obj)

    def _grace(self, kind: Kind, stored: Object, asked: int | None) -> int:
        if kind is not Kind.POD:
            return 0
        # No kubelet knows an unbound pod, and nothing of an ended one runs: nobody would confirm.
        if not stored["spec"].get("nodeName") or stored["status"].get("phase") in TERMINAL_PHASES:
            return 0
        own: int = stored["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
        return own if asked is None else asked

    def remove(self, kind: Kind, stored: Object) -> None:
        self.store.remove(kind, stored)
        if kind in (Kind.POD, Kind.NODE):
            self.schedule()
        if kind is Kind.JOB:
            self._collect(stored["metadata"]["uid"])

    def _collect(self, owner_uid: str) -> None:
        """Delete what the gone object owned, as the garbage collector does in the background."""
        for kind, obj in self.store.everything():
            owners = obj["metadata"].get("ownerReferences") or ()
            if owners and all(owner["uid"] == owner_uid for owner in owners):
                self.delete(kind, obj, None)

    def schedule(self) -> None:
        """Try again to bind every pod that waits."""
        for pod in self.store.select(Kind.POD, fields="spec.nodeName=,status.phase=Pending"):
            self._bind(pod)

    def _bind(self, pod: Object) -> None:
        """Bind the pod to the node it is pinned to; or write down why not, once per reason."""
        name = pinned_node(pod)
        if not name or "deletionTimestamp" in pod["metadata"]:
            return
        node = self.store.get(Kind.NODE, ("", name))
        others = (
            []
            if self._options.ignore_resources
            else self.store.select(
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
        self.store.put(Kind.POD, bound)

    def since(self, at: int) -> Sequence[Entry]:
        if at < self.store.oldest:
            raise Expired(f"too old resource version: {at} ({self.store.oldest})")
        if at > self.store.version:
            raise Unavailable(f"too large resource version: {at}, current: {self.store.version}", 1.0)
        return self.store.after(at)

    def _now(self) -> str:
        return rfc3339(self._clock.now().replace(microsecond=0))

"""What the in-memory cluster's writes mean: preconditions, merge patch, subresources, events. All pure."""

from typing import Any

from rerail_operator.shell.cluster import Change, Conflict, Kind, Object, WatchEvent
from rerail_operator.shell.memory_selectors import matches
from rerail_operator.shell.memory_store import Entry, copy_of


def check_preconditions(stored: Object, given: Object) -> None:
    for key in ("uid", "resourceVersion"):
        if given.get(key) and given[key] != stored["metadata"][key]:
            name = stored["metadata"]["name"]
            raise Conflict(f'"{name}" has changed: {key} is {stored["metadata"][key]}, not {given[key]}')


def with_status_of(stored: Object, obj: Object, kind: Kind) -> Object:
    """Main writes leave the status alone where it is a subresource."""
    if kind in (Kind.JOB, Kind.POD, Kind.NODE):
        obj = {key: value for key, value in obj.items() if key != "status"}
        if "status" in stored:
            obj["status"] = copy_of(stored["status"])
    return obj


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def event_of(entry: Entry, labels: str, fields: str) -> WatchEvent | None:
    """What a watch with these selectors sees of one write."""
    was = entry.before is not None and matches(entry.before, labels, fields)
    now = entry.after is not None and matches(entry.after, labels, fields)
    if now:
        return WatchEvent(Change.MODIFIED if was else Change.ADDED, copy_of(entry.after))
    if not was:
        return None
    gone: Object = copy_of(entry.before)
    gone["metadata"]["resourceVersion"] = str(entry.version)
    return WatchEvent(Change.DELETED, gone)


def scheduled_condition(why: str, now: str) -> Object:
    condition = {"type": "PodScheduled", "status": "False" if why else "True", "lastTransitionTime": now}
    return condition | ({"reason": "Unschedulable", "message": why} if why else {})


def why_unbound(pod: Object) -> str:
    conditions = pod["status"].get("conditions") or ()
    return next((entry.get("message", "") for entry in conditions if entry["type"] == "PodScheduled"), "")

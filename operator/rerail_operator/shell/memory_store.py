"""Objects with one global resourceVersion and the history that watches replay. Knows no Kubernetes rules."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from rerail_operator.shell.cluster import Kind, Object
from rerail_operator.shell.memory_selectors import matches

Place = tuple[str, str]
"""(namespace, name); the namespace of a Node is empty."""


def copy_of(obj: Any) -> Any:
    """A deep copy that is JSON for certain, three times faster than copy.deepcopy."""
    return msgspec.json.decode(msgspec.json.encode(obj))


@dataclass(frozen=True, slots=True)
class Entry:
    """One write. `before` None: created; `after` None: removed, `before` then has the last version."""

    version: int
    kind: Kind
    before: Object | None
    after: Object | None


class Store:
    """Stored objects are never changed in place: every write puts a new one."""

    def __init__(self, history: int) -> None:
        self.version = 0
        self._history = history
        self._entries: list[Entry] = []
        self._tables: dict[Kind, dict[Place, Object]] = {kind: {} for kind in Kind}
        self._places: dict[str, tuple[Kind, Place]] = {}
        self._watchers: dict[asyncio.Event, None] = {}  # in order: a seeded life must replay exactly

    def get(self, kind: Kind, place: Place) -> Object | None:
        return self._tables[kind].get(place)

    def find(self, uid: str) -> tuple[Kind, Object] | None:
        """The object of this UID."""
        if (found := self._places.get(uid)) is None:
            return None
        kind, place = found
        return kind, self._tables[kind][place]

    def select(self, kind: Kind, labels: str = "", fields: str = "") -> list[Object]:
        return [obj for obj in self._tables[kind].values() if matches(obj, labels, fields)]

    def everything(self) -> Iterator[tuple[Kind, Object]]:
        for kind, table in self._tables.items():
            yield from ((kind, obj) for obj in list(table.values()))

    def put(self, kind: Kind, obj: Object) -> Object:
        """Store `obj` (which the caller gives away) under a new version."""
        place = place_of(obj)
        before = self._tables[kind].get(place)
        self._stamp(obj)
        self._tables[kind][place] = obj
        self._places[obj["metadata"]["uid"]] = (kind, place)
        self._append(Entry(self.version, kind, before, obj))
        return obj

    def remove(self, kind: Kind, obj: Object) -> None:
        """Take the object away; its last version is that of the deletion."""
        last: Object = {**obj, "metadata": dict(obj["metadata"])}
        self._stamp(last)
        del self._tables[kind][place_of(obj)]
        del self._places[obj["metadata"]["uid"]]
        self._append(Entry(self.version, kind, last, None))

    def forget(self, keep: int = 0) -> None:
        """Compact: a watch from before the last `keep` entries has expired."""
        del self._entries[: max(0, len(self._entries) - keep)]
        self.wake()

    @property
    def oldest(self) -> int:
        """The oldest version from which a watch can start."""
        return self.version - len(self._entries)

    def after(self, version: int) -> list[Entry]:
        """What has happened since `version`, which is no older than `oldest`."""
        return self._entries[version - self.oldest :]

    def wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()

    def subscribe(self) -> asyncio.Event:
        """An event that is set at every write; give it back with `unsubscribe`."""
        watcher = asyncio.Event()
        self._watchers[watcher] = None
        return watcher

    def unsubscribe(self, watcher: asyncio.Event) -> None:
        self._watchers.pop(watcher, None)

    def _stamp(self, obj: Object) -> None:
        # Every write makes exactly one entry, so that versions index the history.
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)

    def _append(self, entry: Entry) -> None:
        self._entries.append(entry)
        if len(self._entries) > 2 * self._history:
            self.forget(self._history)
        self.wake()


def place_of(obj: Object) -> Place:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]

"""What an informer reads from: typed lists and watches, natively or converted from the Cluster port."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from logging import getLogger
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import msgspec

from rerail_operator.shell.cluster import Change, Cluster, Kind, Object

log = getLogger(__name__)

Model = TypeVar("Model")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects: of a kind, in all namespaces, by selectors in Kubernetes' own syntax."""

    kind: Kind
    labels: str = ""
    fields: str = ""


@dataclass(frozen=True, slots=True)
class Seen(Generic[Model]):
    """One event of a watch; `object` is None for a bookmark."""

    change: Change
    version: str
    object: Model | None = None


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[Model]):
    """A complete list at one version."""

    objects: list[Model]
    version: str


@runtime_checkable
class Streams(Protocol):
    """Typed reading. `record` turns a decoded `model` into what is kept, one object at a time.

    Failures are those of the Cluster port. An object that cannot be decoded is logged and left out.
    """

    async def list_as(
        self, selection: Selection, model: type[Any], record: Callable[[Any], Model]
    ) -> Snapshot[Model]: ...

    def watch_as(
        self, selection: Selection, version: str, model: type[Any], record: Callable[[Any], Model]
    ) -> AsyncIterator[Seen[Model]]: ...


def streams_of(cluster: Cluster) -> Streams:
    """The adapter's own typed reading, or a conversion of its dicts."""
    return cluster if isinstance(cluster, Streams) else _Converted(cluster)


def version_number(resource_version: str) -> int:
    """A resourceVersion as a number (they are comparable since Kubernetes 1.35); 0 when it is none."""
    return int(resource_version) if resource_version.isdecimal() else 0


class _Converted:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def list_as(
        self, selection: Selection, model: type[Any], record: Callable[[Any], Model]
    ) -> Snapshot[Model]:
        listing = await self._cluster.list(selection.kind, selection.labels, selection.fields)
        read = (_convert(obj, model, record) for obj in listing.items)
        return Snapshot([one for one in read if one is not None], listing.resource_version)

    async def watch_as(
        self, selection: Selection, version: str, model: type[Any], record: Callable[[Any], Model]
    ) -> AsyncIterator[Seen[Model]]:
        async for event in self._cluster.watch(selection.kind, version, selection.labels, selection.fields):
            at = event.object["metadata"]["resourceVersion"]
            if event.change is Change.BOOKMARK:
                yield Seen(Change.BOOKMARK, at)
            elif (read := _convert(event.object, model, record)) is not None:
                yield Seen(event.change, at, read)


def _convert(obj: Object, model: type[Any], record: Callable[[Any], Model]) -> Model | None:
    try:
        return record(obj if model is dict else msgspec.convert(cast(Any, obj), model))
    except (msgspec.ValidationError, LookupError) as error:
        log_unreadable(obj.get("metadata", {}), error)
        return None


def log_unreadable(metadata: dict[str, Any], error: Exception) -> None:
    """Say once per object and cause which one was left out."""
    log.warning(
        "left out %s/%s, which cannot be read: %s", metadata.get("namespace", ""), metadata.get("name"), error
    )

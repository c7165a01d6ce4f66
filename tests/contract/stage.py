"""What a contract test stands on: a cluster behind the port, and the few things that the port cannot do."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, cast

from rerail_operator.shell.cluster import Change, Cluster, Kind, NotFound, Object, WatchEvent

SECONDS = 20.0
HANG = "rerail.dev/kwok-hang-terminating"
MARK = "contract.rerail.dev/test"
_numbers = itertools.count(1)


class Stage(Protocol):
    """A running cluster with one usable namespace and the nodes `nodes`."""

    cluster: Cluster
    namespace: str
    nodes: tuple[str, ...]

    async def let_go(self, pod: Object) -> None:
        """The kubelet confirms the end of a deleted pod."""

    async def lose_next_reply(self) -> None:
        """The next request will be carried out and its reply lost."""

    async def forget_history(self) -> str:
        """Make a version that is too old for a watch of pods, and name it."""


def unique(stem: str) -> str:
    """A name that no other test of this run has."""
    return f"{stem}-{next(_numbers)}"


def job(name: str, **spec: Any) -> Object:
    container = {"name": "trainer", "image": "example.com/t:1", "command": ["python", "train.py"]}
    return {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {"numNodes": 1, "template": {"spec": {"containers": [container]}}, **spec},
    }


def pod(name: str, node: str = "", labels: dict[str, str] | None = None, **container: Any) -> Object:
    """A pod that does not end by itself when deleted. `node` pins it."""
    spec: Object = {
        "automountServiceAccountToken": False,
        "containers": [{"name": "trainer", "image": "example.com/t:1", **container}],
    }
    if node:
        field = {"key": "metadata.name", "operator": "In", "values": [node]}
        terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
        spec["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    metadata = {"name": name, "labels": labels or {}, "annotations": {HANG: "true"}}
    return {"metadata": metadata, "spec": spec}


async def until(what: str, look: Callable[[], Awaitable[Any]], seconds: float = SECONDS) -> Any:
    """Poll until `look` answers something true, and return that."""
    async with asyncio.timeout(seconds) as limit:
        try:
            while not (found := await look()):
                await asyncio.sleep(0.02)
            return found
        except asyncio.CancelledError:
            if limit.expired():
                raise AssertionError(f"not within {seconds:.0f} s: {what}") from None
            raise


async def bound(stage: Stage, name: str) -> Object:
    """The pod once it has a node."""

    async def look() -> Object | None:
        seen = await stage.cluster.get(Kind.POD, stage.namespace, name)
        return seen if seen["spec"].get("nodeName") else None

    return cast(Object, await until(f"{name} is bound", look))


async def gone(stage: Stage, kind: Kind, name: str, seconds: float = SECONDS) -> None:
    """Wait until the object is no more."""

    async def look() -> bool:
        try:
            await stage.cluster.get(kind, stage.namespace, name)
        except NotFound:
            return True
        return False

    await until(f"{kind} {name} is gone", look, seconds)


async def events(stream: AsyncIterator[WatchEvent], count: int) -> list[WatchEvent]:
    """The next `count` events of a watch, bookmarks left out."""
    found: list[WatchEvent] = []
    async with asyncio.timeout(SECONDS), aclosing(cast(Any, stream)) as source:
        async for event in source:
            if event.change is not Change.BOOKMARK:
                found.append(event)
            if len(found) == count:
                break
    return found

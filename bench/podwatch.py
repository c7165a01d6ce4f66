"""Sees pods come, run and go, as early as the API server tells it; the same eyes for floor and Rerail."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
import msgspec

from .client import Client
from .ground import NAMESPACE

PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
LABEL_JOB = "rerail.dev/job-name"


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    deletion_timestamp: str = ""


class _Status(msgspec.Struct, rename="camel"):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")


class RawPod(msgspec.Struct):
    """What is read of a pod."""

    metadata: _Meta = msgspec.field(default_factory=_Meta)
    status: _Status = msgspec.field(default_factory=_Status)


class _Event(msgspec.Struct):
    type: str
    object: RawPod


@dataclass
class Seen:
    """The pods of one job: all that exist, and those that run."""

    there: dict[str, RawPod] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)


class PodWatch:
    """Follows all pods of the bench's namespace. `on_change(job, uid, pod or None)` is told of what runs, and
    of what does not run any more."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jobs: dict[str, Seen] = {}
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[float]]] = []
        self._task: asyncio.Task[None] | None = None
        self._decode = msgspec.json.Decoder(_Event).decode
        self.on_change: Callable[[str, str, RawPod | None], None] = lambda job, uid, pod: None

    def job(self, name: str) -> Seen:
        """What is known of one job's pods."""
        return self._jobs.setdefault(name, Seen())

    async def start(self) -> None:
        version = (await self._client.get(PODS))["metadata"]["resourceVersion"]
        self._task = asyncio.create_task(self._follow(version))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def until(self, what: str, look: Callable[[], bool], seconds: float) -> float:
        """The time (monotonic) of the event that made `look()` true. Raises TimeoutError, naming `what`."""
        if look():
            return time.monotonic()
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiters.append((look, future))
        try:
            return await asyncio.wait_for(future, seconds)
        except TimeoutError:
            seen = {name: (len(job.there), len(job.running)) for name, job in self._jobs.items()}
            raise TimeoutError(f"not within {seconds:.0f} s: {what}; pods (there, running): {seen}") from None
        finally:
            self._waiters = [one for one in self._waiters if one[1] is not future]

    def tell(self) -> None:
        """Something that a waiter may look at has changed."""
        for look, future in self._waiters:
            if not future.done() and look():
                future.set_result(time.monotonic())

    async def _follow(self, version: str) -> None:
        while True:
            # The server ends watches during bursts, without an error: go on from the last version.
            path = f"{PODS}?watch=1&allowWatchBookmarks=true&resourceVersion={version}"
            with suppress(aiohttp.ClientError):
                async with self._client.stream(path) as content:
                    rest = b""
                    async for chunk in content.iter_any():
                        *lines, rest = (rest + chunk).split(b"\n")
                        for event in self._events(lines):
                            version = event.object.metadata.resource_version
                            self._take(event)
                        await asyncio.sleep(0)

    def _events(self, lines: list[bytes]) -> Iterator[_Event]:
        for line in lines:
            event = self._decode(line)
            if event.type == "ERROR":
                raise RuntimeError(f"the bench's watch has failed: {line.decode()}")
            yield event

    def _take(self, event: _Event) -> None:
        meta = event.object.metadata
        if event.type == "BOOKMARK" or LABEL_JOB not in meta.labels:
            return
        job = self.job(meta.labels[LABEL_JOB])
        ran = meta.uid in job.running
        gone = event.type == "DELETED"
        runs = not gone and event.object.status.phase == "Running" and not meta.deletion_timestamp
        if gone:
            job.there.pop(meta.uid, None)
        else:
            job.there[meta.uid] = event.object
        if runs:
            job.running.add(meta.uid)
        else:
            job.running.discard(meta.uid)
        if runs != ran:
            self.on_change(meta.labels[LABEL_JOB], meta.uid, event.object if runs else None)
        self.tell()

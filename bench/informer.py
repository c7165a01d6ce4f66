"""Pods on their way in: bytes of a watch -> record -> fleet. CPU time per event, memory per pod."""

import asyncio
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from rerail_api.v1alpha1 import parse_job
from rerail_operator.shell.cluster import Kind
from rerail_operator.shell.fleet import Fleet
from rerail_operator.shell.kube.errors import Call
from rerail_operator.shell.kube.watch import Reader
from rerail_operator.shell.streams import Seen, Selection, Snapshot

from .floor import manifest, pods_of
from .report import Json, Tell

EVENTS_PER_POD = 4
TIME = "2026-01-01T00:00:00Z"
JOB_UID = "0f0e0d0c-0000-4000-8000-000000000000"


def measure(pods: int, tell: Tell) -> Json:
    """`pods` pods that are added, bound, started and touched once more."""
    return asyncio.run(_measure(pods, tell))


async def _measure(pods: int, tell: Tell) -> Json:
    lines = list(_lines(pods))
    size = sum(map(len, lines)) // len(lines)
    began = time.process_time()
    await _follow(lines, pods)
    spent = time.process_time() - began
    tracemalloc.start()  # a second time, for memory: tracing costs time
    held = await _follow(lines, pods)
    tracemalloc.stop()
    result = {
        "pods": pods,
        "events": len(lines),
        "bytes_per_event": size,
        "cpu_microseconds_per_event": round(1e6 * spent / len(lines), 1),
        "kib_per_pod": round(held / pods / 1024, 1),
    }
    tell(
        f"{pods:6} pods, {len(lines)} events of {size} bytes: "
        f"{result['cpu_microseconds_per_event']} us of CPU per event, {result['kib_per_pod']} KiB per pod"
    )
    return result


async def _follow(lines: list[bytes], pods: int) -> int:
    """One fleet hears everything; the memory that it holds in the end, where that is traced."""
    replay = Replay(lines)
    fleet = Fleet(replay, lambda key: None, lambda: None)  # type: ignore[arg-type]  # informers only read
    await fleet.start()
    await fleet.wait_synced()
    await replay.all_read.wait()
    seen = len(fleet.pods(JOB_UID))
    held = tracemalloc.get_traced_memory()[0]
    await fleet.stop()
    if seen != pods:
        raise RuntimeError(f"the fleet holds {seen} of {pods} pods")
    return held


class Replay:
    """Streams that begin empty; the watch of our own pods then says its lines and falls silent."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines
        self.all_read = asyncio.Event()

    async def list_as(
        self, selection: Selection, model: type[Any], record: Callable[[Any], Any]
    ) -> Snapshot[Any]:
        return Snapshot([], "1")

    async def watch_as(
        self, selection: Selection, version: str, model: type[Any], record: Callable[[Any], Any]
    ) -> AsyncIterator[Seen[Any]]:
        if selection.kind is Kind.POD and "!=" not in selection.labels:
            reader = Reader(Call("watch", "pods"), model, record)
            for line in self._lines:
                seen = reader.event(line)
                if seen is not None:
                    yield seen
            self.all_read.set()
        await asyncio.Event().wait()


def _lines(pods: int) -> Iterator[bytes]:
    """What the API server would send: all added, then all bound, then all running, then all touched."""
    raw = {**manifest("gang", pods)}
    raw["metadata"] |= {"uid": JOB_UID, "resourceVersion": "1", "generation": 1}
    names = [f"kwok-{number:05d}" for number in range(pods)]
    bodies = [json.loads(json.dumps(body)) for body in pods_of(parse_job(raw), names)]
    version = 1
    for step in range(EVENTS_PER_POD):
        for number, body in enumerate(bodies):
            version += 1
            _at(body, step, number, version)
            event = {"type": "MODIFIED" if step else "ADDED", "object": body}
            yield json.dumps(event, separators=(",", ":")).encode()


def _at(body: Json, step: int, number: int, version: int) -> None:
    """The pod as it stands at this step."""
    meta = body["metadata"]
    meta["resourceVersion"] = str(version)
    if step == 0:
        meta |= {
            "uid": f"uid-{number:08d}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": _FIELDS,
        }
        body["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
    elif step == 1:
        body["spec"]["nodeName"] = f"kwok-{number:05d}"
        body["status"]["conditions"] = [_condition("PodScheduled")]
    elif step == 2:
        running = {
            "name": "trainer",
            "ready": True,
            "state": {"running": {"startedAt": TIME}},
        }
        kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        body["status"] |= {"phase": "Running", "podIP": "10.128.0.1", "containerStatuses": [running]}
        body["status"]["conditions"] = [_condition(kind) for kind in kinds]
    else:
        meta["annotations"]["example.com/touched"] = "yes"


def _condition(kind: str) -> Json:
    return {
        "type": kind,
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": TIME,
    }


# Four fifths of a pod's metadata on the wire is this; readers have to skip it.
_FIELDS: list[Json] = [
    {
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": TIME,
        "fieldsType": "FieldsV1",
        "fieldsV1": {f"f:field-{n}": {f"f:part-{m}": {} for m in range(8)} for n in range(8)},
    }
    for manager in ("rerail", "kube-scheduler", "kwok")
]

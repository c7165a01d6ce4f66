"""The fleet: all TrainingJobs, their pods and the cluster's nodes, as the API server's streams tell them.

It keeps and routes; it decides nothing. Four streams: jobs, our pods by label, everybody else's bound and
living pods (only their sums matter), nodes.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from logging import getLogger
from typing import Any

from rerail_api.contract import LABEL_MANAGED, MANAGED_BY
from rerail_operator.core.world import Nodes, Pod, Resources
from rerail_operator.shell.capacity import Capacity
from rerail_operator.shell.cluster import Cluster, Kind, Object
from rerail_operator.shell.informer import Informer, Reading
from rerail_operator.shell.keys import JobKey
from rerail_operator.shell.observe import (
    JobRecord,
    NodeRecord,
    PodRecord,
    foreign_record,
    job_record,
    node_record,
    worker_record,
)
from rerail_operator.shell.raw import RawNode, RawPod, as_raw_pod
from rerail_operator.shell.streams import Selection, streams_of

log = getLogger(__name__)

JOBS = Reading(Selection(Kind.JOB), dict, job_record)
WORKERS = Reading(Selection(Kind.POD, labels=f"{LABEL_MANAGED}={MANAGED_BY}"), RawPod, worker_record)
OTHERS = Reading(
    Selection(
        Kind.POD,
        labels=f"{LABEL_MANAGED}!={MANAGED_BY}",
        fields="spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed",
    ),
    RawPod,
    foreign_record,
)
NODES = Reading(Selection(Kind.NODE), RawNode, node_record)


class Fleet:
    """What was last seen, indexed. `on_job` is told of every job that a change may concern,
    `on_capacity` that a waiting gang may now fit. Both are called often; a queue makes them cheap."""

    def __init__(
        self,
        cluster: Cluster,
        on_job: Callable[[JobKey], None],
        on_capacity: Callable[[], None],
        bad_node_conditions: tuple[str, ...] = (),
    ) -> None:
        streams = streams_of(cluster)
        self._on_job = on_job
        self._on_capacity = on_capacity
        self._capacity = Capacity()
        self._jobs_by_key: dict[JobKey, JobRecord] = {}
        self._by_job: dict[str, dict[str, PodRecord]] = {}
        self._by_node: dict[str, dict[str, PodRecord]] = {}
        self._uids: dict[JobKey, dict[str, int]] = {}
        self._homes: dict[str, str] = {}  # job UID -> namespace, of jobs that are there
        self._jobs = Informer(streams, JOBS, self._job_changed)
        self._workers = Informer(streams, WORKERS, self._worker_changed)
        self._others = Informer(streams, OTHERS, self._other_changed)
        nodes = replace(NODES, record=partial(node_record, bad_conditions=bad_node_conditions))
        self._nodes = Informer(streams, nodes, self._node_changed)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to follow the streams; `synced` turns True once all four have been listed."""
        runs = {"jobs": self._jobs.run, "workers": self._workers.run}
        runs |= {"others": self._others.run, "nodes": self._nodes.run}
        for name, run in runs.items():
            task = asyncio.create_task(run(), name=f"informer of {name}")
            task.add_done_callback(_report_end)
            self._tasks.append(task)

    async def stop(self) -> None:
        """End the streams; what was seen stays readable."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def wait_synced(self) -> None:
        """Wait for the first complete list of all streams."""
        for informer in self._informers():
            await informer.wait_synced()

    @property
    def synced(self) -> bool:
        return self._jobs.synced and self._workers.synced and self._others.synced and self._nodes.synced

    def stream_age(self) -> float:
        """Seconds since the stillest stream said anything."""
        return max(informer.age() for informer in self._informers())

    def stalled(self) -> float:
        """Seconds for which the slowest informer has neither heard anything nor been refused (liveness)."""
        return max(informer.stalled() for informer in self._informers())

    def job(self, key: JobKey) -> Object | None:
        """The TrainingJob as last seen or as last replied to our own write. Read only."""
        record = self._jobs_by_key.get(key)
        return record.raw if record else None

    def jobs(self) -> list[Object]:
        """All TrainingJobs. Read only."""
        return [record.raw for record in self._jobs_by_key.values()]

    def pods(self, job_uid: str) -> tuple[Pod, ...]:
        """The job's worker pods, in whatever order; those whose labels cannot be read are left out.

        So are those of another namespace: whoever may create pods there has no say in this job.
        """
        home = self._homes.get(job_uid)
        records = self._by_job.get(job_uid, {}).values()
        return tuple(r.pod for r in records if r.pod and home in (None, r.namespace))

    def pod_records(self, job_uid: str) -> tuple[PodRecord, ...]:
        """The same with what each one asks for."""
        return tuple(self._by_job.get(job_uid, {}).values())

    def job_uids(self, key: JobKey) -> tuple[str, ...]:
        """UIDs of all jobs of this name, gone ones included as long as they have pods."""
        return tuple(self._uids.get(key, ()))

    def orphan_keys(self) -> tuple[JobKey, ...]:
        """Names whose pods are still there and whose job is not."""
        return tuple(key for key in self._uids if key not in self._jobs_by_key)

    def nodes(self, reserved: Mapping[str, Resources]) -> Nodes:
        """A snapshot: free = allocatable - all living bound pods - our pinned pods - `reserved`."""
        return self._capacity.snapshot(reserved)

    @property
    def struck(self) -> Mapping[str, str]:
        """Nodes that are avoided for what is held against them across jobs, with the reason."""
        return self._capacity.struck

    def mark_struck(self, struck: Mapping[str, str]) -> None:
        """These nodes are avoided from now on, no others."""
        if self._capacity.mark(struck):
            self._on_capacity()

    def note_job(self, raw: Object) -> None:
        """Take over the server's reply to our write of a job until the stream catches up."""
        self._jobs.note(job_record(raw), raw["metadata"]["resourceVersion"])

    def note_pod(self, raw: Object) -> None:
        """Take over the server's reply to our creation or patch of a pod until the stream catches up."""
        self._workers.note(worker_record(as_raw_pod(raw)), raw["metadata"]["resourceVersion"])

    def _informers(self) -> tuple[Informer[Any], ...]:
        return (self._jobs, self._workers, self._others, self._nodes)

    def _job_changed(self, before: JobRecord | None, after: JobRecord | None) -> None:
        if after is not None:
            self._jobs_by_key[after.key] = after
            self._homes[after.uid] = after.key.namespace
            if before is None:
                self._count_uid(after.key, after.uid, 1)
            self._on_job(after.key)
        elif before is not None:
            # A job of the same name may have taken the key already.
            if (current := self._jobs_by_key.get(before.key)) and current.uid == before.uid:
                del self._jobs_by_key[before.key]
            self._homes.pop(before.uid, None)
            self._count_uid(before.key, before.uid, -1)
            self._on_job(before.key)

    def _worker_changed(self, before: PodRecord | None, after: PodRecord | None) -> None:
        self._account(before, after)
        if before is not None:
            self._unindex(before)
        if after is not None:
            self._index(after)
        for job in {record.job for record in (before, after) if record and record.job}:
            self._on_job(job)

    def _other_changed(self, before: PodRecord | None, after: PodRecord | None) -> None:
        self._account(before, after)

    def _node_changed(self, before: NodeRecord | None, after: NodeRecord | None) -> None:
        if after is not None:
            self._capacity.put_node(after.node)
            self._on_capacity()
        elif before is not None and not self._replaced(before):
            self._capacity.drop_node(before.node.name)
        names = {record.node.name for record in (before, after) if record}
        pods = [pod for name in names for pod in self._by_node.get(name, {}).values()]
        for job in {pod.job for pod in pods if pod.job}:
            self._on_job(job)

    def _replaced(self, gone: NodeRecord) -> bool:
        records = self._nodes.records.values()
        return any(record.node.name == gone.node.name for record in records)

    def _account(self, before: PodRecord | None, after: PodRecord | None) -> None:
        held = (before.node, before.requests) if before and before.holds else None
        holds = (after.node, after.requests) if after and after.holds else None
        if held == holds:
            return
        if held:
            self._capacity.give_back(*held)
        if holds:
            self._capacity.take(*holds)
        if held:
            self._on_capacity()

    def _index(self, record: PodRecord) -> None:
        self._by_job.setdefault(record.job_uid, {})[record.uid] = record
        self._by_node.setdefault(record.node, {})[record.uid] = record
        if record.job:
            self._count_uid(record.job, record.job_uid, 1)

    def _unindex(self, record: PodRecord) -> None:
        _remove(self._by_job, record.job_uid, record.uid)
        _remove(self._by_node, record.node, record.uid)
        if record.job:
            self._count_uid(record.job, record.job_uid, -1)

    def _count_uid(self, key: JobKey, uid: str, by: int) -> None:
        counts = self._uids.setdefault(key, {})
        counts[uid] = counts.get(uid, 0) + by
        if not counts[uid]:
            del counts[uid]
        if not counts:
            del self._uids[key]


def _remove(index: dict[str, dict[str, Any]], key: str, uid: str) -> None:
    entries = index.get(key, {})
    entries.pop(uid, None)
    if not entries:
        index.pop(key, None)


def _report_end(task: asyncio.Task[None]) -> None:
    # Failures of the cluster are waited out inside; whatever ends an informer is a bug. The growing
    # stream age then fails the liveness probe.
    if not task.cancelled() and (error := task.exception()):
        log.critical("%s has ended", task.get_name(), exc_info=error)

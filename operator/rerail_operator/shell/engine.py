"""The engine: streams fill the picture, changes become keys, workers make passes. Same in a cluster and on a
laptop; only the Cluster adapter differs."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from .apply import Applier, Making
from .clock import Clock
from .cluster import Cluster, ClusterError, Conflict, Unavailable
from .coordinator import Coordinator
from .desk import AdmissionDesk
from .fleet import Fleet
from .keys import JobKey
from .leader import Leading
from .reconciler import FieldDropped, Passed, PassHook, Reconciler, Recorder, Senses
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

CONFLICT_DELAY = 0.2
REST_PER_THINKING = 4.0  # one job's thinking may take a fifth of the loop, however large its gang
MAX_REST = 3.0  # an agent's word that it connects, joins, runs or makes a step waits no longer
MAX_REST_OF_FAULTS = 1.0  # nor than this a fault, or a change of a job, a pod or a node
WAITING_JOBS_DELAY = 0.5  # longer than answers may be stale: the pass sees the change


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine needs to know beside its parts."""

    making: Making
    workers: int = 4
    bad_node_conditions: tuple[str, ...] = ()


class Engine:
    """Wires fleet, queue, desk and reconciler. `start` keeps the picture warm; `lead` acts on it."""

    def __init__(
        self,
        cluster: Cluster,
        coordinator: Coordinator,
        leadership: Leading,
        settings: EngineSettings,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._leadership = leadership
        self._settings = settings
        self.queue: WorkQueue[JobKey] = WorkQueue(clock)
        self.fleet = Fleet(cluster, self._job_changed, self._capacity_changed, settings.bad_node_conditions)
        self.desk = AdmissionDesk(self.fleet, clock, settings.making.accelerators, on_offer=self._wake)
        applier = Applier(cluster, coordinator, self.fleet, settings.making, clock)
        senses = Senses(self.fleet, coordinator, self.desk, clock)
        self.reconciler = Reconciler(cluster, senses, applier, settings.making.accelerators)
        self._keys: dict[str, JobKey] = {}
        self._workers: list[asyncio.Task[None]] = []
        self._leads = False
        self._look: asyncio.TimerHandle | None = None
        coordinator.on_fault = self.agent_failed
        self.failures = 0  # passes that ended in an unexpected exception
        self.passes = 0

    @property
    def on_pass(self) -> list[PassHook]:
        """Called after every decision with key, world and plan."""
        return self.reconciler.on_pass

    def record_with(self, recorder: Recorder) -> None:
        """Where notes go besides the log."""
        self.reconciler.recorder = recorder

    # -- what wakes a job ---------------------------------------------------------------------------------

    def enqueue(self, key: JobKey) -> None:
        """Ask for a pass over this job. The only thing that handlers do."""
        if self._leads:
            self.queue.add(key, urgent=True)

    def agent_changed(self, job_uid: str) -> None:
        """An agent of this job said something new: there may be thousands that say the same."""
        key = self._keys.get(job_uid)
        if key is not None and self._leads:
            self.queue.add(key)

    def agent_failed(self, job_uid: str) -> None:
        """An agent of this job tells of a failed rank, or is not heard any more."""
        self._wake(job_uid)

    def _wake(self, job_uid: str) -> None:
        key = self._keys.get(job_uid)
        if key is not None:
            self.enqueue(key)

    def _job_changed(self, key: JobKey) -> None:
        self.desk.changed()
        raw = self.fleet.job(key)
        if raw is not None:
            self._keys[raw["metadata"]["uid"]] = key
        self.enqueue(key)
        if self._leads and self._look is None:
            # A job that starts, ends or steps aside changes what others may have.
            self._look = asyncio.get_running_loop().call_later(WAITING_JOBS_DELAY, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self.desk.look_again()

    def _capacity_changed(self) -> None:
        """Room may have appeared: whoever waits is looked at again; nodes may be lost: whoever runs too."""
        self.desk.changed()
        if not self._leads:
            return
        for raw in self.fleet.jobs():
            meta = raw["metadata"]
            self.queue.add_after(JobKey(meta["namespace"], meta["name"]), WAITING_JOBS_DELAY)

    # -- life ---------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Start, lead until `stop`, end."""
        await self.start()
        try:
            await self.lead()
            await stop.wait()
        finally:
            await self.stop()

    async def start(self) -> None:
        """Begin to follow the cluster; nothing is acted on."""
        await self.fleet.start()

    async def lead(self) -> None:
        """Begin to act, once the picture is complete: every job gets a pass."""
        await self.fleet.wait_synced()
        self.desk.forget_all()
        self.reconciler.lead()
        self._leads = True
        for raw in self.fleet.jobs():
            meta = raw["metadata"]
            key = JobKey(meta["namespace"], meta["name"])
            self._keys[meta["uid"]] = key
            self.queue.add(key)
        for key in self.fleet.orphan_keys():
            self.queue.add(key)
        for number in range(self._settings.workers):
            self._workers.append(asyncio.create_task(self._work(), name=f"reconciler {number}"))

    async def stop(self) -> None:
        """Stop acting at once; the cluster is left as it is."""
        self._leads = False
        if self._look is not None:
            self._look.cancel()
        await _end(self._workers)
        self._workers.clear()
        await self.fleet.stop()

    @property
    def healthy(self) -> bool:
        """Whether every worker is alive."""
        return all(not task.done() for task in self._workers)

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                if self._leadership.is_leader:
                    await self._one(key)
            finally:
                self.queue.done(key)

    async def _one(self, key: JobKey) -> None:
        try:
            self.passes += 1
            passed = await self.reconciler.reconcile(key)
        except Conflict:
            self.queue.add_after(key, CONFLICT_DELAY)
        except Unavailable as away:
            delay = self.queue.retry(key, away.retry_after or 0.0)
            log.warning("%s: %s; again in %.1f s", key, away, delay)
        except (ClusterError, FieldDropped) as refused:
            delay = self.queue.retry(key, 5.0)
            log.error("%s: %s; again in %.1f s", key, refused, delay)
        except Exception:
            self.failures += 1
            delay = self.queue.retry(key)
            log.exception("%s: unexpected failure in a pass; again in %.1f s", key, delay)
        else:
            self.queue.forget(key)
            self._come_again(key, passed)

    def _come_again(self, key: JobKey, passed: Passed) -> None:
        after = passed.again
        if after is not None and after <= timedelta(0):
            self.queue.add(key)
            return
        # Thousands of pods and agents tell their news one by one: a pass sees many of them at once.
        self.queue.rest(key, min(MAX_REST, REST_PER_THINKING * passed.thinking), MAX_REST_OF_FAULTS)
        if after is not None:
            self.queue.add_after(key, after.total_seconds())


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

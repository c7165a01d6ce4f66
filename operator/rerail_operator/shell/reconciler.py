"""One pass over one job: observe -> decide -> apply -> publish status once."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rerail_api.status import ConditionType, TrainingJobStatus
from rerail_api.v1alpha1 import TrainingJob, parse_status
from rerail_operator.core.decide import decide
from rerail_operator.core.gang import may_still_run
from rerail_operator.core.overlay import overlaid
from rerail_operator.core.plan import Note, Plan
from rerail_operator.core.publish import PASSING_INTERVAL, is_passing, write_due
from rerail_operator.core.queueing import shape_hash
from rerail_operator.core.stragglers import ranks_per_node, slow_ranks
from rerail_operator.core.world import SlowRank, World

from .apply import Applier, Target
from .clock import Clock
from .cluster import Cluster, Kind, NotFound, Object
from .coordinator import Coordinator
from .desk import AdmissionDesk
from .fleet import Fleet
from .jobmemory import JobMemory
from .keys import JobKey

log = logging.getLogger(__name__)

SOON = timedelta(seconds=0.2)
COMPARE_SECONDS = 4.0
REST_PER_COMPARING = 100.0
TERMINATED = 143  # as a container ends that was told to: 128 + SIGTERM


class FieldDropped(Exception):
    """The API server dropped a status field: the CRD is older than this operator."""


@dataclass(frozen=True, slots=True)
class Senses:
    """Where a pass looks."""

    fleet: Fleet
    coordinator: Coordinator
    desk: AdmissionDesk
    clock: Clock


@dataclass(frozen=True, slots=True)
class Passed:
    """How a pass went: when to come again (None: when something changes), and for how many seconds observing
    and deciding held the loop."""

    again: timedelta | None
    thinking: float


PassHook = Callable[[JobKey, World, Plan], None]
Recorder = Callable[[TrainingJob, tuple[Note, ...]], None]


class Reconciler:
    """Makes passes; holds the memory that may be lost."""

    def __init__(
        self, cluster: Cluster, senses: Senses, applier: Applier, accelerators: tuple[str, ...]
    ) -> None:
        self._cluster = cluster
        self._senses = senses
        self._applier = applier
        self._accelerators = accelerators
        self._leading_since: datetime | None = None
        self.on_pass: list[PassHook] = []
        self.recorder: Recorder | None = None

    def lead(self) -> None:
        """Leadership begins now: what a former leader knew is not known here."""
        self._leading_since = self._senses.clock.now()

    async def reconcile(self, key: JobKey) -> Passed:
        """One pass. Raises ClusterError."""
        raw = self._senses.fleet.job(key)
        live = raw["metadata"]["uid"] if raw is not None else ""
        thinking = 0.0
        for uid in self._senses.fleet.job_uids(key):
            if uid != live:
                thinking += await self._tear_down(key, uid)
        if raw is None:
            return Passed(None, thinking)  # the last pass finds no pods and has nothing to think about
        return await self._pass(key, live, raw)

    async def _tear_down(self, key: JobKey, uid: str) -> float:
        """Pods of a job that is gone (or of one of the same name before); seconds of thinking."""
        began = self._senses.clock.monotonic()
        world = World(uid, None, pods=self._senses.fleet.pods(uid))
        plan = decide(world, self._senses.clock.now())
        thinking = self._senses.clock.monotonic() - began
        memory = self._senses.desk.memory(uid)
        await self._applier.apply(Target(key.namespace, key.name, uid, None, memory), plan.actions)
        self._forget_agents(uid, world)
        if not world.pods:
            self._senses.desk.forget(uid)
        return thinking

    async def _pass(self, key: JobKey, uid: str, raw: Object) -> Passed:
        began = self._senses.clock.monotonic()
        memory = self._senses.desk.memory(uid)
        world = self._observe(key, uid, raw, memory)
        now = self._senses.clock.now()
        plan = decide(world, now)
        if not memory.passed:
            memory.passed = True
            self._senses.desk.claims_changed()
        self._remember(uid, memory, plan)
        for hook in self.on_pass:
            hook(key, world, plan)
        thinking = self._senses.clock.monotonic() - began
        if world.job is None:
            log.error("%s: %s", key, plan.because)
            return Passed(None, thinking)
        return Passed(await self._act(key, raw, (world, plan), memory), thinking)

    async def _act(
        self, key: JobKey, raw: Object, decided: tuple[World, Plan], memory: JobMemory
    ) -> timedelta | None:
        """Do what was decided about a live job; when to come again."""
        world, plan = decided
        assert world.job is not None  # noqa: S101 - narrowing
        uid = world.uid
        self._forget_agents(uid, world)
        if plan.intent and plan.status is not None:
            await self._write(key, raw, plan.status, memory)
            self._record(world.job, plan.notes)
            return timedelta(0)
        target = Target(key.namespace, key.name, uid, world.job, memory)
        complete = await self._applier.apply(target, plan.actions)
        due = await self._publish(key, raw, plan.status, memory) if plan.status is not None else None
        self._record(world.job, plan.notes)
        rejected = memory.rejections != world.rejections
        if rejected:
            self._senses.desk.claims_changed()  # whoever cannot start keeps nobody waiting
        learned = rejected or self._learned(memory, world)
        if not complete or learned:
            return timedelta(0)
        return min((after for after in (plan.requeue_after, due) if after is not None), default=None)

    def _observe(self, key: JobKey, uid: str, raw: Object, memory: JobMemory) -> World:
        job, invalid = self._senses.desk.read(key, raw)
        if job is None:
            return World(uid, None, invalid=invalid)
        memory.forget_rejections_of_other(job.metadata.generation, job.status.round)
        job = job.model_copy(update={"status": overlaid(job.status, memory.decided)})
        in_line = not (
            job.status.is_true(ConditionType.ADMITTED)
            or job.status.finished
            or job.spec.suspend
            or job.metadata.deletion_timestamp is not None
        )
        pods, agents = self._senses.fleet.pods(uid), self._senses.coordinator.agents(uid)
        world = World(
            uid=uid,
            job=job,
            pods=pods,
            # An agent's token proves its pod; which job it belongs to is what the pod says, not the agent.
            agents={pod.uid: agents[pod.uid] for pod in pods if pod.uid in agents},
            nodes=self._senses.desk.nodes_for(uid),
            template_frozen=memory.template is not None
            and memory.template_revision == job.status.template_revision,
            dry_run_passed=memory.dry_run_shape == shape_hash(job),
            rejections=memory.rejections,
            leading_since=self._leading_since,
            claim=memory.claim,
            memory=memory.notes,
            slow=self._slow(job, memory),
            accelerators=self._accelerators,
        )
        if job.spec.spares and job.status.is_true(ConditionType.ADMITTED):
            room = self._senses.desk.room()
            world = replace(world, called_in=room.called_in, room_for_spares=room.for_spares)
        # While its old pods hold their nodes the answer would be a no, and outlive the reason for it.
        asks = in_line and not may_still_run(world)
        return replace(world, offer=self._senses.desk.offer(uid)) if asks else world

    def _slow(self, job: TrainingJob, memory: JobMemory) -> tuple[SlowRank, ...] | None:
        """The slow ranks, compared now and then only: that takes longer than all else in a large gang."""
        now, status = self._senses.clock.monotonic(), job.status
        if now >= memory.compare_from:
            told = self._senses.coordinator.busy(job.metadata.uid, status.round)
            ranks = job.spec.num_nodes * ranks_per_node(job, self._accelerators)
            memory.slow = slow_ranks(told, ranks, {s.rank for s in status.stragglers}) if told else None
            took = self._senses.clock.monotonic() - now
            memory.compare_from = now + max(COMPARE_SECONDS, REST_PER_COMPARING * took)
        return memory.slow

    def _remember(self, uid: str, memory: JobMemory, plan: Plan) -> None:
        memory.notes = plan.memory
        if plan.status is not None:
            memory.decided = plan.status
        claim = memory.claim
        if plan.placement is not None:
            claim = plan.placement
        elif plan.status is None or not plan.status.is_true(ConditionType.ADMITTED):
            claim = None
        self._senses.desk.claim(uid, claim)

    def _learned(self, memory: JobMemory, world: World) -> bool:
        """Whether applying taught something that the next pass can act on at once."""
        frozen = memory.template is not None and not world.template_frozen
        passed = world.job is not None and memory.dry_run_shape == shape_hash(world.job)
        return frozen or (passed and not world.dry_run_passed)

    async def _publish(
        self, key: JobKey, raw: Object, status: TrainingJobStatus, memory: JobMemory
    ) -> timedelta | None:
        """Write the status if that is due; else when it will be, None where only news will make it so."""
        stored, _ = self._senses.desk.read(key, raw)
        if stored is None:
            return None
        now = self._senses.clock.monotonic()
        passing = is_passing(stored.status, status)
        if not passing:
            memory.unwritten_since = None
        elif memory.unwritten_since is None:
            memory.unwritten_since = now
        since = timedelta(seconds=min(now - memory.last_write, 1e6))
        unwritten = timedelta(seconds=now - (memory.unwritten_since or now))
        if write_due(stored.status, status, since, unwritten):
            await self._write(key, raw, status, memory)
            return None
        return PASSING_INTERVAL - unwritten if passing else None

    async def _write(self, key: JobKey, raw: Object, status: TrainingJobStatus, memory: JobMemory) -> None:
        """One guarded status write, and its reply read back. Raises Conflict, FieldDropped."""
        body = {**raw, "status": status.to_json()}
        try:
            reply = await self._cluster.replace(Kind.JOB, key.namespace, body, status=True)
        except NotFound:
            log.info("%s: deleted while its status was being written", key)
            return
        memory.last_write, memory.unwritten_since = self._senses.clock.monotonic(), None
        self._senses.fleet.note_job(reply)
        stored = parse_status(reply.get("status") or {})
        if stored.round != status.round or stored.released_round != status.released_round:
            raise FieldDropped(
                f"{key}: the API server dropped fields of our status write; its CRD is older than this "
                f"operator: apply the CRD that belongs to it (kubectl apply --server-side -f crds/)"
            )

    def _forget_agents(self, uid: str, world: World) -> None:
        """Agents without a pod are forgotten once they are gone; one that ran an older round is sent away
        first: its pod was deleted while its node was cut off. One that ran none may be ahead of our picture.
        """
        agents = self._senses.coordinator.agents(uid)
        now = world.job.status.round if world.job is not None else 0
        for pod_uid in agents.keys() - {pod.uid for pod in world.pods}:
            if not agents[pod_uid].connected:
                self._senses.coordinator.forget(pod_uid)
            elif 0 < agents[pod_uid].round < now:
                why = f"its pod is gone and round {now} has begun without it"
                order = {"kind": "order", "do": "finish", "code": TERMINATED, "message": why}
                self._senses.coordinator.send(pod_uid, order)

    def _record(self, job: TrainingJob, notes: tuple[Note, ...]) -> None:
        for note in notes:
            log.info("%s/%s: %s: %s", job.metadata.namespace, job.metadata.name, note.reason, note.message)
        if self.recorder is not None and notes:
            self.recorder(job, notes)

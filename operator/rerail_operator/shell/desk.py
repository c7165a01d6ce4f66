"""The admission desk: jobs parsed once, their memories, and one serial answer to all who wait for nodes."""

from collections.abc import Callable, Iterator, Mapping

from rerail_api.status import ConditionType
from rerail_api.v1alpha1 import InvalidJob, TrainingJob, parse_job
from rerail_operator.core.admission import Queued, plan_admissions
from rerail_operator.core.placement import HELD, gang_request
from rerail_operator.core.pod_resources import pod_request
from rerail_operator.core.quantities import BadQuantity
from rerail_operator.core.queueing import KUEUE_LABEL, fresh_rejection, why_invalid
from rerail_operator.core.reasons import Reason
from rerail_operator.core.room import HeldSpare, Line, Need, Room, room, with_room
from rerail_operator.core.waiting import avoided
from rerail_operator.core.world import Nodes, Placement, Refusal, Resources, World

from .clock import Clock
from .cluster import Object
from .fleet import Fleet
from .jobmemory import JobMemory
from .keys import JobKey

STALE_SECONDS = 0.4
"""For how long answers may lag behind pods and nodes; kube-scheduler catches what they missed."""


class AdmissionDesk:
    """Plans who starts next over one snapshot; the answers hold until something changes."""

    def __init__(
        self, fleet: Fleet, clock: Clock, accelerators: tuple[str, ...], on_offer: Callable[[str], None]
    ) -> None:
        self._fleet = fleet
        self._on_offer = on_offer
        self._clock = clock
        self._accelerators = accelerators
        self._memories: dict[str, JobMemory] = {}
        self._parsed: dict[JobKey, tuple[str, TrainingJob | None, str]] = {}
        self._offers: Mapping[str, Placement | Refusal] = {}
        self._refused: set[str] = set()  # by the last answers
        self._room: Room | None = None  # what the last answers ask of spares
        self._planned_at = float("-inf")
        self._stale = True

    def memory(self, uid: str) -> JobMemory:
        """The memory of a job UID, new when there is none."""
        return self._memories.setdefault(uid, JobMemory())

    def forget(self, uid: str) -> None:
        """The job is gone with all its pods."""
        self._memories.pop(uid, None)
        self.claims_changed()

    def forget_all(self) -> None:
        """Leadership begins: nothing that was remembered may be trusted."""
        self._memories.clear()
        self.claims_changed()

    def changed(self) -> None:
        """Nodes, pods or jobs have changed: the answers are worked out again, at most twice a second."""
        self._stale = True

    def claims_changed(self) -> None:
        """Nodes were claimed or given back: no answer of before may be given once more."""
        self._offers = {}
        self._room = None

    def claim(self, uid: str, claim: Placement | None) -> None:
        """What this job's last plan claims."""
        memory = self.memory(uid)
        before, memory.claim = memory.claim, claim
        if claim != before:
            self.claims_changed()

    def read(self, key: JobKey, raw: Object) -> tuple[TrainingJob | None, str]:
        """The job parsed, or None and why not; parsed once per resourceVersion."""
        version = f"{raw['metadata']['uid']}/{raw['metadata'].get('resourceVersion', '')}"
        known = self._parsed.get(key)
        if known is not None and known[0] == version:
            return known[1], known[2]
        job: TrainingJob | None = None
        why = ""
        try:
            job = parse_job(raw)
        except InvalidJob as invalid:
            why = str(invalid)
        self._parsed[key] = (version, job, why)
        return job, why

    def nodes_for(self, uid: str) -> Nodes:
        """The snapshot as this job sees it: what others have claimed and not yet created is taken."""
        return self._fleet.nodes(self._reserved(but=uid))

    def offer(self, uid: str) -> Placement | Refusal | None:
        """The answer to a waiting job; None when it does not stand in line."""
        overdue = self._stale and self._clock.monotonic() - self._planned_at >= STALE_SECONDS
        if overdue or uid not in self._offers:
            self._answer(but=uid)
        return self._offers.get(uid)

    def room(self) -> Room:
        """What spares have to do with those who wait."""
        overdue = self._stale and self._clock.monotonic() - self._planned_at >= STALE_SECONDS
        if overdue or self._room is None:
            self._answer(but="")
        return self._room or Room()

    def look_again(self) -> None:
        """What has changed may have made room for somebody who was refused, and nobody may ask for long."""
        if self._refused and (self._stale or not self._offers):
            self._answer(but="")

    def _answer(self, but: str) -> None:
        """New answers; jobs that were refused and have a place now are told so, `but` the one that asks."""
        self._stale, self._planned_at = False, self._clock.monotonic()
        called_before = self._room.called_in if self._room is not None else frozenset()
        self._offers = self._plan()
        self._wake_owners(called_before)
        refused = {uid for uid, answer in self._offers.items() if isinstance(answer, Refusal)}
        for uid in (self._refused - refused - {but}) & self._offers.keys():
            self._on_offer(uid)
        self._refused = refused

    def _plan(self) -> Mapping[str, Placement | Refusal]:
        queue: list[Queued] = []
        settled = True
        live: set[JobKey] = set()
        for raw in self._fleet.jobs():
            meta = raw["metadata"]
            key = JobKey(meta["namespace"], meta["name"])
            live.add(key)
            job, _ = self.read(key, raw)
            if job is None or job.status.finished or job.metadata.deletion_timestamp is not None:
                continue
            if job.status.is_true(ConditionType.ADMITTED):
                settled = settled and self.memory(job.metadata.uid).passed
                continue
            queued = self._queued(job)
            if queued is not None:
                queue.append(queued)
        for gone in self._parsed.keys() - live:
            del self._parsed[gone]
        nodes = self._fleet.nodes(self._reserved(but=""))
        answers = plan_admissions(queue, nodes, settled)
        if not settled:
            self._room = Room(for_spares=False)
            return answers
        line = Line(queue, answers, self._unplaceable())
        self._room = room(line, self._spares() if queue or line.unplaceable else [], nodes)
        return with_room(answers, self._room)

    def _wake_owners(self, called_before: frozenset[str]) -> None:
        called = self._room.called_in - called_before if self._room is not None else frozenset()
        if called:
            for owner in {spare.job_uid for spare in self._spares() if spare.uid in called}:
                self._on_offer(owner)

    def _live_jobs(self) -> Iterator[TrainingJob]:
        """Jobs that hold their nodes."""
        for raw in self._fleet.jobs():
            job, _ = self.read(JobKey(raw["metadata"]["namespace"], raw["metadata"]["name"]), raw)
            if job is not None and job.status.is_true(ConditionType.ADMITTED) and not job.status.finished:
                yield job

    def _spares(self) -> list[HeldSpare]:
        """All spares that hold a node now."""
        return [
            HeldSpare(
                record.uid,
                record.name,
                job.metadata.uid,
                f"{job.metadata.namespace}/{job.metadata.name}",
                record.node,
                record.requests,
            )
            for job in self._live_jobs()
            if job.spec.spares
            for record in self._fleet.pod_records(job.metadata.uid)
            if record.pod is not None and record.pod.spare and record.pod.alive
        ]

    def _unplaceable(self) -> list[Need]:
        """Node ranks without a node, of jobs that hold all others."""
        needs = []
        for job in self._live_jobs():
            uid = job.metadata.uid
            decided = self.memory(uid).decided
            if decided is None or decided.reason != Reason.UNPLACEABLE:
                continue
            pods = [pod for pod in self._fleet.pods(uid) if pod.alive]
            held = {pod.node: HELD for pod in pods}
            ranks = {pod.node_rank for pod in pods if not pod.spare and pod.node_rank < job.spec.num_nodes}
            away = avoided(job, self._clock.now()) | held
            request = gang_request(job.spec.template, job.spec.num_nodes - len(ranks), away)
            needs.append(Need(uid, request))
        return needs

    def _queued(self, job: TrainingJob) -> Queued | None:
        if job.spec.suspend or KUEUE_LABEL in job.metadata.labels:
            return None
        if fresh_rejection(self.memory(job.metadata.uid).rejections, self._clock.now()) is not None:
            return None  # it cannot start now, so it may not hold a place against others
        world = World(job.metadata.uid, job, accelerators=self._accelerators)
        if why_invalid(world, job):
            return None
        away = avoided(job, self._clock.now())
        try:
            request = gang_request(job.spec.template, job.spec.num_nodes, away)
        except BadQuantity:
            return None
        created = job.metadata.creation_timestamp or self._clock.now()
        meta = job.metadata
        return Queued(meta.uid, meta.namespace, meta.name, created, request)

    def _reserved(self, but: str) -> dict[str, Resources]:
        """Per node what jobs other than `but` have claimed and whose pods are not in the picture yet."""
        taken: dict[str, dict[str, int]] = {}
        for raw in self._fleet.jobs():
            uid = raw["metadata"]["uid"]
            memory = self._memories.get(uid)
            if uid == but or memory is None or memory.claim is None:
                continue
            # Claims of spares go by slot, beyond every node rank.
            pods = [pod for pod in self._fleet.pods(uid) if pod.alive]
            here = {pod.slot if pod.spare else pod.node_rank for pod in pods}
            request = pod_request(raw["spec"]["template"])
            for rank, node in memory.claim.nodes.items():
                if rank not in here:
                    on_node = taken.setdefault(node, {})
                    for name, amount in request.items():
                        on_node[name] = on_node.get(name, 0) + amount
        return dict(taken)

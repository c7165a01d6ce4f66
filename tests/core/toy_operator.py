"""The shell in miniature: observe, decide, intent first, actions with deletions first, one status write.

Every write may conflict, every reply may be lost, and the operator may die before or after anything it does.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from rerail_api.status import ConditionType, TrainingJobStatus
from rerail_operator.core.admission import Queued, plan_admissions
from rerail_operator.core.decide import decide
from rerail_operator.core.gang import seats
from rerail_operator.core.overlay import overlaid
from rerail_operator.core.placement import HELD, gang_request
from rerail_operator.core.plan import (
    Action,
    Advise,
    AskStacks,
    CreatePod,
    DeleteGang,
    DeletePod,
    DryRunPod,
    FreezeTemplate,
    OrderFinish,
    OrderJoin,
    OrderRun,
    Plan,
    PromoteSpare,
)
from rerail_operator.core.publish import is_passing, write_due
from rerail_operator.core.queueing import CREATE_SPARE, NAME_TAKEN
from rerail_operator.core.reasons import Reason
from rerail_operator.core.room import HeldSpare, Line, Need, Room, room, with_room
from rerail_operator.core.waiting import avoided
from rerail_operator.core.world import SPARE, Agent, Nodes, Placement, Pod, PodPhase, Rejection, World

from . import ground
from .toy_cluster import ToyCluster

STRUCTURAL = (CreatePod, PromoteSpare, DeletePod, DeleteGang, FreezeTemplate, DryRunPod)
SETTLES_WITHIN = 12


class Crash(Exception):
    """The operator's process ends here."""


class LostReply(Exception):
    """It may or may not have happened: the pass ends, the queue will call again."""


@dataclass
class Mind:
    """What a running operator knows of one job and may forget at any time."""

    memory: dict[str, datetime] = field(default_factory=dict)
    decided: TrainingJobStatus | None = None
    claim: Placement | None = None
    frozen: str = ""  # the template revision that was read back
    tried: str = ""  # the generation whose dry run passed
    rejections: tuple[Rejection, ...] = ()
    rejected_in: int = 0  # the round that they speak of
    written_at: datetime | None = None
    unwritten_since: datetime | None = None
    due: datetime | None = None
    passed: bool = False  # looked at since the operator began
    changes_seen: int = -1


Witness = Callable[[str, World, Plan], None]


@dataclass
class ToyOperator:
    cluster: ToyCluster
    rng: random.Random
    witness: Witness
    trouble: float = 0.0  # how likely any single write goes wrong
    quota_until: datetime | None = None
    minds: dict[str, Mind] = field(default_factory=dict)
    picture: dict[str, Agent] = field(default_factory=dict)
    leading_since: datetime | None = None
    down_until: datetime | None = None

    def restart(self, seconds: float) -> None:
        """All that was in memory is lost; agents come back one by one."""
        now = self.cluster.now
        self.minds.clear()
        self.picture.clear()
        self.down_until = now + timedelta(seconds=seconds)
        self.leading_since = self.down_until
        for agent in self.cluster.agents.values():
            agent.reaches_at = max(
                agent.reaches_at, self.down_until + timedelta(seconds=self.rng.uniform(0, 4))
            )

    def look(self) -> None:
        """Every job that is due gets its pass."""
        now = self.cluster.now
        if self.down_until is not None and now < self.down_until:
            return
        self.leading_since = self.leading_since or now
        self._hear()
        for uid in list(self.cluster.jobs):
            mind = self.minds.setdefault(uid, Mind())
            if mind.changes_seen == self.cluster.changes and mind.due is not None and now < mind.due:
                continue
            try:
                self._settle(uid, mind)
            except Crash:
                self.restart(self.rng.uniform(0.5, 8))
                return
            except LostReply:
                mind.due = now + timedelta(seconds=1)

    def _hear(self) -> None:
        reached = {agent.uid: agent for agent in self.cluster.reached()}
        for uid, agent in reached.items():
            self.picture[uid] = agent.view(self.cluster.now)
        for uid, known in list(self.picture.items()):
            if uid not in self.cluster.pods:
                del self.picture[uid]
            elif uid not in reached and known.connected:
                self.picture[uid] = replace(known, connected=False)
                self.cluster.changes += 1

    def _settle(self, uid: str, mind: Mind) -> None:
        """Passes until nothing structural is left to do now: same world, same plan, so it must end."""
        for _ in range(SETTLES_WITHIN):
            if uid not in self.cluster.jobs:
                return
            plan = self._pass(uid, mind)
            wait = plan.requeue_after or timedelta(seconds=30)
            mind.due = self.cluster.now + max(wait, timedelta(seconds=0.1))
            mind.changes_seen = self.cluster.changes
            self._hear()
            if not plan.intent and not any(isinstance(a, STRUCTURAL) for a in plan.actions):
                return
        raise AssertionError(f"job {uid} does not come to rest: {plan.because}; {plan.actions}")

    # -- observe

    def world(self, uid: str) -> World:
        job, mind = self.cluster.jobs[uid], self.minds.setdefault(uid, Mind())
        pods = tuple(p.seen for p in self.cluster.pods.values() if p.job == uid)
        if mind.rejected_in != job.status.round:
            mind.rejections, mind.rejected_in = (), job.status.round
        offer = None
        job = job.model_copy(update={"status": overlaid(job.status, mind.decided)})
        waiting = not job.status.is_true(ConditionType.ADMITTED) and not job.spec.suspend
        asks = Room()
        if waiting and not job.status.finished:
            offer = self._offers()[0].get(uid)
        elif job.spec.spares and not job.status.finished:
            asks = self._offers()[1]
        return World(
            uid=uid,
            job=job,
            pods=pods,
            agents={p.uid: self.picture[p.uid] for p in pods if p.uid in self.picture},
            nodes=self.nodes(besides=uid),
            offer=offer,
            template_frozen=mind.frozen == (job.status.template_revision or "?"),
            dry_run_passed=mind.tried == str(job.metadata.generation),
            rejections=mind.rejections,
            leading_since=self.leading_since,
            claim=mind.claim,
            memory=dict(mind.memory),
            accelerators=(ground.GPU,),
            called_in=asks.called_in,
            room_for_spares=asks.for_spares,
        )

    def reserved(self, besides: str = "") -> Iterator[str]:
        """Nodes that other jobs have claimed and not filled yet."""
        for uid, mind in self.minds.items():
            job = self.cluster.jobs.get(uid)
            if uid == besides or job is None or mind.claim is None or job.status.finished:
                continue
            if job.status.is_true(ConditionType.ADMITTED):
                spares = {p.seen.slot for p in self.cluster.pods.values() if p.job == uid and p.seen.alive}
                new = {slot for slot in mind.claim.nodes if slot >= job.spec.num_nodes} - spares
                yield from (
                    mind.claim.nodes[rank]
                    for rank in [*self._unfilled(uid), *new]
                    if rank in mind.claim.nodes
                )

    def _unfilled(self, uid: str) -> list[int]:
        job = self.cluster.jobs[uid]
        pods = tuple(p.seen for p in self.cluster.pods.values() if p.job == uid)
        return [s.node_rank for s in seats(World(uid, job, pods=pods), job.spec.num_nodes) if not s.filled]

    def nodes(self, besides: str = "") -> Nodes:
        pods = [p.seen for p in self.cluster.pods.values()]
        full = {p.node for p in pods if not p.ended and (p.bound or not p.deleting)} | set(
            self.reserved(besides)
        )
        return Nodes(
            {
                node.name: ground.a_node(
                    node.name,
                    free_gpus=0 if node.name in full or node.foreign else 8,
                    ready=node.ready,
                    schedulable=not node.cordoned,
                )
                for node in self.cluster.nodes.values()
            }
        )

    def _offers(self) -> Any:
        now, queue, settled = self.cluster.now, [], True
        for uid, job in self.cluster.jobs.items():
            status = job.status
            if status.finished or job.spec.suspend:
                continue
            if status.is_true(ConditionType.ADMITTED):
                settled = settled and self.minds.setdefault(uid, Mind()).passed
            elif not any(p.job == uid and not p.seen.ended for p in self.cluster.pods.values()):
                request = gang_request(job.spec.template, job.spec.num_nodes, avoided(job, now))
                created = job.metadata.creation_timestamp or now
                queue.append(Queued(uid, "team", job.metadata.name, created, request))
        nodes = self.nodes()
        answers = plan_admissions(queue, nodes, settled)
        if not settled:
            return answers, Room(for_spares=False)
        found = room(Line(queue, answers, self._unplaceable()), self._spares(), nodes)
        return with_room(answers, found), found

    def _unplaceable(self) -> list[Need]:
        needs = []
        for uid, job in self.cluster.jobs.items():
            decided = self.minds[uid].decided if uid in self.minds else None
            if decided is None or decided.reason != Reason.UNPLACEABLE or job.status.finished:
                continue
            held = {p.seen.node: HELD for p in self.cluster.pods.values() if p.job == uid and p.seen.alive}
            away = avoided(job, self.cluster.now) | held
            short = len(self._unfilled(uid))
            if short:
                needs.append(Need(uid, gang_request(job.spec.template, short, away)))
        return needs

    def _spares(self) -> list[HeldSpare]:
        return [
            HeldSpare(pod.seen.uid, pod.seen.name, pod.job, pod.job, pod.seen.node, ground.ROOM)
            for pod in self.cluster.pods.values()
            if pod.seen.spare and pod.seen.alive
        ]

    # -- decide, apply, publish

    def _pass(self, uid: str, mind: Mind) -> Plan:
        world = self.world(uid)
        assert world.job is not None
        plan = decide(world, self.cluster.now)
        self.witness(uid, world, plan)
        version = world.job.metadata.resource_version
        self._remember(mind, plan)  # as the shell does: before it is known what becomes of the plan
        if plan.intent:
            assert plan.status is not None and plan.actions == ()
            self._write(uid, plan, version, mind)
            return plan
        for action in sorted(plan.actions, key=lambda a: not isinstance(a, (DeletePod, DeleteGang))):
            self._fate(lambda action=action: self._apply(uid, action, mind))  # type: ignore[misc]
        if plan.status is not None:
            now, stored = self.cluster.now, self.cluster.jobs[uid].status
            since = now - (mind.written_at or now - timedelta(hours=1))
            passing = is_passing(stored, plan.status)
            mind.unwritten_since = (mind.unwritten_since or now) if passing else None
            if write_due(stored, plan.status, since, now - (mind.unwritten_since or now)):
                self._write(uid, plan, version, mind)
        return plan

    def _remember(self, mind: Mind, plan: Plan) -> None:
        mind.memory, mind.passed = dict(plan.memory), True
        if plan.status is not None:
            mind.decided = plan.status
        if plan.placement is not None:
            mind.claim = plan.placement
        elif plan.status is None or not plan.status.is_true(ConditionType.ADMITTED):
            mind.claim = None

    def _write(self, uid: str, plan: Plan, version: str, mind: Mind) -> None:
        assert plan.status is not None
        status = plan.status
        if self.rng.random() < self.trouble:
            # Somebody else wrote in between: the guard must hold.
            self.cluster.change_spec(uid)
        stored = []
        self._fate(lambda: stored.append(self.cluster.write_status(uid, status, version)))
        if not all(stored):
            raise LostReply
        mind.written_at = self.cluster.now

    def _fate(self, act: Callable[[], object]) -> None:
        """Do it; or do not; or do it and never learn of it; or die before or after it."""
        roll = self.rng.random() / self.trouble if self.trouble else 9.0
        if roll < 0.2:
            raise Crash
        if roll < 0.5:
            raise LostReply
        act()
        if roll < 0.7:
            raise Crash
        if roll < 1.0:
            raise LostReply

    def _apply(self, uid: str, action: Action, mind: Mind) -> None:
        cluster, job = self.cluster, self.cluster.jobs[uid]
        match action:
            case CreatePod(name, node, rank, slot, round_):
                spare = rank == SPARE
                if self.quota_until is not None and cluster.now < self.quota_until:
                    about = CREATE_SPARE if spare else "CreatePod"
                    self._refuse(uid, mind, Rejection(about, "exceeded quota", cluster.now, True, name))
                    return
                pod = Pod(name, "", rank, round_, round_, slot, PodPhase.PENDING, node)
                if not cluster.create_pod(uid, pod) and not self._is_ours(uid, name):
                    about = CREATE_SPARE if spare else NAME_TAKEN
                    self._refuse(uid, mind, Rejection(about, "exists", cluster.now, pod_name=name))
            case PromoteSpare(_, pod_uid, _, rank, round_):
                cluster.promote(pod_uid, rank, round_)
            case DeletePod(_, pod_uid):
                cluster.delete_pod(pod_uid)
            case DeleteGang():
                for pod_uid in [u for u, p in cluster.pods.items() if p.job == uid]:
                    cluster.delete_pod(pod_uid)
            case FreezeTemplate(name):
                mind.frozen = name
            case DryRunPod():
                mind.tried = str(job.metadata.generation)
            case OrderJoin(uids, round_):
                for pod_uid in uids:
                    cluster.tell(pod_uid, ("join", round_, None))
            case OrderRun(releases, round_):
                for pod_uid, release in releases.items():
                    cluster.tell(pod_uid, ("run", round_, release))
            case Advise(uids, round_, seconds):
                for pod_uid in uids:
                    cluster.advise(pod_uid, round_, seconds)
            case OrderFinish(uids, code, _):
                for pod_uid in uids:
                    cluster.tell(pod_uid, ("finish", code, None))
            case AskStacks():
                pass  # toy agents never answer: five seconds later it is decided without their word
            case _:
                raise AssertionError(f"this life knows no {action}")

    def _is_ours(self, uid: str, name: str) -> bool:
        return any(p.seen.name == name and p.job == uid for p in self.cluster.pods.values())

    def _refuse(self, uid: str, mind: Mind, rejection: Rejection) -> None:
        mind.rejections = (*mind.rejections, rejection)
        mind.rejected_in = self.cluster.jobs[uid].status.round
        self.cluster.changes += 1

"""The one place that performs actions: exhaustive, deletions first, bounded per pass."""

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

from rerail_api.contract import BUCKETS, LABEL_BIRTH_ROUND, LABEL_JOB_UID, LABEL_NODE_RANK
from rerail_api.v1alpha1 import TrainingJob
from rerail_operator.core import names
from rerail_operator.core.manifests import (
    Endpoint,
    PodSpecInput,
    agent_config_map,
    controller_revision,
    frozen_template,
    pod_manifest,
)
from rerail_operator.core.plan import (
    Action,
    Advise,
    AskStacks,
    CreatePod,
    DeleteGang,
    DeleteJob,
    DeletePod,
    DryRunPod,
    FreezeTemplate,
    OrderFinish,
    OrderJoin,
    OrderRun,
    PromoteSpare,
)
from rerail_operator.core.queueing import CREATE_SPARE, NAME_TAKEN, shape_hash
from rerail_operator.core.template_facts import num_proc
from rerail_operator.core.world import SPARE, Rejection, Release

from .clock import Clock
from .cluster import AlreadyExists, Cluster, Conflict, Kind, NotFound, Object, Rejected
from .jobmemory import JobMemory

log = logging.getLogger(__name__)

MAX_ACTIONS = 512
MAX_SECONDS = 2.0
LANES = 128  # calls of one pass at a time; how many the server sees, the adapter decides
PICTURE_LAG_SECONDS = 2.0


class Orders(Protocol):
    """The coordinator's side that apply needs."""

    def send(self, pod_uid: str, order: dict[str, object]) -> bool: ...

    def mention(self, pod_uid: str, frame: dict[str, object]) -> None: ...


class Sightings(Protocol):
    """The fleet's side that apply needs: what a reply told goes into the picture at once."""

    def note_pod(self, raw: Object) -> None: ...


@dataclass(frozen=True, slots=True)
class Making:
    """What every pod of this operator is made with."""

    endpoint: Endpoint
    accelerators: tuple[str, ...]
    agent: bytes
    ca_pem: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """The job that actions are for: `job` is None when its object is gone."""

    namespace: str
    name: str
    uid: str
    job: TrainingJob | None
    memory: JobMemory


class Applier:
    """Performs plans. Raises ClusterError (Unavailable, Conflict) for what must be tried again."""

    def __init__(
        self, cluster: Cluster, orders: Orders, sightings: Sightings, making: Making, clock: Clock
    ) -> None:
        self._cluster = cluster
        self._orders = orders
        self._sightings = sightings
        self._making = making
        self._clock = clock

    async def apply(self, target: Target, actions: Sequence[Action]) -> bool:
        """Perform `actions`, deletions first; False when the bounds of a pass left some undone."""
        ordered = sorted(actions, key=_urgency)
        begun = self._clock.monotonic()
        calls: list[Action] = []
        for action in ordered:
            if isinstance(action, OrderJoin | OrderRun | Advise | AskStacks | OrderFinish):
                self._order(action)
            else:
                calls.append(action)
        done = 0
        while done < len(calls):
            if done >= MAX_ACTIONS or self._clock.monotonic() - begun > MAX_SECONDS:
                return False
            # One kind at a time, so that no create overtakes a deletion.
            batch = [a for a in calls[done:MAX_ACTIONS] if _urgency(a) == _urgency(calls[done])]
            done += await self._perform(target, batch, begun + MAX_SECONDS)
        return True

    async def _perform(self, target: Target, batch: Sequence[Action], until: float) -> int:
        """Calls side by side; none begins after `until`, all that began are awaited. How many began."""
        left = iter(batch)
        begun = 0

        async def lane() -> None:
            nonlocal begun
            while self._clock.monotonic() <= until and (action := next(left, None)) is not None:
                begun += 1
                await self._call(target, action)

        await _all([lane() for _ in range(min(LANES, len(batch)))])
        return begun

    def _order(self, action: OrderJoin | OrderRun | Advise | AskStacks | OrderFinish) -> None:
        match action:
            case OrderJoin(pod_uids, round_):
                self._all_are_told(pod_uids, {"do": "join", "round": round_})
            case OrderRun(releases, round_):
                for uid, release in releases.items():
                    body = _release(release)
                    self._orders.send(uid, {"do": "run", "round": round_, "release": body})
            case Advise(pod_uids, round_, seconds):
                for uid in pod_uids:
                    self._orders.mention(
                        uid, {"kind": "advice", "round": round_, "checkpoint_seconds": seconds}
                    )
            case AskStacks(pod_uids, round_, step):
                for uid in pod_uids:
                    self._orders.mention(uid, {"kind": "stacks", "round": round_, "step": step})
            case OrderFinish(pod_uids, code, message):
                self._all_are_told(pod_uids, {"do": "finish", "code": code, "message": message})
            case _:
                assert_never(action)

    def _all_are_told(self, pod_uids: Sequence[str], order: dict[str, object]) -> None:
        """One order for many: the same object, so that it is put into words once."""
        for uid in pod_uids:
            self._orders.send(uid, order)

    async def _call(self, target: Target, action: Action) -> None:
        match action:
            case CreatePod():
                await self._create(target, action)
            case PromoteSpare():
                await self._promote(target, action)
            case DeletePod(name, uid, grace, _):
                await self._gone(
                    self._cluster.delete(Kind.POD, target.namespace, name, uid=uid, grace_seconds=grace)
                )
            case DeleteGang(grace):
                await self._delete_gang(target, grace)
            case FreezeTemplate(name, template_hash):
                await self._freeze(target, name, template_hash)
            case DryRunPod(node):
                await self._dry_run(target, node)
            case DeleteJob():
                await self._gone(
                    self._cluster.delete(Kind.JOB, target.namespace, target.name, uid=target.uid)
                )
            case OrderJoin() | OrderRun() | Advise() | AskStacks() | OrderFinish():
                self._order(action)
            case _:
                assert_never(action)

    async def _gone(self, call: Awaitable[None]) -> None:
        try:
            await call
        except NotFound:
            log.debug("already gone")

    async def _delete_gang(self, target: Target, grace: int | None) -> None:
        """All buckets. Not again within moments while no pod was created: the picture only lags behind."""
        last = target.memory.gang_deletion
        if last is not None and last[1] == grace and self._clock.monotonic() - last[0] < PICTURE_LAG_SECONDS:
            return
        await _all([self._bucket(target, n, grace) for n in range(BUCKETS)])
        target.memory.gang_deletion = (self._clock.monotonic(), grace)

    async def _bucket(self, target: Target, number: int, grace: int | None) -> None:
        labels = names.bucket_labels(target.uid, number)
        await self._cluster.delete_collection(Kind.POD, target.namespace, labels, grace_seconds=grace)

    def _manifest(self, target: Target, pod: CreatePod) -> Object:
        job = _live(target)
        template = target.memory.template or job.spec.template
        nproc = num_proc(job.spec, template, self._making.accelerators)
        if isinstance(nproc, str):
            raise Rejected(nproc)
        given = PodSpecInput(
            pod=pod,
            nproc=nproc,
            template_hash=job.status.template_hash or shape_hash(job),
            config_map=target.memory.config_map or self._config_map(job)["metadata"]["name"],
            endpoint=self._making.endpoint,
        )
        return pod_manifest(job, template, given)

    def _config_map(self, job: TrainingJob) -> Object:
        return agent_config_map(job, self._making.agent, self._making.ca_pem)

    async def _create(self, target: Target, pod: CreatePod) -> None:
        job = _live(target)
        target.memory.gang_deletion = None
        try:
            self._sightings.note_pod(
                await self._cluster.create(Kind.POD, target.namespace, self._manifest(target, pod))
            )
        except AlreadyExists:
            await self._look(target, pod)
        except Rejected as refusal:
            about = CREATE_SPARE if pod.node_rank == SPARE else "CreatePod"
            self._remember(target, about, str(refusal), refusal.retriable, pod.name)
            log.warning("%s/%s: pod %s refused: %s", target.namespace, job.metadata.name, pod.name, refusal)

    async def _look(self, target: Target, pod: CreatePod) -> None:
        """A pod of that name is there. Ours from a lost reply is a success; any other means a new round."""
        try:
            found = await self._cluster.get(Kind.POD, target.namespace, pod.name)
        except NotFound:
            return
        meta = found["metadata"]
        labels = meta.get("labels") or {}
        wanted = {
            LABEL_JOB_UID: target.uid,
            LABEL_NODE_RANK: None if pod.node_rank == SPARE else str(pod.node_rank),
            LABEL_BIRTH_ROUND: str(pod.round),
        }
        ours = all(labels.get(k) == v for k, v in wanted.items()) and not meta.get("deletionTimestamp")
        if ours:
            self._sightings.note_pod(found)
        else:
            about = CREATE_SPARE if pod.node_rank == SPARE else NAME_TAKEN
            self._remember(target, about, f"pod {pod.name} exists", True, pod.name)

    async def _promote(self, target: Target, spare: PromoteSpare) -> None:
        """Give a spare its node rank. One that is gone, going or taken is left for the next pass to see."""
        version = spare.resource_version
        try:
            self._sightings.note_pod(await self._relabel(target, spare, version))
        except NotFound:
            log.info("%s/%s: spare %s is gone", target.namespace, target.name, spare.name)
        except Conflict:
            # Mostly the kubelet's status came in between. What it was promoted to, if it was, must stay.
            await self._promote_after_a_look(target, spare)

    async def _promote_after_a_look(self, target: Target, spare: PromoteSpare) -> None:
        try:
            found = await self._cluster.get(Kind.POD, target.namespace, spare.name)
        except NotFound:
            return
        meta = found["metadata"]
        free = LABEL_NODE_RANK not in (meta.get("labels") or {}) and not meta.get("deletionTimestamp")
        if meta["uid"] == spare.uid and free:
            found = await self._relabel(target, spare, meta["resourceVersion"])
        self._sightings.note_pod(found)

    async def _relabel(self, target: Target, spare: PromoteSpare, version: str) -> Object:
        labels = names.promoted_labels(spare.node_rank, spare.round)
        guard = {"uid": spare.uid, "resourceVersion": version}
        patch: Object = {"metadata": {**guard, "labels": labels}}
        return await self._cluster.patch(Kind.POD, target.namespace, spare.name, patch)

    async def _dry_run(self, target: Target, node: str) -> None:
        job = _live(target)
        round_ = job.status.round + 1
        name = names.pod_name(target.name, target.uid, round_, 0)
        try:
            manifest = self._manifest(target, CreatePod(name, node, 0, 0, round_))
            await self._cluster.create(Kind.POD, target.namespace, manifest, dry_run=True)
        except AlreadyExists:
            log.debug("dry run: %s exists; the server looked at it all the same", name)
        except Rejected as refusal:
            self._remember(target, "DryRun", str(refusal), refusal.retriable)
            return
        target.memory.dry_run_shape = shape_hash(job)

    async def _freeze(self, target: Target, revision: str, template_hash: str) -> None:
        job = _live(target)
        config_map = self._config_map(job)
        try:
            await self._ensure(Kind.CONFIG_MAP, target, config_map)
            frozen = await self._ensure(
                Kind.REVISION, target, controller_revision(job, job.spec.template, template_hash)
            )
        except Rejected as refusal:
            self._remember(target, "CreatePod", str(refusal), refusal.retriable)
            return
        target.memory.template = frozen_template(frozen)
        target.memory.template_revision = revision
        target.memory.config_map = config_map["metadata"]["name"]

    async def _ensure(self, kind: Kind, target: Target, manifest: Object) -> Object:
        try:
            return await self._cluster.create(kind, target.namespace, manifest)
        except AlreadyExists:
            return await self._cluster.get(kind, target.namespace, manifest["metadata"]["name"])

    def _remember(
        self, target: Target, action: str, message: str, retriable: bool, pod_name: str = ""
    ) -> None:
        target.memory.reject(Rejection(action, message, self._clock.now(), retriable, pod_name))


def _live(target: Target) -> TrainingJob:
    if target.job is None:
        raise RuntimeError(f"nothing may be created for {target.name}: its object is gone")
    return target.job


def _release(release: Release) -> dict[str, object]:
    return {
        "round": release.round,
        "node_rank": release.node_rank,
        "num_nodes": release.num_nodes,
        "nproc": release.nproc,
        "master_addr": release.master_addr,
        "master_port": release.master_port,
        "min_step": release.min_step,
        "checkpoint_seconds": release.checkpoint_seconds,
    }


def _urgency(action: Action) -> int:
    match action:
        case DeletePod() | DeleteGang() | DeleteJob():
            return 0
        case FreezeTemplate() | DryRunPod():
            return 1
        case PromoteSpare():
            return 2
        case CreatePod():
            return 3
        case OrderJoin() | OrderRun() | Advise() | AskStacks() | OrderFinish():
            return 4
        case _:
            assert_never(action)


async def _all(calls: list[Coroutine[Any, Any, None]]) -> None:
    """Run all to their end, then raise the first failure: no call is left running behind a pass."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result

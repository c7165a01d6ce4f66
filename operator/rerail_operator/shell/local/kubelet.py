"""The node agent of `rerail run`: pods of the in-memory cluster become processes of this machine.

One kubelet stands for all nodes. It starts what is bound, reports as a kubelet reports, and lets a node
vanish.
"""

import asyncio
import base64
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rerail_api.base import rfc3339
from rerail_api.contract import LABEL_NODE_RANK
from rerail_operator.core.world import SPARE
from rerail_operator.shell.clock import Clock
from rerail_operator.shell.cluster import Change, Expired, Kind, NotFound, Object
from rerail_operator.shell.local import podstatus, processes
from rerail_operator.shell.local.nodestatus import silent_node, unreachable
from rerail_operator.shell.local.podprocess import PodProcess
from rerail_operator.shell.local.podspec import RUN_MARK, Host, PodFolders, agent_config_map, plan_start
from rerail_operator.shell.memory import MemoryCluster

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workdir:
    """The folders of a run; made on demand, readable by this user only."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return _made(self.root / "checkpoints")

    @property
    def logs(self) -> Path:
        return _made(self.root / "logs")

    @property
    def token(self) -> Path:
        return self.root / "token"

    @property
    def state(self) -> Path:
        return self.root / "job.json"

    def pod(self, name: str) -> Path:
        return _made(self.root / "pods" / name)


@dataclass(slots=True)
class _Life:
    """A pod that this kubelet has started to take care of."""

    process: PodProcess
    node: str
    node_rank: int  # or SPARE
    task: "asyncio.Task[None] | None" = None
    ending: bool = False
    forgotten: bool = False  # its node has vanished: nobody reports any more
    end_task: "asyncio.Task[None] | None" = field(default=None)


class ProcessKubelet:
    """Watches the cluster's pods and keeps one process tree per pod that is bound to a living node."""

    def __init__(
        self,
        cluster: MemoryCluster,
        host: Host,
        workdir: Workdir,
        clock: Clock,
        on_line: Callable[[int, str], None],
    ) -> None:
        self._cluster = cluster
        self._host = host
        self._workdir = workdir
        self._clock = clock
        self._on_line = on_line
        self._lives: dict[str, _Life] = {}
        self._lost: set[str] = set()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self, grace_seconds: float = 0.0) -> list[int]:
        """End every pod: SIGTERM and grace if there is any, then SIGKILL; pids that are left (none, ever)."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        living = [life for life in self._lives.values() if life.task and not life.task.done()]
        if grace_seconds > 0:
            for life in living:
                life.process.terminate()
            tasks = [life.task for life in living if life.task]
            if tasks:
                await asyncio.wait(tasks, timeout=grace_seconds)
        left = await processes.kill_all(self.members)
        pending = [t for life in self._lives.values() for t in (life.task, life.end_task) if t]
        await asyncio.gather(*pending, return_exceptions=True)
        return left

    def members(self) -> list[int]:
        """Every living process of every pod of this run."""
        return processes.marked(RUN_MARK, self._host.run_id)

    def failure(self) -> BaseException | None:
        """The bug that ended the watch or a pod's care, if one did."""
        tasks = [self._watching, *(life.task for life in self._lives.values())]
        ended = [task for task in tasks if task and task.done() and not task.cancelled()]
        return next((task.exception() for task in ended if task.exception()), None)

    def pod_of(self, node_rank: int) -> str | None:
        """The UID of the living pod that holds a node rank."""
        return next(
            (
                uid
                for uid, life in self._lives.items()
                if life.node_rank == node_rank and not life.ending and life.task and not life.task.done()
            ),
            None,
        )

    def node_of(self, node_rank: int) -> str | None:
        """The node where the pod of a node rank runs."""
        uid = self.pod_of(node_rank)
        return self._lives[uid].node if uid else None

    def processes_of(self, pod_uid: str) -> list[int]:
        """The living processes of a pod."""
        return self._lives[pod_uid].process.members()

    async def lose(self, node: str) -> None:
        """The node vanishes with all its processes at once; nobody reports for it any more."""
        self._lost.add(node)
        gone = [life for life in self._lives.values() if life.node == node]
        for life in gone:
            life.forgotten = True
        for life in gone:
            await life.process.kill()
        self._cluster.set_node_status(node, silent_node(rfc3339(self._clock.now())))
        taint = {"spec": {"taints": unreachable(rfc3339(self._clock.now()))}}
        await self._cluster.patch(Kind.NODE, "", node, taint)

    async def _watch(self) -> None:
        while True:
            listing = await self._cluster.list(Kind.POD)
            for pod in listing.items:
                self._seen(pod)
            try:
                async for event in self._cluster.watch(Kind.POD, listing.resource_version):
                    if event.change in (Change.ADDED, Change.MODIFIED):
                        self._seen(event.object)
            except Expired:
                continue

    def _seen(self, pod: Object) -> None:
        metadata, node = pod["metadata"], pod["spec"].get("nodeName")
        uid: str = metadata["uid"]
        if not node or node in self._lost:
            return
        life = self._lives.get(uid)
        if life is None:
            life = self._adopt(pod)
            life.task = asyncio.create_task(self._live(pod, life))
        life.node_rank = _node_rank(metadata)  # a spare may have been given one
        if "deletionTimestamp" in metadata and not life.ending:
            life.ending = True
            grace = float(metadata.get("deletionGracePeriodSeconds") or 0)
            life.end_task = asyncio.create_task(self._end(uid, life, grace))

    def _adopt(self, pod: Object) -> _Life:
        metadata = pod["metadata"]
        uid: str = metadata["uid"]
        process = PodProcess(
            uid,
            self._workdir.logs / f"{metadata['name']}.log",
            self._clock,
            lambda line: self._on_line(self._lives[uid].node_rank, line),
        )
        return self._lives.setdefault(uid, _Life(process, pod["spec"]["nodeName"], _node_rank(metadata)))

    async def _live(self, pod: Object, life: _Life) -> None:
        uid = pod["metadata"]["uid"]
        if "deletionTimestamp" in pod["metadata"]:
            return
        folders = await self._folders(pod)
        start = plan_start(pod, self._host, folders)
        for sentence in start.left_aside:
            self._on_line(life.node_rank, f"rerail run: {sentence}")
        try:
            await life.process.start(start)
        except OSError as error:
            why = f"cannot start {start.argv[0]}: {error}"
            self._report(life, uid, podstatus.cannot_start(why, self._clock.now()))
            return
        self._report(life, uid, podstatus.running(life.process.started))
        end = await life.process.wait(folders.termination_log)
        self._report(life, uid, podstatus.ended(end))

    async def _end(self, uid: str, life: _Life, grace_seconds: float) -> None:
        """A graceful deletion: SIGTERM, grace, SIGKILL, and only then the object goes."""
        assert life.task is not None  # noqa: S101 - set where the pod was adopted
        if grace_seconds > 0:
            life.process.terminate()
            await asyncio.wait([life.task], timeout=grace_seconds)
        await life.process.kill()
        await asyncio.wait([life.task])
        if not life.forgotten:
            self._cluster.confirm_deleted(uid)

    def _report(self, life: _Life, uid: str, status: Object) -> None:
        if life.forgotten:
            return
        try:
            self._cluster.set_pod_status(uid, status)
        except NotFound:
            log.debug("pod %s was gone before its status", uid)

    async def _folders(self, pod: Object) -> PodFolders:
        metadata = pod["metadata"]
        base = self._workdir.pod(metadata["name"])
        return PodFolders(
            agent=await self._agent_folder(pod, base),
            token=self._workdir.token,
            checkpoints=self._workdir.checkpoints,
            termination_log=base / "termination-log",
            tmp=_made(base / "tmp"),
        )

    async def _agent_folder(self, pod: Object, base: Path) -> Path:
        """The pod's agent comes from its ConfigMap, as on a cluster."""
        folder = _made(base / "agent")
        name = agent_config_map(pod)
        if name is None:
            return folder
        found = await self._cluster.get(Kind.CONFIG_MAP, pod["metadata"]["namespace"], name)
        for key, text in (found.get("binaryData") or {}).items():
            (folder / key).write_bytes(base64.b64decode(text))
        for key, text in (found.get("data") or {}).items():
            (folder / key).write_text(text, encoding="utf-8")
        return folder


def _node_rank(metadata: Object) -> int:
    return int((metadata.get("labels") or {}).get(LABEL_NODE_RANK, SPARE))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def owner_only(path: Path, text: str) -> None:
    """Write a secret into a file that only this user can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)

"""Keeps a world of a run as a file: the one that decided an incident, the newest on demand (SIGUSR1)."""

import asyncio
import logging
from datetime import datetime
from pathlib import Path

from rerail_operator.core.plan import Plan
from rerail_operator.core.world import World
from rerail_operator.shell.clock import Clock
from rerail_operator.shell.cluster import Kind
from rerail_operator.shell.keys import JobKey
from rerail_operator.shell.memory import MemoryCluster
from rerail_operator.shell.snapshot import snapshot, write_snapshot

log = logging.getLogger(__name__)


class Camera:
    """Without a path it looks and keeps nothing."""

    def __init__(self, cluster: MemoryCluster, clock: Clock, path: Path | None) -> None:
        self._cluster = cluster
        self._clock = clock
        self._path = path
        self._newest: tuple[World, datetime] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._taken = False

    def passed(self, key: JobKey, world: World, plan: Plan) -> None:
        """The engine's hook, called in the middle of every pass."""
        if self._path is None or world.job is None:
            return
        self._newest = (world, self._clock.now())
        before = world.job.status.incidents
        if plan.status is not None and len(plan.status.incidents) > len(before):
            self.take()

    def take(self) -> None:
        """Write the newest world that a pass has seen."""
        if self._path is not None and self._newest is not None:
            task = asyncio.get_running_loop().create_task(self._write(self._path, *self._newest))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Write what is still to be written; without any incident the last world."""
        if not self._taken:
            self.take()
        await asyncio.gather(*self._tasks)

    async def _write(self, path: Path, world: World, now: datetime) -> None:
        self._taken = True
        pods = await self._cluster.list(Kind.POD)
        nodes = await self._cluster.list(Kind.NODE)
        try:
            write_snapshot(path, snapshot(world, pods.items, nodes.items, now))
        except OSError as error:
            log.warning("%s: cannot be written: %s", path, error)

"""The operator inside a run: engine, claims and queue exactly as in a cluster, told to lead at once."""

import asyncio
from collections.abc import Callable

from rerail_agent.bundle import build
from rerail_operator.core.manifests import Endpoint
from rerail_operator.core.plan import Plan
from rerail_operator.core.world import World
from rerail_operator.shell.apply import Making
from rerail_operator.shell.clock import Clock
from rerail_operator.shell.coordinator import Coordinator
from rerail_operator.shell.engine import Engine, EngineSettings
from rerail_operator.shell.keys import JobKey
from rerail_operator.shell.leader import AlwaysLeader
from rerail_operator.shell.memory import MemoryCluster
from rerail_operator.shell.settings import DEFAULT_ACCELERATORS

PassHook = Callable[[JobKey, World, Plan], None]


class Operating:
    """One engine for one run. Made before its coordinator, which it listens to."""

    def __init__(self, cluster: MemoryCluster, clock: Clock) -> None:
        self._cluster = cluster
        self._clock = clock
        self._engine: Engine | None = None
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def agent_changed(self, job_uid: str) -> None:
        """What the coordinator calls when an agent says something new."""
        if self._engine is not None:
            self._engine.agent_changed(job_uid)

    def start(self, coordinator: Coordinator, address: str, on_pass: PassHook) -> None:
        """Begin to act; agents find the coordinator at `address` (host:port, no TLS)."""
        making = Making(
            endpoint=Endpoint(address, tls=False), accelerators=DEFAULT_ACCELERATORS, agent=build()
        )
        settings = EngineSettings(making, workers=1)
        self._engine = Engine(self._cluster, coordinator, AlwaysLeader(), settings, self._clock)
        self._engine.on_pass.append(on_pass)
        self._task = asyncio.create_task(self._engine.run(self._ended))

    def failure(self) -> BaseException | None:
        """What ended the engine although nobody asked it to."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    async def stop(self) -> None:
        """Stop acting; the cluster is left as it is."""
        self._ended.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

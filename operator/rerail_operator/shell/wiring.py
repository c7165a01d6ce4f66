"""All parts of the operator's process, put together; the order in which they start and end.

A lost Lease ends the process at once and without any clean-up that writes: somebody else may lead already.
"""

import asyncio
import gc
import logging
import os
import ssl
from collections.abc import Coroutine
from typing import Any

from rerail_agent.bundle import build
from rerail_operator.core.manifests import Endpoint

from .apply import Making
from .clock import SystemClock
from .cluster import ClusterError
from .coordinator import Coordinator
from .crdcheck import crd_problem
from .engine import Engine, EngineSettings
from .events import EventRecorder
from .handlers import JobServer
from .keys import JobKey
from .kube.client import KubeCluster
from .leader import Candidate, Leadership
from .metrics import Metrics
from .probes import Probes
from .settings import Settings
from .strikes.keeper import StrikeKeeper
from .tls import Authority, AuthorityUnreadable, load_or_create_authority, server_context
from .tokens import ServiceAccountVerifier
from .vitals import checks, gauges

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
SHUTDOWN_SECONDS = 20.0
LEASE_LOST = 1


def end_now(why: str) -> None:
    """The Lease is lost: not one write more."""
    log.critical("leadership is lost, the process ends: %s", why)
    logging.shutdown()
    os._exit(LEASE_LOST)


class Operator:
    """All parts of one process, and the order in which they start and end."""

    def __init__(self, settings: Settings, cluster: KubeCluster, stop: asyncio.Event) -> None:
        self._settings = settings
        self._cluster = cluster
        self._stop = stop
        self._clock = SystemClock()
        self.problems = {"authority": "not read yet", "crd": "not checked yet"}
        self._tasks: list[asyncio.Task[None]] = []
        self.engine: Engine | None = None
        self._server: JobServer | None = None
        candidate = Candidate.of_pod(
            settings.namespace, settings.lease_name, settings.pod_name, str(settings.address)
        )
        self.leadership = Leadership(cluster, self._clock, candidate, end_now)
        verifier = ServiceAccountVerifier(cluster.fetch, self._clock)
        self.coordinator = Coordinator(verifier, self._clock, self._agent_changed, self.leadership)
        self.recorder = EventRecorder(cluster, self._clock, settings.pod_name)
        self._metrics = Metrics(self._is_live, gauges(self))
        self._probes = Probes(checks(self), self._metrics.registry)
        self.failed = False

    async def run(self) -> None:
        """Until `stop`, or until a part that must not end has ended."""
        settings = self._settings
        await self._probes.start(None, settings.probe_port, settings.metrics_port)
        authority = await self._authority()
        if authority is None:
            return
        await self.coordinator.start("", settings.coordinator_port, self._tls(authority))
        self.engine = self._make_engine(authority)
        await self.engine.start()
        if await self._crd_is_right():
            await self._unless_stopped(self._lead(self.engine))
            await self._stop.wait()

    async def shut_down(self) -> None:
        """Stop acting, tell what is left to tell, give the Lease back, hang up."""
        try:
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                if self.engine is not None:
                    await self.engine.stop()
                if self.leadership.is_leader:
                    await self.recorder.flush()
                for task in self._tasks:
                    task.remove_done_callback(self._ended)
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await self.leadership.release()
                await self.coordinator.stop()
                if self._server is not None:  # writes nothing, and takes its time
                    await self._server.stop()
                await self._probes.stop()
        except TimeoutError:
            log.error("the end took too long; the Lease runs out by itself")

    # -- starting -----------------------------------------------------------------------------------------

    async def _authority(self) -> Authority | None:
        """The coordinator's authority; tried until it is there. None: told to stop before."""
        where = (self._settings.namespace, self._settings.authority_secret)
        while not self._stop.is_set():
            try:
                authority = await load_or_create_authority(self._cluster, *where, self._clock)
            except (ClusterError, AuthorityUnreadable) as error:
                self._tell("authority", f"Secret {'/'.join(where)}: {error}")
                await self._pause()
            else:
                self.problems["authority"] = ""
                return authority
        return None

    def _tls(self, authority: Authority) -> ssl.SSLContext:
        return server_context(authority, self._settings.coordinator_service.host, self._clock.now())

    def _make_engine(self, authority: Authority) -> Engine:
        settings = self._settings
        service = settings.coordinator_service
        making = Making(
            endpoint=Endpoint(str(service), tls=True, server_name=service.host),
            accelerators=settings.accelerators,
            agent=build(),
            ca_pem=authority.certificate.decode(),
        )
        engine_settings = EngineSettings(making, settings.workers, settings.bad_node_conditions)
        engine = Engine(self._cluster, self.coordinator, self.leadership, engine_settings, self._clock)
        engine.on_pass.append(self._metrics.passed)
        engine.record_with(self.recorder.record)
        return engine

    async def _crd_is_right(self) -> bool:
        """Waits for the right CRD. False: told to stop before."""
        while not self._stop.is_set():
            problem = await crd_problem(self._cluster.fetch)
            if not problem:
                self.problems["crd"] = ""
                return True
            self._tell("crd", problem)
            await self._pause()
        return False

    async def _lead(self, engine: Engine) -> None:
        """Campaign with a warm picture; once elected, act."""
        await engine.fleet.wait_synced()
        gc.collect()
        gc.freeze()
        self._spawn(self.leadership.run(), "leadership")
        await self.leadership.wait_elected()
        self._spawn(self.recorder.run(), "events")
        await self._keep_strikes(engine)
        await engine.lead()
        self._server = JobServer(engine.enqueue)
        self._server.start()

    async def _keep_strikes(self, engine: Engine) -> None:
        """Before the first pass: no job is placed on a node that has long been struck."""
        where = (self._cluster, self._settings.namespace)
        keeper = StrikeKeeper(*where, engine.fleet, self.leadership, self._clock)
        engine.on_pass.append(keeper.passed)
        await keeper.step()
        self._spawn(keeper.run(), "node strikes")

    # -- inside -------------------------------------------------------------------------------------------

    def _agent_changed(self, job_uid: str) -> None:
        if self.engine is not None:
            self.engine.agent_changed(job_uid)

    def _is_live(self, key: JobKey) -> bool:
        return self.engine is not None and self.engine.fleet.job(key) is not None

    def _tell(self, what: str, problem: str) -> None:
        if self.problems[what] != problem:
            log.error("not ready: %s", problem)
        self.problems[what] = problem

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(RETRY_SECONDS):
                await self._stop.wait()
        except TimeoutError:
            return

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        working = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for task in (working, stopped):
            if not task.done():
                task.cancel()
        results = await asyncio.gather(working, stopped, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A part that runs for ever has ended: the process is not whole any more."""
        error = None if task.cancelled() else task.exception()
        log.critical("%s has ended, the process ends with it", task.get_name(), exc_info=error)
        self.failed = True
        self._stop.set()

"""One run from its first pod to its report: watches the job, shows it, injects faults, hears Ctrl-C."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from rerail_api.v1alpha1 import Phase, parse_job
from rerail_operator.core.reasons import Reason
from rerail_operator.shell.clock import Clock
from rerail_operator.shell.cluster import Change, Expired, Kind, NotFound, Object
from rerail_operator.shell.coordinator import Coordinator
from rerail_operator.shell.local import state
from rerail_operator.shell.local.faults import Saboteur
from rerail_operator.shell.local.inject import Schedule
from rerail_operator.shell.local.kubelet import ProcessKubelet, Workdir
from rerail_operator.shell.local.screen import Screen
from rerail_operator.shell.local.view import View
from rerail_operator.shell.memory import MemoryCluster

TICK_SECONDS = 0.05
WIND_UP_SECONDS = 10.0
SUSPEND_MARGIN_SECONDS = 20.0


class Interrupts(IntEnum):
    """How urgently the person at the keyboard wants to stop."""

    NONE = 0
    SAVE = 1
    KILL = 2


class Running(Protocol):
    """The operator at work, as far as a session must know: whether it still is."""

    def failure(self) -> BaseException | None: ...


@dataclass(slots=True)
class Parts:
    """What a session is made of; all of it started."""

    cluster: MemoryCluster
    coordinator: Coordinator
    kubelet: ProcessKubelet
    operator: Running
    workdir: Workdir
    clock: Clock


@dataclass(slots=True)
class Session:
    """Ends when the job has ended, or when it has saved and stopped after a Ctrl-C."""

    parts: Parts
    view: View
    screen: Screen
    schedule: Schedule
    saboteur: Saboteur
    interrupts: Interrupts = Interrupts.NONE
    injected: list[str] = field(default_factory=list)
    _suspend_at: float = 0.0

    async def run(self) -> None:
        """Follow the job to its end. Raises whatever bug ended the operator or the kubelet."""
        watching = asyncio.create_task(self._watch_job())
        try:
            while not self._over():
                await self._tick()
                if watching.done():
                    watching.result()
            await self._wind_up()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def interrupt(self) -> None:
        """A Ctrl-C: the first saves and stops, the second kills."""
        self.interrupts = Interrupts.SAVE if self.interrupts is Interrupts.NONE else Interrupts.KILL
        if self.interrupts is Interrupts.SAVE:
            self.screen.tell("stopping: ranks are asked to save; Ctrl-C again kills them")

    def _over(self) -> bool:
        if self.interrupts is Interrupts.KILL:
            return True
        status = self.view.job.status
        if status.finished:
            return True
        if self.interrupts is Interrupts.NONE:
            return False
        if status.reason == Reason.SUSPENDED and not self.parts.kubelet.members():
            return True
        grace = self.view.job.spec.checkpoint.grace_seconds + SUSPEND_MARGIN_SECONDS
        return bool(self._suspend_at) and self.parts.clock.monotonic() - self._suspend_at > grace

    async def _tick(self) -> None:
        now = self.parts.clock.monotonic()
        if self.interrupts is Interrupts.SAVE and not self._suspend_at:
            self._suspend_at = now
            await self._suspend()
        for failure in (self.parts.operator.failure(), self.parts.kubelet.failure()):
            if failure is not None:
                raise failure
        self._look(now)
        await self._inject()
        await asyncio.sleep(TICK_SECONDS)

    def _look(self, now: float) -> None:
        agents = self.parts.coordinator.agents(self.view.job.metadata.uid)
        self.view.agents_seen(agents, now)
        self.screen.refresh(now)

    async def _inject(self) -> None:
        if self.view.job.status.phase is not Phase.RUNNING:
            return
        # A program that reports no steps can be hit with step=0: as soon as it runs.
        for fault in self.schedule.due(self.view.step or 0):
            done = await self.saboteur.do(fault)
            if not done:
                self.schedule.waiting.append(fault)  # its target does not run just now: next time
                continue
            self.injected.append(str(fault))
            self.screen.tell(f"injected {fault}: {done}")

    async def _suspend(self) -> None:
        meta = self.view.job.metadata
        with contextlib.suppress(NotFound):
            await self.parts.cluster.patch(Kind.JOB, meta.namespace, meta.name, {"spec": {"suspend": True}})

    async def _wind_up(self) -> None:
        """Let the operator release the agents of an ended job; what is left then is killed by the caller."""
        deadline = self.parts.clock.monotonic() + WIND_UP_SECONDS
        while self.parts.kubelet.members() and self.parts.clock.monotonic() < deadline:
            if self.interrupts is Interrupts.KILL:
                return
            self._look(self.parts.clock.monotonic())
            await asyncio.sleep(TICK_SECONDS)

    async def _watch_job(self) -> None:
        while True:
            listing = await self.parts.cluster.list(Kind.JOB)
            for raw in listing.items:
                self._job_changed(raw)
            try:
                async for event in self.parts.cluster.watch(Kind.JOB, listing.resource_version):
                    if event.change in (Change.ADDED, Change.MODIFIED):
                        self._job_changed(event.object)
            except Expired:
                continue

    def _job_changed(self, raw: Object) -> None:
        state.save(self.parts.workdir.state, raw)
        self.view.job_changed(parse_job(raw))

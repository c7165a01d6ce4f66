"""The process: settings, signals, the loop, and the exit code."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rerail_agent import proctree
from rerail_agent.console import Console, Sink
from rerail_agent.link import Link, Wiring
from rerail_agent.probing import answer_probes
from rerail_agent.publisher import Publisher
from rerail_agent.settings import BadSettings, Settings, Timing, read_settings
from rerail_agent.worker import Site, Worker
from rerail_agent.workspace import NoWorkspace, Workspace
from rerail_api.contract import AgentState, ExitCode

PAUSE_SECONDS = 0.1
BUSY_PAUSE_SECONDS = 0.02
GOODBYE_SECONDS = 1.0
_LEAVING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: Sequence[str], timing: Timing | None = None) -> int:
    """Run the agent to its end; the exit code of the process."""
    output, errors = Sink(1), Sink(2)
    console = Console(errors)
    try:
        settings = read_settings(argv, os.environ)
        workspace = Workspace(in_container=os.getpid() == 1)
    except (BadSettings, NoWorkspace) as error:
        console.say(str(error))
        errors.flush(GOODBYE_SECONDS)
        return int(ExitCode.BAD_CONFIG)
    adopts = proctree.become_subreaper() or os.getpid() == 1
    if not adopts:
        console.say("this system has no child subreaper: processes that leave their session are not found")
    host = Host(workspace, console, output, errors, adopts)
    try:
        return asyncio.run(_live(settings, timing or Timing(), host))
    finally:
        for pid in proctree.descendants(os.getpid()):
            proctree.kill(pid)
        workspace.remove()
        output.flush(GOODBYE_SECONDS)
        errors.flush(GOODBYE_SECONDS)


async def _live(settings: Settings, timing: Timing, host: Host) -> int:
    loop = asyncio.get_running_loop()
    host.output.attach(loop)
    host.errors.attach(loop)
    return await Agent(settings, timing, host).run()


@dataclass(frozen=True)
class Host:
    """What the process owns before there is a loop."""

    workspace: Workspace
    console: Console
    output: Sink
    errors: Sink
    adopts: bool


class Agent:
    """The worker, its link to the coordinator, and the loop that steps both."""

    def __init__(self, settings: Settings, timing: Timing, host: Host) -> None:
        self._loop = asyncio.get_running_loop()
        self._timing = timing
        self._console = host.console
        self._wake = asyncio.Event()
        self._publisher = Publisher(timing)
        self._probe_port: int | None = None
        self._told_session = 0
        site = Site(self._loop, dict(os.environ), host.workspace, host.console, host.output, host.adopts)
        self._worker = Worker(settings, timing, site)
        self._link = Link(Wiring(settings, timing, host.console, self._worker, self._report, self._wake.set))

    async def run(self) -> int:
        """Until the worker has nothing more to do; its exit code."""
        self._watch_signals()
        probe = await self._answer_probes()
        talking = asyncio.ensure_future(self._link.run())
        try:
            while self._worker.exit_code is None:
                if talking.done():
                    # never by itself: a bug there must not leave an agent that hears nothing
                    talking.result()
                self._step()
                await self._pause()
            self._link.send(self._report())
            await self._link.close(GOODBYE_SECONDS)
        finally:
            talking.cancel()
            if probe is not None:
                probe.close()
        return self._worker.exit_code

    def _step(self) -> None:
        now = self._loop.time()
        self._worker.reap(now)
        self._worker.step(now)
        worker, link = self._worker, self._link
        unled = now - max(worker.done_since, link.led_at)
        if worker.state is AgentState.DONE and not link.connected and unled > self._timing.unled_completion:
            worker.leave_unled(now)
        failed = worker.failed_since
        if (
            failed is not None
            and not link.connected
            and now - max(failed, link.led_at) > self._timing.unled_failure
        ):
            worker.stop_unled(now)
        if link.connected:
            self._tell(now)

    def _tell(self, now: float) -> None:
        if self._link.sessions != self._told_session:
            self._told_session = self._link.sessions
            self._publisher.again()
        report = self._report()
        if self._publisher.due(report, now) and self._link.send(report):
            self._publisher.sent(report, now)

    async def _pause(self) -> None:
        """Until something happens, but no longer than a progress line or an unfinished one may wait."""
        seconds = BUSY_PAUSE_SECONDS if self._worker.busy else PAUSE_SECONDS
        timer = self._loop.call_later(seconds, self._wake.set)
        await self._wake.wait()
        timer.cancel()
        self._wake.clear()

    def _report(self) -> dict[str, Any]:
        return {**self._worker.report(self._loop.time()), "probe_port": self._probe_port}

    def _watch_signals(self) -> None:
        self._loop.add_signal_handler(signal.SIGCHLD, self._wake.set)
        for number in _LEAVING_SIGNALS:
            # nohup and the like: who had a signal ignored wants it ignored
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._loop.add_signal_handler(number, self._terminate, number)

    def _terminate(self, number: signal.Signals) -> None:
        self._worker.terminate(number.name, self._loop.time())
        self._wake.set()

    async def _answer_probes(self) -> asyncio.AbstractServer | None:
        """Peers connect to learn whether this container lives; there is nothing to say."""
        server = await answer_probes()
        if server is None:
            self._console.say("cannot listen for liveness probes by peers")
        else:
            self._probe_port = int(server.sockets[0].getsockname()[1])
        return server

"""`rerail run`: puts the parts together, runs one job, reports, and leaves no process behind."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from rerail_api.v1alpha1 import Phase, parse_job
from rerail_operator.shell.clock import SystemClock
from rerail_operator.shell.cluster import Kind
from rerail_operator.shell.console import Console
from rerail_operator.shell.coordinator import Coordinator
from rerail_operator.shell.leader import AlwaysLeader
from rerail_operator.shell.local import devices, processes, report, state
from rerail_operator.shell.local.camera import Camera
from rerail_operator.shell.local.faults import Saboteur
from rerail_operator.shell.local.inject import Schedule
from rerail_operator.shell.local.kubelet import ProcessKubelet, Workdir, owner_only
from rerail_operator.shell.local.operating import Operating
from rerail_operator.shell.local.podspec import LOOPBACK, RUN_MARK, Host
from rerail_operator.shell.local.preparation import BadRun, Prepared, RunOptions, node_objects, prepare
from rerail_operator.shell.local.screen import Screen, screen_for
from rerail_operator.shell.local.session import Interrupts, Parts, Session
from rerail_operator.shell.local.view import View, plain
from rerail_operator.shell.memory import MemoryCluster, MemoryOptions
from rerail_operator.shell.settings import DEFAULT_ACCELERATORS
from rerail_operator.shell.tokens import FileTokenVerifier

__all__ = ["BadRun", "RunOptions", "run_job"]

COMPLETE, NOT_COMPLETE, INTERRUPTED, TERMINATED = 0, 1, 130, 143
GUARD = "rerail_operator.shell.local.guard"


def run_job(options: RunOptions, console: Console) -> int:
    """Run the job of a manifest on this machine; the exit code. Raises `BadRun` before a pod has started."""
    prepared = prepare(options, DEFAULT_ACCELERATORS)
    for document in prepared.manifest.ignored:
        console.complain(f"{prepared.manifest.path}: {document} is left aside; only the TrainingJob is run")
    run_id = secrets.token_hex(16)
    with _workdir(options, console) as workdir, _guarded(run_id):
        return asyncio.run(_Run(prepared, workdir, run_id, console).run())


class _Run:
    """One run; its steps share what they build."""

    def __init__(self, prepared: Prepared, workdir: Workdir, run_id: str, console: Console) -> None:
        self._prepared = prepared
        self._workdir = workdir
        self._run_id = run_id
        self._console = console
        self._clock = SystemClock()
        self._cluster = MemoryCluster(self._clock, MemoryOptions(ignore_resources=True))
        self._camera = Camera(self._cluster, self._clock, prepared.options.snapshot)
        self._signal = signal.SIGINT
        self._job = state.job_to_store(prepared.manifest.raw, state.load(workdir.state), self._clock.now())
        self._devices = devices.of_this_machine(os.environ)
        self._leave_spares_aside()
        self._view = View(parse_job(self._job))

    def _leave_spares_aside(self) -> None:
        """A spare without a GPU could take nobody's place."""
        gang, every = self._prepared.gang, self._prepared.every_pod
        if self._devices.enough_for(gang) and not self._devices.enough_for(every):
            self._job = {**self._job, "spec": {**self._job["spec"], "spares": 0}}
            self._console.complain(
                f"rerail run: {every.world_size} ranks with their spares and {len(self._devices.names)} GPU: "
                "the job runs without spares"
            )

    async def run(self) -> int:
        """From the first object to the report."""
        screen = screen_for(self._console, self._view)
        with _logged_to(screen.tell):
            session = await self._session(screen)
        return self._report(session)

    async def _session(self, screen: Screen) -> Session:
        """Run it to its end; nothing is left running."""
        async with self._parts() as parts:
            session = Session(
                parts,
                self._view,
                screen,
                Schedule(list(self._prepared.faults)),
                Saboteur(self._cluster, parts.kubelet, self._prepared.gang),
            )
            self._hear_signals(session)
            screen.start()
            try:
                await session.run()
            finally:
                screen.stop()
        return session

    @asynccontextmanager
    async def _parts(self) -> AsyncIterator[Parts]:
        """Everything that runs, started; and stopped again, whatever happens."""
        processes.adopt_orphans()
        owner_only(self._workdir.token, secrets.token_urlsafe(32))
        self._fill_cluster()
        operating = Operating(self._cluster, self._clock)
        coordinator = Coordinator(
            FileTokenVerifier(self._workdir.token), self._clock, operating.agent_changed, AlwaysLeader()
        )
        await self._listen(coordinator)
        kubelet = ProcessKubelet(self._cluster, self._host(), self._workdir, self._clock, self._heard)
        try:
            await kubelet.start()
            operating.start(coordinator, f"{LOOPBACK}:{coordinator.port}", self._camera.passed)
            yield Parts(self._cluster, coordinator, kubelet, operating, self._workdir, self._clock)
        finally:
            await operating.stop()
            await self._camera.close()
            left = await kubelet.stop()
            await coordinator.stop()
            if left:
                self._console.complain(f"rerail run: these processes do not die: {left}")

    def _fill_cluster(self) -> None:
        now = self._clock.now()
        for node in node_objects(self._prepared):
            self._cluster.restore(Kind.NODE, state.stored(node, now))
        self._cluster.restore(Kind.JOB, self._job)

    async def _listen(self, coordinator: Coordinator) -> None:
        port = self._prepared.options.port
        try:
            await coordinator.start(LOOPBACK, port)
        except OSError as error:
            raise BadRun(
                f"cannot listen on {LOOPBACK}:{port}: {error.strerror or error}; "
                "name another port with --port, or leave it out for a free one"
            ) from None

    def _host(self) -> Host:
        gang, every, found = self._prepared.gang, self._prepared.every_pod, self._devices
        if found.names and not found.enough_for(gang):
            self._console.complain(
                f"rerail run: {gang.world_size} ranks and {len(found.names)} GPU: every rank needs one "
                "of its own, so all ranks use the CPU; lower numNodes and numProcPerNode to train on the GPU"
            )
        return Host(
            python=sys.executable,
            environment={**os.environ, **devices.threads(os.environ, gang, len(os.sched_getaffinity(0)))},
            run_id=self._run_id,
            cwd=self._prepared.manifest.path.resolve().parent,
            per_slot=tuple(
                found.environment(slot, every if found.enough_for(every) else gang)
                for slot in range(every.num_nodes)
            ),
        )

    def _heard(self, node_rank: int, line: str) -> None:
        self._view.tail.append(plain(line if line.startswith("[rank ") else f"node {node_rank}: {line}"))

    def _hear_signals(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._interrupted, session, number)
        loop.add_signal_handler(signal.SIGUSR1, self._camera.take)

    def _interrupted(self, session: Session, number: signal.Signals) -> None:
        self._signal = number
        session.interrupt()

    def _report(self, session: Session) -> int:
        interrupted = session.interrupts is not Interrupts.NONE and not self._view.job.status.finished
        outcome = report.Outcome(self._view.job, self._view.log_lines, session.injected, interrupted)
        self._console.say("\n" + report.as_text(outcome))
        for fault in session.schedule.waiting:
            self._console.complain(f"rerail run: {fault} never came due")
        if (path := self._prepared.options.report) is not None:
            path.write_text(json.dumps(report.as_json(outcome), indent=2) + "\n", encoding="utf-8")
        if interrupted:
            return INTERRUPTED if self._signal is signal.SIGINT else TERMINATED
        return COMPLETE if self._view.job.status.phase is Phase.COMPLETE else NOT_COMPLETE


@contextmanager
def _workdir(options: RunOptions, console: Console) -> Iterator[Workdir]:
    """The folder of the run; a temporary one goes again unless it is to be kept."""
    temporary = options.workdir is None
    root = Path(tempfile.mkdtemp(prefix="rerail-")) if options.workdir is None else options.workdir.resolve()
    try:
        with state.held(root):
            yield Workdir(root)
    except state.BadWorkdir as error:
        raise BadRun(str(error)) from None
    finally:
        # What was saved on Ctrl-C must not be lost because nobody had named a folder for it.
        if temporary and (options.keep or state.can_go_on(state.load(root / "job.json"))):
            console.say(f"kept: {root} (checkpoints/, logs/); go on with --workdir {root}")
        elif temporary:
            shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _guarded(run_id: str) -> Iterator[None]:
    """A process of its own that ends whatever this run leaves, even where the run itself is killed."""
    guard = subprocess.Popen(
        [sys.executable, "-P", "-m", GUARD, RUN_MARK, run_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        if guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                guard.stdin.close()
        guard.wait()


class _Told(logging.Handler):
    """Of the operator's log only what is wrong is shown, and by the screen, so that no panel is torn."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(self.format(record))


@contextmanager
def _logged_to(tell: Callable[[str], None]) -> Iterator[None]:
    """For as long as there is a screen, the log goes there."""
    handler = _Told(tell)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)

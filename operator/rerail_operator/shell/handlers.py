"""kopf's part: it serves the TrainingJob resource. Every event becomes a key in the queue, nothing else.

kopf has a thread and an event loop of its own: when it ends, for whatever reason, it cancels every task of
its loop, whoever made it. It writes nothing: no finalizer, no annotation, no event.
"""

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import kopf

from rerail_api.contract import GROUP, PLURAL, VERSION

from .keys import JobKey
from .kube.credentials import read_configuration

log = logging.getLogger(__name__)

RESTART_SECONDS = (1.0, 30.0)
STOP_SECONDS = 10.0
LOGIN_SECONDS = 5.0


def registry_of(enqueue: Callable[[JobKey], None], started: Callable[[], None]) -> kopf.OperatorRegistry:
    """Handlers that call `enqueue` (from kopf's thread) with the key of every TrainingJob event."""
    registry = kopf.OperatorRegistry()

    @kopf.on.startup(registry=registry)
    async def on_startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        pin(settings)
        started()

    @kopf.on.cleanup(registry=registry)
    async def on_cleanup(**_: Any) -> None:
        log.debug("kopf has ended")

    @kopf.on.login(registry=registry)
    async def on_login(**_: Any) -> kopf.ConnectionInfo:
        try:
            return await asyncio.to_thread(connection)
        # The official package's loaders raise whatever their files and plugins cause.
        except Exception as error:
            raise kopf.TemporaryError(f"no usable credentials: {error}", delay=LOGIN_SECONDS) from error

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def on_job(namespace: str | None, name: str | None, **_: Any) -> None:
        enqueue(JobKey(namespace or "", name or ""))

    return registry


def pin(settings: kopf.OperatorSettings) -> None:
    """No defaults where kopf's can hurt: silent streams, posted events, annotations of a foreign domain."""
    settings.peering.standalone = True  # one operator at a time is our Lease's business
    settings.posting.enabled = False
    settings.scanning.disabled = True  # the resource is known; no watch on CRDs and namespaces
    settings.persistence.finalizer = f"{GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    settings.watching.server_timeout = random.randint(300, 600)  # noqa: S311 - jitter, not a secret
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 70
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.queueing.idle_timeout = 1
    settings.queueing.exit_timeout = 2
    settings.background.instant_exit_timeout = 0.1
    settings.background.cancellation_polling = 2
    settings.execution.max_workers = 1
    settings.process.ultimate_exiting_timeout = None  # it would kill the process, not the thread


def connection() -> kopf.ConnectionInfo:
    """The credentials that our own adapter uses, in kopf's words; blocks."""
    configuration = read_configuration()
    bearer = configuration.auth_settings().get("BearerToken")
    scheme, _, token = (bearer["value"] if bearer else "").strip().partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme if token else None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy or None,
    )


class JobServer:
    """kopf in its thread. Should it end by itself it is started again; our informer sees jobs meanwhile."""

    def __init__(self, enqueue: Callable[[JobKey], None]) -> None:
        self._enqueue = enqueue
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = threading.Event()
        self._end: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._serve, name="kopf", daemon=True)
        self.starts = 0

    def start(self) -> None:
        """Call it from the loop on which `enqueue` has to run."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        if (end := self._end) is not None:
            with suppress(RuntimeError):  # its loop is closed: it has just ended by itself
                end()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def _serve(self) -> None:
        pause = RESTART_SECONDS[0]
        while not self._stop.is_set():
            starts = self.starts
            try:
                asyncio.run(self._operate())
            except Exception:
                log.exception("kopf has ended with an error")
            if self._stop.wait(pause):
                return
            pause = RESTART_SECONDS[0] if self.starts > starts else min(pause * 2, RESTART_SECONDS[1])
            log.warning("kopf has ended and is started again")

    async def _operate(self) -> None:
        registry = registry_of(self._from_thread, self._started)
        # Not a threading.Event: kopf would wait for it in a thread and, ending by itself, for that thread.
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        self._end = lambda: loop.call_soon_threadsafe(end.set)
        try:
            if not self._stop.is_set():
                await kopf.operator(
                    registry=registry,
                    clusterwide=True,
                    standalone=True,
                    # Peering is off, yet kopf asks for the user's name, and a uid need not have one.
                    identity=GROUP,  # type: ignore[arg-type]
                    stop_flag=end,
                    memo=kopf.Memo(),
                )
        finally:
            self._end = None

    def _started(self) -> None:
        self.starts += 1

    def _from_thread(self, key: JobKey) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._enqueue, key)

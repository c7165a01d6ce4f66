"""The operator's own HTTP: /healthz, /readyz and /metrics. Ready means able to lead, not leading."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Check = Callable[[], str]
"""Says what is wrong; "" when nothing is. Must not wait."""


@dataclass(frozen=True, slots=True)
class Checks:
    """Named checks; `alive` failing for long gets the process restarted, `ready` failing only hides it."""

    alive: Mapping[str, Check] = field(default_factory=dict)
    ready: Mapping[str, Check] = field(default_factory=dict)


def fresh(age: Callable[[], float], limit_seconds: float) -> Check:
    """The streams have said something lately."""

    def check() -> str:
        seconds = age()
        return "" if seconds < limit_seconds else f"a stream has been silent for {seconds:.0f} s"

    return check


class Probes:
    def __init__(self, checks: Checks, registry: CollectorRegistry) -> None:
        self._checks = checks
        self._registry = registry
        self._runners: list[web.AppRunner] = []
        self.ports: list[int] = []

    async def start(self, host: str | None, probe_port: int, metrics_port: int) -> None:
        """Serve on both ports; `host` None is every address. Raises OSError when a port is taken."""
        probes = web.Application()
        probes.router.add_get("/healthz", self._healthz)
        probes.router.add_get("/readyz", self._readyz)
        metrics = web.Application()
        metrics.router.add_get("/metrics", self._metrics)
        for app, port in ((probes, probe_port), (metrics, metrics_port)):
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            self._runners.append(runner)
            await web.TCPSite(runner, host, port, reuse_address=True).start()
            self.ports.append(int(runner.addresses[0][1]))

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()

    async def _healthz(self, _: web.Request) -> web.Response:
        return _verdict(self._checks.alive)

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(self._checks.ready)

    async def _metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _verdict(checks: Mapping[str, Check]) -> web.Response:
    told = {name: check() for name, check in checks.items()}
    lines = [f"[-] {name}: {why}" if why else f"[+] {name}" for name, why in told.items()]
    failed = any(told.values())
    return web.Response(
        status=503 if failed else 200, text="\n".join([*lines, "failed" if failed else "ok", ""])
    )

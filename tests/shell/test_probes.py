"""Probes over real HTTP."""

from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Gauge

from rerail_operator.shell.probes import Checks, Probes, fresh

Get = Callable[[int, str], Awaitable[tuple[int, str]]]


@pytest.fixture
async def get() -> AsyncIterator[Get]:
    async with aiohttp.ClientSession() as session:

        async def fetch(port: int, path: str) -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                return response.status, await response.text()

        yield fetch


async def test_each_probe_tells_its_own_checks_and_metrics_have_their_own_port(get: Get) -> None:
    state = {"age": 3.0, "synced": "the list of pods is not complete yet"}
    checks = Checks(
        alive={"streams": fresh(lambda: state["age"], 180.0)},
        ready={"fleet": lambda: state["synced"], "crd": lambda: ""},
    )
    registry = CollectorRegistry()
    Gauge("rerail_leader", "1 while this process leads.", registry=registry).set(1)
    probes = Probes(checks, registry)
    await probes.start("127.0.0.1", 0, 0)
    try:
        port, metrics = probes.ports
        assert await get(port, "/healthz") == (200, "[+] streams\nok\n")
        status, text = await get(port, "/readyz")
        assert status == 503
        assert text == "[-] fleet: the list of pods is not complete yet\n[+] crd\nfailed\n"
        state.update(age=181.0, synced="")
        assert await get(port, "/healthz") == (
            503,
            "[-] streams: a stream has been silent for 181 s\nfailed\n",
        )
        assert (await get(port, "/readyz"))[0] == 200
        status, text = await get(metrics, "/metrics")
        assert status == 200 and "rerail_leader 1.0" in text
        assert (await get(port, "/metrics"))[0] == 404, "what is scraped is not what is probed"
    finally:
        await probes.stop()


async def test_a_port_that_is_taken_is_an_error_at_the_start() -> None:
    first, second = Probes(Checks(), CollectorRegistry()), Probes(Checks(), CollectorRegistry())
    await first.start("127.0.0.1", 0, 0)
    try:
        with pytest.raises(OSError, match="in use"):
            await second.start("127.0.0.1", first.ports[0], 0)
    finally:
        await second.stop()
        await first.stop()

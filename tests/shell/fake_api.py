"""A loopback API server that does exactly what a test scripts: for the bad days that a real one rarely has."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from rerail_operator.shell.kube.client import KubeCluster

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def status(code: int, message: str = "", reason: str = "", **details: Any) -> dict[str, Any]:
    return {"kind": "Status", "code": code, "message": message, "reason": reason, "details": details}


def reply(code: int, body: Any, **headers: str) -> Answer:
    async def answer(_request: web.Request) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body, status=code, headers=named)

    return answer


def stream(*lines: Any, drop: bool = False, hold: asyncio.Event | None = None, piece: int = 0) -> Answer:
    """A watch: these lines, then (after `hold`) a clean end, or a dropped connection. `piece` cuts the
    bytes into pieces of that size."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for line in lines:
            data = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
            for at in range(0, len(data), piece or len(data)):
                await response.write(data[at : at + (piece or len(data))])
                if piece:
                    await asyncio.sleep(0)
        if hold is not None:
            await hold.wait()
        if drop:
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write_eof()
        return response

    return answer


def event(change: str, obj: Any) -> dict[str, Any]:
    return {"type": change, "object": obj}


def bookmark(version: int) -> dict[str, Any]:
    return event("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}})


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    authorization: str
    content_type: str


@dataclass
class FakeApi:
    """Answers from a script, one after the other; the last answer is repeated."""

    script: list[Answer] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.seen.append(
            Seen(
                request.method,
                request.path,
                dict(request.query),
                json.loads(text) if text else None,
                request.headers.get("Authorization", ""),
                request.headers.get("Content-Type", ""),
            )
        )
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return await answer(request)

    def kubeconfig(self, path: Path, token: str = "secret") -> Path:
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [{"name": "c", "cluster": {"server": self.url}}],
                    "users": [{"name": "u", "user": {"token": token}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                }
            )
        )
        return path


@asynccontextmanager
async def fake_api(*script: Answer) -> AsyncIterator[FakeApi]:
    api = FakeApi(list(script))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield api
    finally:
        await runner.cleanup()


@asynccontextmanager
async def adapter(tmp_path: Path, *script: Answer) -> AsyncIterator[tuple[KubeCluster, FakeApi]]:
    """KubeCluster on a fake API server."""
    async with fake_api(*script) as api:
        async with KubeCluster.from_environment(str(api.kubeconfig(tmp_path / "config"))) as cluster:
            yield cluster, api

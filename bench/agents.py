"""One agent per Running pod: the real protocol over TLS with real tokens, and no ranks behind it.

kwok's pods hold no processes, so this plays what would run in them. The tokens are bound to their pods and
signed with the cluster's own key, here instead of by the API server: on a real cluster kubelets ask for
them, and that load belongs to neither side of the comparison. The operator verifies them as any others.
"""

import asyncio
import asyncio.sslproto
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.cluster.rig import ControlPlane
from tests.cluster.rig.components import ISSUER
from tests.shell.agent_client import AgentClient

from .client import Client
from .ground import NAMESPACE
from .operator_process import SERVICE
from .podwatch import RawPod

HANDSHAKES = 64
RETRY_SECONDS = 0.5


class TokenMaker:
    """Tokens as a kubelet would get them for a pod of the default service account."""

    def __init__(self, cluster: ControlPlane, key_id: str) -> None:
        pem = (cluster.authority.folder / "sa.key").read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, rsa.RSAPrivateKey)
        self._key = key  # read once: reading costs more than signing
        self._key_id = key_id

    @classmethod
    async def of(cls, cluster: ControlPlane, client: Client) -> "TokenMaker":
        keys = await client.get("/openid/v1/jwks")
        return cls(cluster, keys["keys"][0]["kid"])

    def token(self, name: str, uid: str) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": ["rerail"],
            "sub": f"system:serviceaccount:{NAMESPACE}:default",
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
            "kubernetes.io": {"namespace": NAMESPACE, "pod": {"name": name, "uid": uid}},
        }
        return jwt.encode(claims, self._key, "RS256", {"kid": self._key_id})


class Agents:
    """All agents of one job. `changed` is called whenever a count below moves."""

    def __init__(
        self, job: str, uid: str, port: int, tokens: TokenMaker, changed: Callable[[], None]
    ) -> None:
        self._job, self._uid, self._port, self._tokens, self._changed = job, uid, port, tokens, changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._clients: dict[str, AgentClient] = {}
        self._tls: ssl.SSLContext | None = None
        self._handshakes = asyncio.Semaphore(HANDSHAKES)
        self.at_barrier: Counter[int] = Counter()  # round -> agents that were called to it and are Ready
        self.released: Counter[int] = Counter()  # round -> agents that were told to run
        self.refused: list[str] = []

    async def trust(self, client: Client) -> None:
        """Read the coordinator's authority where an agent finds it: in the job's ConfigMap."""
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps?labelSelector=rerail.dev/job-uid={self._uid}"
        while not (found := (await client.get(path))["items"]):
            await asyncio.sleep(0.05)
        # asyncio's TLS takes 256 KiB per connection otherwise; the operator does the same.
        asyncio.sslproto.SSLProtocol.max_size = 16384
        self._tls = ssl.create_default_context(cadata=found[0]["data"]["ca.crt"])

    def pod_changed(self, job: str, uid: str, pod: RawPod | None) -> None:
        """A pod runs: its agent begins. It does not run any more: its agent is gone."""
        if job != self._job:
            return
        if pod is None:
            if (task := self._tasks.pop(uid, None)) is not None:
                task.cancel()
        elif uid not in self._tasks:
            self._tasks[uid] = asyncio.create_task(self._live(uid, pod))

    async def rank_fails(self, pod_uid: str) -> None:
        """One rank of this pod ends with an error; the agent says so and stays."""
        told: dict[str, Any] = {"rank": 0, "local_rank": 0, "exit_code": 1, "signal": None, "ordered": False}
        told |= {"age": 0.0, "lines": ["boom"], "last_line": "boom"}
        await self._clients[pod_uid].say(state="Failed", exit=told)

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _live(self, uid: str, pod: RawPod) -> None:
        """Stay connected until cancelled."""
        while self._tls is None:
            await asyncio.sleep(0.05)
        name = pod.metadata.name
        client = self._clients[uid] = AgentClient(
            job=f"{NAMESPACE}/{self._job}",
            job_uid=self._uid,
            pod=name,
            pod_uid=uid,
            token=self._tokens.token(name, uid),
            address=pod.status.pod_ip or "127.0.0.1",
            on_order=self._ordered,
        )
        try:
            while True:
                with suppress(OSError, RuntimeError):
                    async with self._handshakes:
                        await client.connect("127.0.0.1", self._port, self._tls, SERVICE)
                    await client.obey()
                self.refused += [f["reason"] for f in client.received if f["kind"] == "refuse"]
                client.received.clear()
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._clients.pop(uid, None)
            if client.writer is not None:
                client.writer.transport.abort()

    def _ordered(self, client: AgentClient, order: dict[str, Any]) -> None:
        client.received.clear()  # nobody reads them here, and there are many
        round_ = int(order.get("round", 0))
        if order["do"] == "join" and client.report["round"] < round_:
            self.at_barrier[round_] += 1  # it answers Ready in the same breath
        elif order["do"] == "run" and client.report["state"] == "Ready":
            self.released[round_] += 1
        self._changed()

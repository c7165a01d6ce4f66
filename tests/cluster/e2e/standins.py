"""An agent for every Running pod of a job: the real protocol over TLS, with a token bound to the pod; no ranks.

kwok plays the kubelets; this plays what would run in the containers. It lives in a thread of its own, so that
tests read from top to bottom.
"""

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.rig import ApiError
from tests.cluster.rig.api import ApiClient
from tests.shell.agent_client import AgentClient

Json = dict[str, Any]
LOOK_SECONDS = 0.15
RETRY_SECONDS = 0.3
OURS = "app.kubernetes.io%2Fmanaged-by%3Drerail,rerail.dev%2Fjob-uid"


@dataclass
class StandIn:
    """One agent and the task that keeps it connected."""

    client: AgentClient
    namespace: str
    tls: ssl.SSLContext
    mute: bool = False
    connected: bool = False
    task: asyncio.Task[None] | None = None
    refusals: list[str] = field(default_factory=list)


class StandIns:
    """All agents of one cluster. `coordinators` says where to knock, in order."""

    def __init__(self, api: ApiClient, coordinators: Callable[[], list[str]]) -> None:
        self._api, self._coordinators = api, coordinators
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stand-ins")
        self._agents: dict[str, StandIn] = {}  # by pod UID
        self._watching: asyncio.Task[None] | None = None

    # ---- for tests (any thread) -----------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()
        self._call(self._begin())

    def stop(self) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    def fail(self, pod: str, **exit_: Any) -> None:
        """A rank of this pod fails."""
        evidence = {"rank": 0, "local_rank": 0, "exit_code": 1, "signal": None, "ordered": False}
        told = {**evidence, "age": 0.0, "lines": ["boom"], "last_line": "boom", **exit_}
        self._call(self._say(self._of(pod), state="Failed", exit=told))

    def progress(self, pod: str, step: int, **more: Any) -> None:
        """Node rank 0 of a job has made a step."""
        self._call(
            self._say(self._of(pod), progress={"step": step, "phase": "train", **more}, progress_age=0.0)
        )

    def done(self, pods: list[str]) -> None:
        """All ranks of these pods end with 0."""
        for pod in pods:
            self._call(self._say(self._of(pod), state="Done", ranks_alive=0))

    def mute(self, pod: str) -> None:
        """The connection breaks and does not come back."""
        self._call(self._mute(self._of(pod)))

    def unmute(self, pod: str) -> None:
        """It looks for a coordinator again."""
        self._of(pod).mute = False

    def term(self, pod: str) -> int:
        """The highest leader's term that this agent has seen."""
        return int(self._of(pod).client.report["term"])

    def orders(self, pod: str, do: str) -> list[Json]:
        """The orders of one kind that this agent was given."""
        return [one for one in list(self._of(pod).client.received) if one.get("do") == do]

    def connected(self, pod: str) -> bool:
        found = [one for one in list(self._agents.values()) if one.client.pod == pod]
        return bool(found) and found[0].connected

    def describe(self) -> str:
        """One line per agent, for a failed test's report."""
        return "\n".join(
            f"{one.client.pod}: {'connected' if one.connected else 'away'} {one.client.report}"
            f" refused: {one.refusals[-2:]}"
            for one in list(self._agents.values())
        )

    # ---- inside (the thread of the loop) ----------------------------------------------------------------

    def _of(self, pod: str) -> StandIn:
        found = [one for one in list(self._agents.values()) if one.client.pod == pod]
        assert found, f"no agent plays {pod}; there are {[a.client.pod for a in self._agents.values()]}"
        return found[0]

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _begin(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _end(self) -> None:
        tasks = [task for task in (self._watching, *(a.task for a in self._agents.values())) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _say(self, agent: StandIn, **changes: Any) -> None:
        if not agent.connected:  # the report stands and comes with the next hello
            agent.client.report = {**agent.client.report, **changes}
            return
        with suppress(OSError, RuntimeError):
            await agent.client.say(**changes)

    async def _mute(self, agent: StandIn) -> None:
        agent.mute = True
        await agent.client.close()

    async def _watch(self) -> None:
        while True:
            with suppress(ApiError, OSError):
                await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        path = f"/api/v1/pods?labelSelector={OURS}"
        pods = (await asyncio.to_thread(self._api.get, path))["items"]
        living = {
            pod["metadata"]["uid"]: pod
            for pod in pods
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        }
        for uid in set(self._agents) - set(living):
            gone = self._agents.pop(uid)
            if gone.task is not None:
                gone.task.cancel()
        for uid in set(living) - set(self._agents):
            self._agents[uid] = agent = await self._make(living[uid])
            agent.task = asyncio.create_task(self._serve(agent))

    async def _make(self, pod: Json) -> StandIn:
        meta = pod["metadata"]
        base = f"/api/v1/namespaces/{meta['namespace']}"
        volume = next(v for v in pod["spec"]["volumes"] if v["name"] == "rerail-agent")
        config_map = await asyncio.to_thread(
            self._api.get, f"{base}/configmaps/{volume['configMap']['name']}"
        )
        bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        wish = {"audiences": ["rerail"], "expirationSeconds": 3600, "boundObjectRef": bound}
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": wish}
        account = pod["spec"].get("serviceAccountName", "default")
        token = await asyncio.to_thread(self._api.post, f"{base}/serviceaccounts/{account}/token", request)
        client = AgentClient(
            job=f"{meta['namespace']}/{meta['labels']['rerail.dev/job-name']}",
            job_uid=meta["labels"]["rerail.dev/job-uid"],
            pod=meta["name"],
            pod_uid=meta["uid"],
            token=token["status"]["token"],
            address=pod["status"].get("podIP", "127.0.0.1"),
        )
        tls = ssl.create_default_context(cadata=config_map["data"]["ca.crt"])
        return StandIn(client, meta["namespace"], tls)

    async def _serve(self, agent: StandIn) -> None:
        """Keep the agent connected to whoever leads, as the real one does."""
        knocks, leader = 0, ""
        try:
            while True:
                known = self._coordinators()
                address = leader or (known[knocks % len(known)] if known else "")
                knocks, leader = knocks + 1, ""
                if agent.mute or not address:
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                last = await self._visit(agent, address)
                if last.get("do") == "finish":
                    return await self._finish(agent, int(last["code"]))
                leader = last.get("address", "") if last.get("kind") == "redirect" else ""
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            with suppress(OSError, RuntimeError):
                await agent.client.close()

    async def _visit(self, agent: StandIn, address: str) -> Json:
        """One connection, from hello to its end; the last frame that says why it ended."""
        host, _, port = address.rpartition(":")
        seen = len(agent.client.received)
        try:
            await agent.client.connect(host, int(port), agent.tls)
            agent.connected = True
            await agent.client.obey()
        except (OSError, RuntimeError, ssl.SSLError):
            pass  # the coordinator is away
        finally:
            agent.connected = False
            with suppress(OSError, RuntimeError):
                await agent.client.close()
        told = agent.client.received[seen:]
        agent.refusals += [one.get("reason", "") for one in told if one["kind"] == "refuse"]
        ends = [one for one in told if one["kind"] == "redirect" or one.get("do") == "finish"]
        return ends[-1] if ends else {}

    async def _finish(self, agent: StandIn, code: int) -> None:
        """The container ends with this code: kwok writes what the kubelet would."""
        note = {"rerail.dev/kwok-fail": str(code)} if code else {"rerail.dev/kwok-complete": "yes"}
        path = f"/api/v1/namespaces/{agent.namespace}/pods/{agent.client.pod}"
        with suppress(ApiError, OSError):
            await asyncio.to_thread(self._api.patch, path, {"metadata": {"annotations": note}})

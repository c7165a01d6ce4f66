"""Gang start and restart, each beside the floor measured in the same run."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from .accounts import AuditLog, Stopwatch, peak_rss_bytes
from .agents import Agents, TokenMaker
from .client import Client
from .floor import JOBS, Floor, delete_all, manifest
from .ground import Ground, ground, load
from .operator_process import OperatorProcess
from .podwatch import PODS, PodWatch, Seen
from .report import Json, Tell

NAME = "gang"
POLL_SECONDS = 0.05

Action = Callable[[float], Awaitable[dict[str, float]]]
"""One stage: from when it began (monotonic) to its moments, in seconds since then."""


@dataclass
class Stage:
    """One measured stretch: the moments in it (seconds from its begin), and what it cost."""

    name: str
    moments: dict[str, float]
    cpu: dict[str, float]
    wall: float
    load: float
    requests: Json = field(default_factory=dict)

    def as_json(self) -> Json:
        moments = {name: round(value, 2) for name, value in self.moments.items()}
        return {
            "seconds": moments,
            "cpu_seconds": self.cpu,
            "wall": round(self.wall, 2),
            "load": round(self.load, 1),
            **self.requests,
        }


@dataclass(frozen=True)
class Wish:
    """What is to be measured: `runs` runs on one cluster, each with its own floor and operator process."""

    nodes: int
    runs: int
    profile: Path | None = None
    repairs_only: bool = False  # no floor: a start, a restart in place and all pods anew, to be compared


def measure(wish: Wish, tell: Tell) -> list[Json]:
    """The runs' results."""
    with ground(wish.nodes) as place:
        return asyncio.run(_runs(place, wish, tell))


async def _runs(place: Ground, wish: Wish, tell: Tell) -> list[Json]:
    results = []
    async with Client(place.cluster) as client:
        watch = PodWatch(client)
        await watch.start()
        try:
            for number in range(1, wish.runs + 1):
                tell(f"run {number} of {wish.runs}, {wish.nodes} nodes, load {load():.1f}")
                run = Run(place, client, watch, tell)
                try:
                    results.append(await run.all(wish))
                except RuntimeError as failure:
                    tell(f"run {number} is lost: {failure}")
                    results.append({"nodes": wish.nodes, "lost": str(failure), "stages": run.stages_so_far()})
                    break  # what it left behind would falsify the next one
        finally:
            await watch.stop()
    return results


class Run:
    """Floor, then a job's life: start, failed rank, failed pod, all pods anew, deleted from outside, end."""

    def __init__(self, place: Ground, client: Client, watch: PodWatch, tell: Tell) -> None:
        self._place, self._client, self._watch, self._tell = place, client, watch, tell
        self._size = len(place.nodes)
        self._patience = 120.0 + self._size / 2
        self._audit = AuditLog(place.cluster.audit_log)
        self._stages: list[Stage] = []
        self._operator: OperatorProcess | None = None
        self._agents: Agents | None = None
        self._round = self._passed = 0
        self._uid = ""

    async def all(self, wish: Wish) -> Json:
        """The whole run, as JSON."""
        if not wish.repairs_only:
            await self._measure_floor()
        log = self._place.cluster.logs / f"operator-{time.monotonic_ns()}.log"
        async with OperatorProcess(self._place.operator_kubeconfig, log, wish.profile) as operator:
            self._operator = operator
            try:
                await self._stage("start", self._start)
                for name, action in self._actions(wish.repairs_only):
                    await self._settle()
                    await self._stage(name, action)
            except BaseException:
                self._tell(operator.tail())
                raise
            finally:
                await self._dismiss()
            peak = peak_rss_bytes(operator.pid)
            figures = operator.figures()
        return self._result(peak, figures)

    async def _measure_floor(self) -> None:
        floor = Floor(self._client, self._watch, self._place.nodes, self._patience)
        await floor.prepare()
        await self._stage("floor start", floor.start)
        await self._stage("floor delete", floor.delete)
        await floor.clear()

    def _actions(self, repairs_only: bool) -> list[tuple[str, Action]]:
        """What is done to the job once it runs, in order."""
        if repairs_only:
            return [("rank_fails", self._rank_fails), ("recreate", self._recreate)]
        return [
            ("rank_fails", self._rank_fails),
            ("pod_fails", self._pod_fails),
            ("recreate", self._recreate),
            ("wiped", self._wiped),
            ("delete", self._delete),
        ]

    # ---- stages -------------------------------------------------------------------------------------

    async def _start(self, began: float) -> dict[str, float]:
        posted = await self._client.post(JOBS, manifest(NAME, self._size))
        operator = self._operator
        assert operator is not None
        tokens = await TokenMaker.of(self._place.cluster, self._client)
        self._uid = posted["metadata"]["uid"]
        self._agents = Agents(NAME, self._uid, operator.port, tokens, self._watch.tell)
        self._watch.on_change = self._agents.pod_changed
        await self._agents.trust(self._client)
        return await self._moments(began, old=set())

    async def _rank_fails(self, began: float) -> dict[str, float]:
        """A rank ends with an error; its agent and its pod stay, as a real process fault leaves them."""
        agents = self._agents
        assert agents is not None
        await agents.rank_fails(self._some_pod())
        moments = await self._moments(began, old=set())
        return {name: at for name, at in moments.items() if not name.startswith("pods")}

    async def _pod_fails(self, began: float) -> dict[str, float]:
        """One pod fails with its agent: the product replaces this pod and calls all others to the barrier."""
        uid = self._some_pod()
        name = self._seen.there[uid].metadata.name
        notes = {"rerail.dev/kwok-fail": "137"}
        await self._client.patch(f"{PODS}/{name}", {"metadata": {"annotations": notes}})
        return await self._moments(began, old={uid})

    async def _recreate(self, began: float) -> dict[str, float]:
        """The whole gang anew by the product's own hand: suspended, resumed as soon as that is written."""
        old = set(self._seen.there)
        path = f"{JOBS}/{NAME}"
        gone = self._note(began, "old pods gone", lambda: old.isdisjoint(self._seen.there))
        await self._client.patch(path, {"spec": {"suspend": True}})
        await self._until_status(lambda status: status.get("phase") == "Suspended")
        await self._client.patch(path, {"spec": {"suspend": False}})
        moments = await self._moments(began, old=old)
        return {**dict([await gone]), **moments}

    async def _wiped(self, began: float) -> dict[str, float]:
        """All pods are deleted by somebody else; the product finds out and makes the gang anew."""
        old = set(self._seen.there)
        gone = self._note(began, "old pods gone", lambda: old.isdisjoint(self._seen.there))
        await delete_all(self._client, self._uid)
        moments = await self._moments(began, old=old)
        return {**dict([await gone]), **moments}

    async def _delete(self, began: float) -> dict[str, float]:
        await self._client.delete(f"{JOBS}/{NAME}")
        gone = await self._watch.until("all pods are gone", lambda: not self._seen.there, self._patience)
        return {"pods gone": gone - began}

    # ---- inside -------------------------------------------------------------------------------------

    @property
    def _seen(self) -> Seen:
        return self._watch.job(NAME)

    def _some_pod(self) -> str:
        """A pod from the middle of the gang."""
        by_name = sorted(self._seen.running, key=lambda uid: self._seen.there[uid].metadata.name)
        return by_name[len(by_name) // 2]

    async def _moments(self, began: float, old: set[str]) -> dict[str, float]:
        """When all pods (none of `old`) run, all agents are at a new barrier, all are released, and the
        job's status says Running."""
        seen, size, agents = self._seen, self._size, self._agents
        assert agents is not None
        last = self._round

        def newest(counts: dict[int, int]) -> bool:
            return any(round_ > last and count >= size for round_, count in counts.items())

        noted = [
            self._note(
                began, "pods Running", lambda: len(seen.running) == size and old.isdisjoint(seen.running)
            ),
            self._note(began, "first at barrier", lambda: any(r > last for r in agents.at_barrier)),
            self._note(began, "all at barrier", lambda: newest(agents.at_barrier)),
            self._note(began, "barrier released", lambda: newest(agents.released)),
        ]
        moments = dict(await asyncio.gather(*noted))
        self._round = max(agents.released)
        await self._until_status(lambda status: status.get("phase") == "Running")
        return {**moments, "status Running": time.monotonic() - began}

    def _note(self, began: float, what: str, look: Callable[[], bool]) -> asyncio.Task[tuple[str, float]]:
        async def wait() -> tuple[str, float]:
            return what, await self._watch.until(what, look, self._patience) - began

        return asyncio.create_task(wait(), name=what)

    async def _until_status(self, right: Callable[[Json], bool]) -> None:
        async with asyncio.timeout(self._patience):
            while not right((await self._client.get(f"{JOBS}/{NAME}")).get("status") or {}):
                await asyncio.sleep(POLL_SECONDS)

    async def _settle(self) -> None:
        """Let the echo of the stage before die away, so that no stage pays for another."""
        await asyncio.sleep(3.0 + self._size / 500)

    async def _stage(self, name: str, action: Action) -> None:
        operator = self._operator.pid if self._operator is not None else None
        self._audit.skip()
        watch, before = Stopwatch(operator, self._place.rig_pids()), load()
        began = time.monotonic()
        moments = await self._while_it_lives(action(began))
        wall = time.monotonic() - began
        stage = Stage(name, moments, watch.spent(), wall, (before + load()) / 2)
        told = self._audit.look()
        stage.requests = {
            "operator_requests": told.operator,
            "writes_by_all": told.writes_by_all,
            "throttled": told.throttled,
        }
        if self._operator is not None:
            stage.requests["passes"] = self._passes()
        self._stages.append(stage)
        self._tell(f"  {name:12} " + ", ".join(f"{what} {at:.2f} s" for what, at in moments.items()))
        asked = sum(told.operator.values())
        self._tell(f"  {'':12} CPU s {stage.cpu}, load {stage.load:.1f}, operator's requests {asked}")

    async def _while_it_lives(self, work: Awaitable[dict[str, float]]) -> dict[str, float]:
        """The stage's moments; an operator that has ended ends the run at once."""
        if self._operator is None:
            return await work
        working, watching = asyncio.ensure_future(work), asyncio.ensure_future(self._operator.ended())
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await watching
        watching.cancel()
        return await working

    def _passes(self) -> int:
        """Passes since the last call."""
        assert self._operator is not None
        total = int(self._operator.figures().get("rerail_passes_total", 0))
        self._passed, before = total, self._passed
        return total - before

    async def _dismiss(self) -> None:
        self._watch.on_change = lambda job, uid, pod: None
        if self._agents is not None:
            await self._agents.stop()

    def stages_so_far(self) -> Json:
        """What has been measured, by stage."""
        return {stage.name: stage.as_json() for stage in self._stages}

    def _result(self, peak: int, figures: dict[str, float]) -> Json:
        assert self._agents is not None
        measured = any(stage.name == "floor start" for stage in self._stages)
        return {
            "nodes": self._size,
            "stages": self.stages_so_far(),
            **({"ratios": self._ratios()} if measured else {}),
            "operator_peak_rss_mib": round(peak / 2**20),
            "operator_figures": figures,
            "agents_refused": dict(Counter(self._agents.refused)),
        }

    def _ratios(self) -> Json:
        """Rerail beside the floor."""
        moments = {stage.name: stage.moments for stage in self._stages}
        spent = {stage.name: stage.cpu["operator"] + stage.cpu["rig"] for stage in self._stages}
        start, delete = moments["floor start"]["pods Running"], moments["floor delete"]["pods gone"]
        both, spent_both = start + delete, spent["floor start"] + spent["floor delete"]
        ratios = {
            "start / floor start": moments["start"]["pods Running"] / start,
            "start to release / floor start": moments["start"]["barrier released"] / start,
            "recreate / (floor delete + start)": moments["recreate"]["pods Running"] / both,
            "wiped / (floor delete + start)": moments["wiped"]["pods Running"] / both,
            "pod fails to release / (floor delete + start)": moments["pod_fails"]["barrier released"] / both,
            "delete / floor delete": moments["delete"]["pods gone"] / delete,
            # What the wall clock would tell on a machine on which nobody else works.
            "CPU of start / of floor start": spent["start"] / spent["floor start"],
            "CPU of recreate / of floor": spent["recreate"] / spent_both,
            "CPU of wiped / of floor": spent["wiped"] / spent_both,
        }
        return {name: round(value, 2) for name, value in ratios.items()}

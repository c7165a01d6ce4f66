"""Restarts in place: a fault is reported -> every agent was told to run again. Stages, CPU, memory, requests.

One operator process (`operator_in_memory`), the agents in other processes (`crowd`), all on this machine.
"""

import asyncio
import secrets
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import msgspec

from rerail_api.contract import HEARTBEAT_SECONDS

from .accounts import cpu_seconds
from .crowd import Cast, Played
from .crowd import Wish as CrowdWish
from .ground import load
from .operator_in_memory import NAME, SERVICE, Account, Setting, Written
from .report import Json, Tell

AGENTS_PER_PROCESS = 5000
LINE_BYTES = 64 * 2**20
POLL_SECONDS = 0.1
LOST_SECONDS = 30.0
"""For a lost agent to be back: half a second should do."""
GOAL_SECONDS = {1875: 5.0, 18750: 15.0}
GOAL_REQUESTS = 5
STAGES = ("detection", "write", "stop", "barrier", "release")


@dataclass(frozen=True)
class Wish:
    """What is to be measured: restarts after one agent's fault, and (`everybody`) after a fault of all."""

    agents: int
    restarts: int = 5
    everybody: int = 2
    beat_seconds: float = 10.0  # of quiet running, over which heartbeats are priced


@dataclass
class Heard:
    """What the crowds have told of one round (monotonic times)."""

    joined: list[float] = field(default_factory=list)
    released: list[float] = field(default_factory=list)


class CrowdProcess:
    """One process of stand-ins; what it says is kept."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.rounds: dict[int, Heard] = {}
        self.connected = 0.0
        self.failed = 0.0
        self.lost: list[int] = []
        self.away: set[int] = set()  # of those, who is not back

    async def listen(self) -> None:
        """Until the process ends."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            said = msgspec.json.decode(line)
            if "connected" in said:
                self.connected = said["connected"]
            elif "failed" in said:
                self.failed = said["failed"]
            elif "lost" in said:
                self.lost.append(said["lost"])
                self.away.add(said["lost"])
            elif "back" in said:
                self.away.discard(said["back"])
            elif said["which"] == "last":
                heard = self.rounds.setdefault(said["round"], Heard())
                (heard.joined if said["what"] == "joined" else heard.released).append(said["at"])

    async def ask(self, wish: CrowdWish) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(wish) + b"\n")
        await self.process.stdin.drain()


async def measure(wish: Wish, tell: Tell) -> Json:
    """One gang of `wish.agents` nodes. Raises TimeoutError when something does not come."""
    tell(f"{wish.agents} agents, load {load():.1f}")
    async with _bench(wish) as bench:
        return await bench.all(tell)


class Bench:
    """A running gang, restarted again and again."""

    def __init__(self, wish: Wish, operator: Process, crowds: list[CrowdProcess]) -> None:
        self._wish, self._operator, self._crowds = wish, operator, crowds
        self._round = 1
        self._patience = 120.0 + wish.agents / 10  # on a crowded machine connecting takes its time

    async def all(self, tell: Tell) -> Json:
        alone = (await self._account()).rss_bytes
        await self._until(lambda: all(crowd.connected for crowd in self._crowds), "all agents connected")
        await self._until_running(1)
        await self._step(10)
        beat = await self._heartbeats(alone)
        tell(
            f"  heartbeat: {beat['microseconds_per_heartbeat']} us of CPU, beside {beat['passes']} passes of"
            f" {beat['milliseconds_per_pass']} ms; {beat['rss_mib']} MiB, {beat['kib_per_agent']} KiB of it"
            f" for each connected agent; load {beat['load']}"
        )
        results: dict[str, list[Json]] = {"one": [], "everybody": []}
        plan = ["one"] * self._wish.restarts + ["everybody"] * self._wish.everybody
        for number, kind in enumerate(plan, start=1):
            results[kind].append(await self._restart(kind == "everybody"))
            tell(f"  {_line(kind, results[kind][-1])}")
            await self._step(10 + 10 * number)
        lost = sum(len(crowd.lost) for crowd in self._crowds)
        summary = {kind: _summary(runs) for kind, runs in results.items() if runs}
        end = await self._account()
        goal = GOAL_SECONDS.get(self._wish.agents)
        for kind, figures in summary.items():
            tell(f"  {kind}: {_summed(figures, goal if kind == 'one' else None)}")
        return {
            "agents": self._wish.agents,
            "processes_of_agents": len(self._crowds),
            "heartbeat": beat,
            "restarts": results,
            "summary": summary,
            "operator_peak_rss_mib": round(end.peak_rss_bytes / 2**20),
            "connections": end.connections,
            "connections_lost": lost,
        }

    async def _restart(self, everybody: bool) -> Json:
        round_, victim = self._round + 1, self._wish.agents // 2
        before, agents_before, load_before = await self._account(), self._agents_cpu(), load()
        for crowd in self._crowds:
            crowd.failed = 0.0
            await crowd.ask(CrowdWish(do="fail", node_rank=victim, everybody=everybody))
        await self._until(lambda: self._all_released(round_), f"all agents told to run round {round_}")
        after = await self._until_running(round_)
        self._round = round_
        began = min(crowd.failed for crowd in self._crowds if crowd.failed)
        writes = after.writes[len(before.writes) :]
        stages = self._stages(began, round_, writes)
        return {
            "seconds": round(sum(stages.values()), 3),
            "stages": {name: round(seconds, 3) for name, seconds in stages.items()},
            "cpu_seconds": round(after.cpu_seconds - before.cpu_seconds, 2),
            "pass_cpu_seconds": round(after.pass_cpu_seconds - before.pass_cpu_seconds, 2),
            "agents_cpu_seconds": round(self._agents_cpu() - agents_before, 2),
            "passes": after.passes - before.passes,
            "requests": dict(Counter(after.requests) - Counter(before.requests)),
            "writes": [f"{w.phase}/{w.reason}" for w in writes],
            "load": round((load_before + load()) / 2, 1),
        }

    def _agents_cpu(self) -> float:
        return sum(cpu_seconds(crowd.process.pid) for crowd in self._crowds)

    def _stages(self, began: float, round_: int, writes: list[Written]) -> dict[str, float]:
        """Detection: until the decision is being written. Stop: until the last agent was called to the
        barrier. Barrier: until its release is written. Release: until the last agent was told to run."""
        decided = next(w for w in writes if w.round == round_)
        opened = next(w for w in writes if w.released_round == round_)
        heard = [crowd.rounds[round_] for crowd in self._crowds]
        joined = max(max(one.joined) for one in heard)
        released = max(max(one.released) for one in heard)
        moments = [began, decided.begun, decided.ended, joined, opened.ended, released]
        return {name: later - at for name, at, later in zip(STAGES, moments, moments[1:], strict=False)}

    def _all_released(self, round_: int) -> bool:
        return all(crowd.rounds.get(round_, Heard()).released for crowd in self._crowds)

    async def _until_running(self, round_: int) -> Account:
        """The account once the status says Running in that round."""
        until = time.monotonic() + self._patience
        while (account := await self._account()).phase != "Running" or account.round != round_:
            if time.monotonic() > until:
                raise TimeoutError(f"round {round_} does not run: {account.phase} in round {account.round}")
            await asyncio.sleep(POLL_SECONDS)
        return account

    async def _step(self, step: int) -> None:
        """The gang makes progress, so that the next fault is no repetition; then its echo dies away."""
        await self._crowds[0].ask(CrowdWish(do="step", step=step))
        until = time.monotonic() + self._patience
        while (await self._account()).step != step:
            await asyncio.sleep(POLL_SECONDS)
            if time.monotonic() > until:
                raise TimeoutError(f"the status does not show step {step}")
        await asyncio.sleep(1.0 + self._wish.agents / 5000)

    async def _heartbeats(self, alone: int) -> Json:
        """What quiet running costs: CPU of the operator less that of its passes, per heartbeat."""
        seconds = self._wish.beat_seconds
        before = await self._account()
        await asyncio.sleep(seconds)
        after = await self._account()
        spent, passes = after.cpu_seconds - before.cpu_seconds, after.passes - before.passes
        in_passes = after.pass_cpu_seconds - before.pass_cpu_seconds
        beats = self._wish.agents * seconds / HEARTBEAT_SECONDS
        return {
            "seconds": seconds,
            "cpu_seconds": round(spent, 2),
            "passes": passes,
            "milliseconds_per_pass": round(1000 * in_passes / max(1, passes), 1),
            "microseconds_per_heartbeat": round(1e6 * (spent - in_passes) / beats, 1),
            "rss_mib": round(after.rss_bytes / 2**20),
            "kib_per_agent": round((after.rss_bytes - alone) / 1024 / self._wish.agents),
            "load": round(load(), 1),
        }

    async def _account(self) -> Account:
        operator = self._operator
        assert operator.stdin is not None and operator.stdout is not None
        operator.stdin.write(b"\n")
        line = await operator.stdout.readline()
        if not line:
            raise RuntimeError("the operator has ended by itself")
        return msgspec.json.decode(line, type=Account)

    async def _until(self, look: Callable[[], bool], what: str) -> None:
        until, whole = time.monotonic() + self._patience, time.monotonic()
        while not look():
            if self._operator.returncode is not None or any(c.process.returncode for c in self._crowds):
                raise RuntimeError(f"a process has ended by itself; waited for: {what}")
            away = [rank for crowd in self._crowds for rank in crowd.away]
            whole = whole if away else time.monotonic()
            if time.monotonic() - whole > LOST_SECONDS:
                gone = f"node rank {away[0]} was lost and is not back after {LOST_SECONDS:g} s"
                raise RuntimeError(f"the agent of {gone}; waited for: {what}")
            if time.monotonic() > until:
                raise TimeoutError(f"not within {self._patience:.0f} s: {what}")
            await asyncio.sleep(POLL_SECONDS)


@asynccontextmanager
async def _bench(wish: Wish) -> AsyncIterator[Bench]:
    """The operator with a gang of Running pods, and the processes of the agents, which connect."""
    processes: list[Process] = []
    listening: list[asyncio.Task[None]] = []
    token = secrets.token_hex(16)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "token"
            path.write_text(token)
            operator = await _python("operator_in_memory", Setting(wish.agents, str(path)), processes)
            assert operator.stdout is not None
            stage = msgspec.json.decode(await operator.stdout.readline())
            crowds = []
            for part in _parts([Played(*pod) for pod in stage["pods"]]):
                where = (stage["port"], stage["ca"], SERVICE)
                cast = Cast(*where, token, f"default/{NAME}", stage["job_uid"], part)
                crowds.append(CrowdProcess(await _python("crowd", cast, processes)))
                listening.append(asyncio.create_task(crowds[-1].listen()))
            yield Bench(wish, operator, crowds)
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
        await asyncio.gather(*(process.wait() for process in processes))
        await asyncio.gather(*listening)


async def _python(module: str, first: msgspec.Struct, processes: list[Process]) -> Process:
    """A process of the bench, told its first line."""
    command = (sys.executable, "-m", f"bench.{module}")
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=LINE_BYTES)
    processes.append(process)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(first) + b"\n")
    await process.stdin.drain()
    return process


def _parts(agents: list[Played]) -> list[list[Played]]:
    count = -(-len(agents) // AGENTS_PER_PROCESS)
    return [agents[part::count] for part in range(count)]


def _summary(restarts: list[Json]) -> Json:
    """Median and worst of the whole and of its parts."""
    figures: Json = {}
    for name in ("seconds", "cpu_seconds", "pass_cpu_seconds", "passes"):
        values = [restart[name] for restart in restarts]
        figures[name] = {"median": round(median(values), 2), "worst": max(values)}
    for stage in STAGES:
        values = [restart["stages"][stage] for restart in restarts]
        figures[stage] = {"median": round(median(values), 2), "worst": round(max(values), 2)}
    figures["requests"] = {"worst": max(sum(restart["requests"].values()) for restart in restarts)}
    return figures


def _line(kind: str, restart: Json) -> str:
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in restart["stages"].items())
    return (
        f"{kind:9} {restart['seconds']:6.2f} s ({stages}); operator {restart['cpu_seconds']} s of CPU in"
        f" {restart['passes']} passes, agents {restart['agents_cpu_seconds']} s;"
        f" {sum(restart['requests'].values())} requests; load {restart['load']}"
    )


def _summed(figures: Json, goal: float | None) -> str:
    whole, worst = figures["seconds"], figures["requests"]["worst"]
    text = f"median {whole['median']} s, worst {whole['worst']} s"
    if goal is not None:
        text += f" (goal {goal:g} s: {'reached' if whole['median'] <= goal else 'missed'})"
    reached = "reached" if worst <= GOAL_REQUESTS else "missed"
    return f"{text}; at most {worst} requests (goal {GOAL_REQUESTS}: {reached})"

"""SIGKILL of a rank until training goes on: on real nodes, or by `rerail run`; warm start beside cold start.

Times are those of the trainer's own lines, which carry this machine's wall clock, and of the job's ledger.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Protocol, TypeVar

from .report import Json, Tell

T = TypeVar("T")
STEPS_BETWEEN = 12
"""Steps beyond the last interruption before the next kill: more than lie between two saves."""
SAVE_EVERY = 10
PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.02
PHASES = ("imported", "met", "compiled", "loaded", "first_step")
FOREIGN = ("import", "load")
"""What is not of our own making: importing torch, and reading the state."""


class Place(Protocol):
    """Where the job runs."""

    lines: Path

    def kill(self, rank: int) -> None:
        """SIGKILL to the process of a rank."""

    def incidents(self) -> list[Json]:
        """What the job's status had of its interruptions in the end: the last 16."""


Opened = Callable[[str], AbstractContextManager[Place]]
"""The place where the job with this warmStart runs."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL and what came of it; seconds since the signal."""

    rank: int
    at_step: int
    resumed_at: int
    first_step: float
    new_step: float
    spans: dict[str, float]
    """Seconds from the signal to the first step, one part after the other."""

    @property
    def own(self) -> float:
        return self.first_step - sum(self.spans[name] for name in FOREIGN)


def training(lines: str, warm: str) -> Json:
    """Two nodes, one rank each, small steps for as long as the bench wants them."""
    command = ["python", "-m", "rerail_trainer", "--preset", "tiny", "--train.steps=1000000"]
    command += ["--batch.tokens_per_step=512", f"--checkpoint.every_steps={SAVE_EVERY}"]
    container = {"name": "trainer", "image": "any", "command": [*command, f"--metrics.jsonl={lines}"]}
    # All ranks share this machine's cores: more threads than ranks would only fight.
    container["env"] = [{"name": "OMP_NUM_THREADS", "value": "1"}]
    return {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": f"recovery-{warm.lower()}", "namespace": "default"},
        "spec": {
            "numNodes": 2,
            "numProcPerNode": 1,
            "warmStart": warm,
            "failurePolicy": {"maxRestarts": 10_000},
            "checkpoint": {"graceSeconds": 30},
            "template": {"spec": {"containers": [container]}},
        },
    }


def measure(
    opened: Callable[[str], AbstractContextManager[Place]], kills: int, warm: str, tell: Tell
) -> Json:
    """`kills` interruptions of one job, one after the other; `opened` gives the place it runs in."""
    done: list[Kill] = []
    with opened(warm) as place:
        _until(lambda: _highest(place.lines) >= STEPS_BETWEEN, "the first steps")
        for number in range(kills):
            done.append(_interrupt(place, number % 2))
            kill = done[-1]
            told = ", ".join(f"{name} {seconds:.2f}" for name, seconds in kill.spans.items())
            tell(f"warmStart {warm}, kill {number + 1}: first step after {kill.first_step:.2f} s ({told})")
    return summary(warm, done, place.incidents())


def summary(warm: str, done: list[Kill], incidents: list[Json]) -> Json:
    """Median and worst of everything, in seconds."""
    stages = sorted({name for incident in incidents for name in incident["stageSeconds"]})
    return {
        "warm_start": warm,
        "kills": len(done),
        "first_step": _spread([kill.first_step for kill in done]),
        "new_step": _spread([kill.new_step for kill in done]),
        "own": _spread([kill.own for kill in done]),
        "steps_lost": _spread([float(kill.at_step - kill.resumed_at) for kill in done]),
        "spans": {name: _spread([kill.spans[name] for kill in done]) for name in done[0].spans},
        "ledger": {
            name: _spread([incident["stageSeconds"].get(name, 0.0) for incident in incidents])
            for name in stages
        },
        "incidents": len(incidents),
    }


def describe(result: Json) -> Iterator[str]:
    """The result as lines for people."""
    yield f"warmStart {result['warm_start']}, {result['kills']} kills: median / worst in seconds"
    for name in ("first_step", "own", "new_step"):
        yield f"  {name:<12} {result[name]['median']:6.2f} / {result[name]['worst']:.2f}"
    for kind in ("spans", "ledger"):
        told = [f"{name} {s['median']:.2f}/{s['worst']:.2f}" for name, s in result[kind].items()]
        yield f"  {kind}: {', '.join(told)}"


def interruption(path: Path, killed: float, rank: int) -> Kill | None:
    """What the lines tell about the kill at that time; None before the round after it has made a new step."""
    lines = _since_restart(path, killed)
    steps = [line for line in lines if "loss" in line]
    if not steps:
        return None
    highest = _highest(path, until=lines[0]["time"])
    new = next((line["time"] for line in steps if line["step"] > highest), None)
    passed: dict[str, Json] = {}
    for line in lines:
        if line.get("event") == "phase":
            passed.setdefault(line["phase"], line)
    if new is None or PHASES[-1] not in passed:
        return None
    first = steps[0]
    return Kill(
        rank=rank,
        at_step=highest,
        resumed_at=first["step"] - 1,
        first_step=first["time"] - killed,
        new_step=new - killed,
        spans=_spans(passed, killed),
    )


def _interrupt(place: Place, rank: int) -> Kill:
    _until(lambda: settled(place.lines), "steps after the last interruption")
    killed = time.time()
    place.kill(rank)
    return _until(lambda: interruption(place.lines, killed, rank), "a new step")


def _spans(passed: dict[str, Json], killed: float) -> dict[str, float]:
    imported = passed["imported"]
    born = imported["time"] - imported["seconds"]
    times = [killed, born, *(passed[phase]["time"] for phase in PHASES)]
    names = ("to_start", "import", "meet", "rehearse", "load", "step")
    return {name: later - earlier for name, (earlier, later) in zip(names, pairwise(times), strict=True)}


def _since_restart(path: Path, killed: float) -> list[Json]:
    """What the ranks of the round after the kill have written; a survivor of it may write a step still."""
    lines = [line for line in _lines(path) if line["time"] > killed]
    begun = (i for i, line in enumerate(lines) if line.get("phase") == PHASES[0])
    return lines[next(begun, len(lines)) :]


def settled(path: Path) -> bool:
    """Enough steps since the last start, and a save among them."""
    begun, steps, saved = 0, 0, False
    for line in _lines(path):
        if line.get("event") == "start":
            begun, steps, saved = line["step"], 0, False
        saved = saved or (line.get("event") == "commit" and line["step"] > begun)
        steps += "loss" in line
    return saved and steps >= STEPS_BETWEEN


def _lines(path: Path) -> list[Json]:
    found = []
    for text in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):  # half written
            found.append(json.loads(text))
    return found


def _highest(path: Path, until: float = float("inf")) -> int:
    steps = [line["step"] for line in _lines(path) if "loss" in line and line["time"] <= until]
    return max(steps, default=0)


def _until(look: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not in {PATIENCE_SECONDS:g} s: {what}")
        time.sleep(POLL_SECONDS)
    return found


def _spread(values: list[float]) -> Json:
    return {"median": round(median(values), 3), "worst": round(max(values), 3)}

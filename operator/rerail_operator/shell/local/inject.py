"""Faults on purpose: what `--inject` may say, and when each is due. Knows nothing of processes."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

EXAMPLES = (
    "kill:rank=3,step=40 (SIGKILL to a rank), stop:node=1,step=40 (SIGTERM to a pod), "
    "lose:node=1,step=40 (a node vanishes), hang:rank=1,step=40 (SIGSTOP to a rank)"
)


class BadFault(ValueError):
    """An `--inject` that cannot be read or can never happen; the text says what to write instead."""


class FaultKind(StrEnum):
    """What is done to the job."""

    KILL = "kill"  # SIGKILL to one rank
    STOP = "stop"  # SIGTERM to the pod of one node rank
    LOSE = "lose"  # the node of one node rank vanishes with its processes
    HANG = "hang"  # SIGSTOP to one rank: it stands still and the others wait for it


TARGET_KEY = {FaultKind.KILL: "rank", FaultKind.STOP: "node", FaultKind.LOSE: "node", FaultKind.HANG: "rank"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, once: done to rank or node rank `target` as soon as the job has finished `step`."""

    kind: FaultKind
    target: int
    step: int

    def __str__(self) -> str:
        return f"{self.kind}:{TARGET_KEY[self.kind]}={self.target},step={self.step}"


@dataclass(frozen=True, slots=True)
class Gang:
    """The sizes that a fault must fit into."""

    num_nodes: int
    nproc: int

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.nproc


def parse_fault(text: str, gang: Gang) -> Fault:
    """Read `kind:target=N,step=N`. Raises `BadFault`."""
    kind = _kind(text)
    values = _values(text, ("step", TARGET_KEY[kind]))
    fault = Fault(kind, values[TARGET_KEY[kind]], values["step"])
    limit = gang.world_size if TARGET_KEY[kind] == "rank" else gang.num_nodes
    if fault.target >= limit:
        what = TARGET_KEY[kind]
        raise BadFault(
            f"--inject {text}: the job has {limit} {what}{'s' if limit != 1 else ''}: "
            f"write {what}=0 to {what}={limit - 1}"
        )
    return fault


def _kind(text: str) -> FaultKind:
    word = text.partition(":")[0].strip()
    try:
        return FaultKind(word)
    except ValueError:
        near = difflib.get_close_matches(word, [str(kind) for kind in FaultKind], n=1)
        hint = f" did you mean {near[0]}?" if near else ""
        raise BadFault(f"--inject {text}: unknown fault {word!r};{hint} write one of: {EXAMPLES}") from None


def _values(text: str, needed: Iterable[str]) -> dict[str, int]:
    keys = tuple(needed)
    found: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.partition(":")[2].split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in keys:
            takes = " and ".join(sorted(keys))
            raise BadFault(f"--inject {text}: unknown key {key!r}; this fault takes {takes}")
        if key in found:
            raise BadFault(f"--inject {text}: {key} is there twice")
        if not re.fullmatch(r"[0-9]+", value):
            raise BadFault(f"--inject {text}: {key} is {value!r}; write a whole number, as in {key}=1")
        found[key] = int(value)
    if missing := [key for key in keys if key not in found]:
        raise BadFault(f"--inject {text}: {' and '.join(missing)} missing; write as in: {EXAMPLES}")
    return found


@dataclass(slots=True)
class Schedule:
    """The faults that are still to come."""

    waiting: list[Fault]

    def due(self, step: int) -> list[Fault]:
        """Take out, in the order given, the faults whose step is finished."""
        due = [fault for fault in self.waiting if fault.step <= step]
        self.waiting = [fault for fault in self.waiting if fault.step > step]
        return due

"""Frames from the coordinator, parsed once into orders."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Union


class BadFrame(Exception):
    """A frame that does not keep to the protocol; the message says which part."""


@dataclass(frozen=True)
class Release:
    """Under what identity the ranks of one round run; `raw` is repeated word for word to a new leader."""

    round: int
    node_rank: int
    num_nodes: int
    nproc: int
    master_addr: str
    master_port: int
    min_step: int
    raw: dict[str, Any] = field(repr=False, compare=False)
    checkpoint_seconds: int = 0

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.nproc


@dataclass(frozen=True)
class Join:
    """Stop what runs of an older round and stand at the barrier of this one."""

    term: int
    round: int


@dataclass(frozen=True)
class Run:
    """Start the ranks; only valid at the barrier of the release's round."""

    term: int
    round: int
    release: Release


@dataclass(frozen=True)
class Stop:
    """Stop the ranks: `save` gives them TERM and the grace, otherwise KILL at once."""

    term: int
    round: int
    save: bool
    grace_seconds: float


@dataclass(frozen=True)
class Finish:
    """End the agent's process; `code` None means the root rank's own."""

    term: int
    code: int | None
    message: str


@dataclass(frozen=True)
class Advice:
    """How many seconds the ranks of a round should train between checkpoints; 0: as they like."""

    term: int
    round: int
    checkpoint_seconds: int


@dataclass(frozen=True)
class Probe:
    """Connect to a peer of which the coordinator hears nothing. No order: it changes nothing here."""

    id: int
    address: str
    port: int


Order = Union[Join, Run, Stop, Finish]


@dataclass(frozen=True)
class Question:
    """Where do the ranks of this round stand, that make no step after `step`? Changes nothing."""

    term: int
    round: int
    step: int | None


def parse_frame(line: bytes) -> dict[str, Any]:
    """One JSON object with a string `kind`; raises BadFrame."""
    try:
        frame = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadFrame("a frame is not JSON") from error
    if not isinstance(frame, dict) or not isinstance(frame.get("kind"), str):
        raise BadFrame("a frame is not an object with a kind")
    return frame


def parse_order(frame: dict[str, Any]) -> Order:
    """The order in a frame of kind `order`; raises BadFrame."""
    do, term = frame.get("do"), whole(frame, "term")
    if do == "join":
        return Join(term, whole(frame, "round", 1))
    if do == "run":
        release = _release(frame.get("release"))
        if release.round != whole(frame, "round", 1):
            raise BadFrame("run: the release is of another round")
        return Run(term, release.round, release)
    if do == "stop":
        return _stop(frame, term)
    if do == "finish":
        code = whole(frame, "code") if frame.get("code") is not None else None
        if code is not None and code > 255:
            raise BadFrame(f"finish: a process cannot end with code {code}")
        return Finish(term, code, str(frame.get("message") or ""))
    raise BadFrame(f"an order to {do!r}, which this agent does not know")


def parse_advice(frame: dict[str, Any]) -> Advice:
    """What a frame of kind `advice` says; raises BadFrame."""
    return Advice(whole(frame, "term"), whole(frame, "round", 1), whole(frame, "checkpoint_seconds"))


def parse_probe(frame: dict[str, Any]) -> Probe:
    """The question in a frame of kind `probe`; raises BadFrame."""
    address = frame.get("address")
    if not isinstance(address, str) or not address:
        raise BadFrame(f"probe: address is {address!r}")
    port = whole(frame, "port", 1)
    if port > 65535:
        raise BadFrame(f"probe: there is no port {port}")
    return Probe(whole(frame, "id"), address, port)


def parse_question(frame: dict[str, Any]) -> Question:
    """A frame of kind `stacks`; raises BadFrame."""
    step = whole(frame, "step") if frame.get("step") is not None else None
    return Question(whole(frame, "term"), whole(frame, "round", 1), step)


def whole(frame: dict[str, Any], name: str, least: int = 0) -> int:
    """A whole number of at least `least`; raises BadFrame."""
    value = frame.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadFrame(f"{name} is {value!r}, not a whole number of at least {least}")
    return value


def _stop(frame: dict[str, Any], term: int) -> Stop:
    mode, grace = frame.get("mode"), frame.get("grace", 0)
    if mode not in ("save", "abort"):
        raise BadFrame(f"stop: mode is {mode!r}, neither save nor abort")
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or not 0 <= grace < 1e9:
        raise BadFrame(f"stop: grace is {grace!r}, not a number of seconds")
    return Stop(term, whole(frame, "round"), mode == "save", float(grace))


def _release(raw: Any) -> Release:
    if not isinstance(raw, dict):
        raise BadFrame("run: no release")
    release = Release(
        round=whole(raw, "round", 1),
        node_rank=whole(raw, "node_rank"),
        num_nodes=whole(raw, "num_nodes", 1),
        nproc=whole(raw, "nproc", 1),
        master_addr=str(raw.get("master_addr") or ""),
        master_port=whole(raw, "master_port", 1),
        min_step=whole(raw, "min_step") if raw.get("min_step") is not None else 0,
        raw=raw,
        checkpoint_seconds=whole(raw, "checkpoint_seconds")
        if raw.get("checkpoint_seconds") is not None
        else 0,
    )
    if not release.master_addr or release.node_rank >= release.num_nodes:
        raise BadFrame("run: the release has no master address or a node rank beyond its nodes")
    return release

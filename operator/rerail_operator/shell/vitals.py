"""What the process tells of itself: the checks behind its probes and the figures behind its metrics."""

from collections.abc import Callable
from typing import Protocol

from .coordinator import Coordinator
from .engine import Engine
from .events import EventRecorder
from .leader import Leadership
from .metrics import Gauge
from .probes import Checks, fresh

# The informer itself gives up a silent stream after 70 s and tries again: much older means that it is not at
# work any more. An API server that is away is no reason to restart us.
STALLED_SECONDS = 180.0


class Parts(Protocol):
    """What is looked at; `engine` comes late."""

    engine: Engine | None
    leadership: Leadership
    coordinator: Coordinator
    recorder: EventRecorder
    problems: dict[str, str]


def checks(parts: Parts) -> Checks:
    def workers() -> str:
        return "" if parts.engine is None or parts.engine.healthy else "a worker has ended"

    def stalled() -> float:
        return parts.engine.fleet.stalled() if parts.engine is not None else 0.0

    def picture() -> str:
        if parts.engine is not None and parts.engine.fleet.synced:
            return ""
        return "the cluster has not been read whole yet"

    return Checks(
        alive={"workers": workers, "streams": fresh(stalled, STALLED_SECONDS)},
        ready={
            "authority": lambda: parts.problems["authority"],
            "crd": lambda: parts.problems["crd"],
            "picture": picture,
        },
    )


def gauges(parts: Parts) -> tuple[Gauge, ...]:
    def of_engine(read: Callable[[Engine], float]) -> Callable[[], float]:
        return lambda: read(parts.engine) if parts.engine is not None else 0.0

    leads = "1 while this process leads."
    term = "Term of the leader, as this process knows it."
    age = of_engine(lambda engine: engine.fleet.stream_age())
    return (
        Gauge("rerail_leader", leads, lambda: float(parts.leadership.is_leader)),
        Gauge("rerail_nodes_struck", "Nodes avoided by all jobs.", of_engine(lambda e: len(e.fleet.struck))),
        Gauge("rerail_leader_term", term, lambda: parts.leadership.term),
        Gauge("rerail_agents_connected", "Agents connected here.", lambda: parts.coordinator.connections),
        Gauge("rerail_workqueue_depth", "Jobs that wait for a pass.", of_engine(lambda e: e.queue.depth)),
        Gauge("rerail_stream_age_seconds", "Seconds since the stillest stream said anything.", age),
        Gauge("rerail_passes", "Passes made.", of_engine(lambda e: e.passes), counter=True),
        Gauge(
            "rerail_pass_failures", "Passes ended by a bug.", of_engine(lambda e: e.failures), counter=True
        ),
        Gauge("rerail_events_dropped", "Events not posted.", lambda: parts.recorder.dropped, counter=True),
    )

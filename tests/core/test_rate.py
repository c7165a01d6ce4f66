"""The budget by rate: free restarts beyond what any model expects are held back, never failed."""

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import Incident, IncidentClass, Ledger, RestartCounts, Stage
from rerail_operator.core.rate import hold

from .builders import NOON, Scene, an_incident, running
from .wants import Want, check

K = IncidentClass
DAY = 86_400.0
HOUR = 3600.0


def losses(count: int, *, apart: float = 60, kind: K = K.NODE_LOSS, charged: bool = False) -> list[Incident]:
    """So many incidents with so many seconds between them, the newest at noon."""
    return [
        an_incident(n + 1, at=-apart * (count - 1 - n), class_=kind, charged=charged) for n in range(count)
    ]


def scene(nodes: int, incidents: list[Incident], *, ran: float = 0.0, **spec: object) -> Scene:
    """A job of so many nodes that has run for so many seconds."""
    kept = incidents[-16:]
    ledger = Ledger(wall_seconds=ran, productive_seconds=ran, stage=Stage.PRODUCTIVE, stage_since=NOON)
    base = running().status(incidents=tuple(kept), ledger=ledger)
    return base.spec(num_nodes=nodes, **spec)


HELD: dict[str, tuple[Scene, float | None]] = {
    "no incident holds nothing": (scene(16, []), None),
    "six free restarts in a row are never held": (scene(16, losses(6)), None),
    "the seventh is": (scene(16, losses(7)), 30),
    "each further one is held for twice as long": (scene(16, losses(9)), 120),
    "up to ten minutes": (scene(16, losses(16), startup_deadline_seconds=3600), 600),
    "but never for more than half of what a start may take": (
        scene(16, losses(16), startup_deadline_seconds=300),
        150,
    ),
    "seven within more than six hours are not held": (scene(16, losses(7, apart=3700)), None),
    "charged restarts have a budget of their own": (scene(16, losses(16, charged=True)), None),
    "nor does a charged failure wait for the free ones before it": (
        scene(16, [*losses(12)[:-1], an_incident(12, charged=True)]),
        None,
    ),
    "who is preempted again and again is not held": (scene(16, losses(16, kind=K.PREEMPTION)), None),
    "nor is who is drained": (scene(16, losses(16, kind=K.DRAIN)), None),
    "a large job is let more pass: 1,875 nodes expect 3 in 6 hours": (
        scene(1875, losses(9, apart=HOUR / 2)),
        None,
    ),
    "and is held beyond three times that": (scene(1875, losses(10, apart=HOUR / 2)), 30),
    "18,750 nodes expect 30 in 6 hours, and are judged by a shorter window": (
        scene(18_750, losses(16, apart=300)),
        None,
    ),
    "in which ten are let pass": (scene(18_750, losses(16, apart=200)), 60),
    "a job that has shown a higher rate for days is believed": (
        scene(
            1875,
            [an_incident(n, at=(n - 400) * 1500, class_=K.NODE_LOSS, charged=False) for n in range(385, 401)],
            ran=20 * DAY,
        ),
        None,
    ),
    "a runaway does not become the rule": (
        scene(
            16,
            [an_incident(n, at=(n - 400) * 300, class_=K.NODE_LOSS, charged=False) for n in range(385, 401)],
            ran=2 * DAY,
            startup_deadline_seconds=3600,
        ),
        600,
    ),
}


@pytest.mark.parametrize(("told", "seconds"), HELD.values(), ids=HELD)
def test_how_long_a_free_restart_is_held_back(told: Scene, seconds: float | None) -> None:
    found = hold(told.job)
    assert (found.delay.total_seconds() if found else None) == seconds


def test_it_says_the_numbers() -> None:
    found = hold(scene(1875, losses(10, apart=HOUR / 2)).job)
    assert found is not None
    assert found.why == (
        "10 free restarts in 6 h, where 3 are expected of 1875 nodes and 9 are let pass:"
        " look at the cluster (`rerail nodes`)"
    )
    found = hold(scene(18_750, losses(16, apart=200)).job)
    assert found is not None and "12 free restarts in 39 min, where 3.3 are expected" in found.why


def at_the_barrier(count: int) -> Scene:
    """All agents stand at the barrier of the round that the newest of so many node losses opened."""
    base = running(2).incident(*losses(count))
    base = base.status(round=2, restarts=RestartCounts(total=count))
    return base.all(state=AgentState.READY, round=2, exit=None, release=None)


def test_the_barrier_stays_shut_until_then_and_the_job_says_why_once() -> None:
    held = at_the_barrier(8).later(20)
    check(
        held,
        Want(
            "RestartRate",
            phase="Restarting",
            says="8 free restarts in 6 h, where 0.0033 are expected of 2 nodes and 6 are let pass",
            within=40,
            status={"ledger.stage": "decision"},
        ),
    )
    assert [note.reason for note in held.plan().notes] == ["RestartRate"]
    assert [note.reason for note in held.written().later(10).plan().notes] == []
    check(at_the_barrier(8).later(61), Want("Released", intent=True, phase="Restarting"))


def test_a_job_that_is_held_back_never_fails() -> None:
    held = at_the_barrier(16).spec(startup_deadline_seconds=120)
    for seconds in range(0, 60, 5):
        assert held.later(seconds).plan().status.reason == "RestartRate"  # type: ignore[union-attr]
    check(held.later(61), Want("Released", intent=True, phase="Restarting"))


def test_the_hold_moves_with_nothing_but_the_status() -> None:
    assert hold(at_the_barrier(8).job) == hold(at_the_barrier(8).later(55).job)

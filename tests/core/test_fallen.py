"""A rack that falls as one is one incident, whenever each of its nodes is called not ready."""

import pytest

from rerail_api.status import Incident, IncidentClass

from .builders import Scene, an_incident, running
from .ground import RACK, ZONE


def racked(*racks: str) -> Scene:
    """A gang whose node ranks stand in these racks, one node each, and a node more."""
    scene = running(len(racks))
    for rank, rack in enumerate(racks):
        scene = scene.node(f"n{rank}", labels={ZONE: "z", RACK: rack} if rack else {})
    return scene


def falls(scene: Scene, *ranks: int, at: float = 0) -> Scene:
    """These nodes go: their agents were last heard of then, and the API server says not ready."""
    for rank in ranks:
        scene = scene.node(f"n{rank}", ready=False).silent(rank, since=at)
    return scene


def silent(scene: Scene, *ranks: int, at: float = 0) -> Scene:
    for rank in ranks:
        scene = scene.silent(rank, since=at)
    return scene


def newest(scene: Scene) -> Incident:
    status = scene.plan().status
    assert status is not None
    return status.incidents[-1]


def notes(scene: Scene) -> list[str]:
    return [note.message for note in scene.plan().notes if note.reason == "DomainLost"]


COUNTS: dict[str, tuple[Scene, int | None]] = {
    "three nodes of a rack": (falls(racked("r1", "r7", "r7", "r7"), 1, 2, 3), 3),
    "two nodes of a rack are not a rack": (falls(racked("r1", "r1", "r7", "r7"), 2, 3), None),
    "three of one rack and one of another": (falls(racked("r1", "r7", "r7", "r7", "r9"), 1, 2, 3, 4), 3),
    "three racks of one zone": (falls(racked("r1", "r7", "r8", "r9"), 1, 2, 3), 3),
    "nodes that do not say where they stand": (falls(racked("", "", "", ""), 1, 2, 3), None),
    "one that fell a minute before": (
        falls(falls(racked("r1", "r7", "r7", "r7"), 1, 2, at=60), 3, at=0).later(60),
        None,
    ),
}


@pytest.mark.parametrize(("scene", "count"), COUNTS.values(), ids=COUNTS)
def test_what_falls_together_is_counted_in_the_incident(scene: Scene, count: int | None) -> None:
    scene = scene.later(8)
    assert scene.plan().intent
    assert newest(scene).class_ is IncidentClass.NODE_LOSS
    assert newest(scene).nodes_lost == count
    assert len(notes(scene)) == (count is not None)


def test_nodes_that_are_called_not_ready_one_by_one_are_one_incident_that_grows() -> None:
    scene = silent(racked("r1", "r7", "r7", "r7", "r7"), 2, 3, 4)
    scene = falls(scene, 1).later(8)
    assert scene.plan().intent
    scene = scene.written()
    assert newest(scene).nodes_lost is None
    told = []
    for rank in (2, 3, 4):
        scene = falls(scene, rank).later(1)
        told += notes(scene)
        scene = scene.written()
    status = scene.job.status
    assert (status.restarts.total, len(status.incidents), status.round) == (1, 1, 2)
    assert status.incidents[-1].nodes_lost == 4
    assert told == [
        f"incident 1: {count} nodes of rack r7 were lost within 10 s, one event" for count in (3, 4)
    ]
    assert notes(scene.later(1)) == []


def test_the_count_stays_when_the_pods_are_gone() -> None:
    scene = falls(racked("r1", "r7", "r7", "r7"), 1, 2, 3).later(8).written()
    for rank in (1, 2, 3):
        scene = scene.gone(rank)
    assert newest(scene.later(1)).nodes_lost == 3


def test_an_incident_that_is_over_is_left_as_it_is() -> None:
    over = an_incident(class_=IncidentClass.NODE_LOSS, node="n1", resolved_time=racked("r1").now)
    scene = racked("r1", "r7", "r7", "r7").incident(over).status(round=2)
    assert newest(falls(scene, 1, 2, 3)).nodes_lost is None

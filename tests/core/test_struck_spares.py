"""Spares and nodes that all jobs avoid: none is made there, and one that stands there is the last to be taken."""

from rerail_operator.core.plan import CreatePod, PromoteSpare

from .builders import Scene, running
from .test_spares import lost, repaired, with_spare

STRUCK = "3 strikes in 7 days"


def two_spares() -> Scene:
    """A gang of two whose node rank 1 has lost its node; spares stand on n2 and n3."""
    scene = with_spare(with_spare(running(2, spares=2)), 3).node("n2").node("n3")
    return lost(repaired(scene), 1)


def promoted(scene: Scene) -> list[str]:
    return [action.uid for action in scene.plan().actions if isinstance(action, PromoteSpare)]


def test_a_spare_on_a_struck_node_is_taken_after_the_others() -> None:
    assert promoted(two_spares()) == ["p1-2"]
    assert promoted(two_spares().node("n2", struck=STRUCK)) == ["p1-3"]


def test_a_spare_on_a_struck_node_is_better_than_none() -> None:
    assert promoted(two_spares().node("n2", struck=STRUCK).node("n3", struck=STRUCK)) == ["p1-2"]


def test_no_spare_is_made_on_a_struck_node_although_there_is_no_other() -> None:
    gang = running(2, spares=1)
    assert [a.node for a in gang.plan().actions if isinstance(a, CreatePod)] == ["n2"]
    assert gang.node("n2", struck=STRUCK).plan().actions == ()

"""Whose spares make room for whom: nobody waits for a node that only a spare holds."""

from dataclasses import replace

import pytest

from rerail_operator.core.admission import Queued, plan_admissions
from rerail_operator.core.room import HeldSpare, Line, Need, Room, room, with_room
from rerail_operator.core.survey import GangRequest
from rerail_operator.core.world import Node, Nodes, Refusal

from . import ground
from .builders import after

EIGHT = GangRequest(1, {ground.GPU: 8000})


def full_node(name: str) -> Node:
    return ground.a_node(name, free_gpus=0)


def held(number: int, job: str = "b") -> HeldSpare:
    return HeldSpare(f"u{number}", f"s{number}", job, f"team/{job}", f"n{number}", {ground.GPU: 8000})


def waiting(uid: str, nodes: int, at: int = 0) -> Queued:
    return Queued(uid, "team", uid, after(at), replace(EIGHT, num_nodes=nodes))


def line_of(*queue: Queued, nodes: Nodes, unplaceable: tuple[Need, ...] = ()) -> Line:
    return Line(queue, plan_admissions(queue, nodes, settled=True), unplaceable)


N3 = ground.nodes_of(full_node("n0"), full_node("n1"), full_node("n2"))
N3_FREE = ground.nodes_of(ground.a_node("n0"), full_node("n1"), full_node("n2"))

ROOMS: dict[str, tuple[Line, tuple[HeldSpare, ...], Nodes, Room]] = {
    "nobody waits: spares stay and grow": (Line((), {}), (held(1),), N3, Room()),
    "a job that waits for one node gets that of a spare": (
        line_of(waiting("a", 1), nodes=N3),
        (held(1),),
        N3,
        Room(frozenset({"u1"}), "a", "1 spare of other jobs makes room: s1", for_spares=False),
    ),
    "no more than it needs": (
        line_of(waiting("a", 2), nodes=N3_FREE),
        (held(1), held(2)),
        N3_FREE,
        Room(frozenset({"u2"}), "a", "1 spare of other jobs makes room: s2", for_spares=False),
    ),
    "none is given where all would not do": (
        line_of(waiting("a", 3), nodes=N3),
        (held(1), held(2)),
        N3,
        Room(),
    ),
    "the next in line is helped where the first cannot be": (
        line_of(waiting("a", 3), waiting("c", 1, at=1), nodes=N3),
        (held(1),),
        N3,
        Room(frozenset({"u1"}), "c", "1 spare of other jobs makes room: s1", for_spares=False),
    ),
    "no spare is made while a job is about to take its place": (
        line_of(waiting("a", 1), nodes=N3_FREE),
        (held(1),),
        N3_FREE,
        Room(for_spares=False),
    ),
    "a node rank without a node comes before the whole queue": (
        line_of(waiting("a", 1), nodes=N3, unplaceable=(Need("r", EIGHT),)),
        (held(1),),
        N3,
        Room(frozenset({"u1"}), "r", "1 spare of other jobs makes room: s1", for_spares=False),
    ),
    "a job's own spares are its own affair": (
        line_of(nodes=N3, unplaceable=(Need("b", EIGHT),)),
        (held(1),),
        N3,
        Room(),
    ),
    "a spare on a node that the job cannot use stays": (
        line_of(replace(waiting("a", 1), request=replace(EIGHT, excluded={"n1": "lost"})), nodes=N3),
        (held(1),),
        N3,
        Room(),
    ),
}


@pytest.mark.parametrize("case", ROOMS.values(), ids=ROOMS)
def test_whose_spares_make_room(case: tuple[Line, tuple[HeldSpare, ...], Nodes, Room]) -> None:
    line, spares, nodes, wanted = case
    assert room(line, spares, nodes) == wanted


def test_a_job_that_spares_make_room_for_is_told_so() -> None:
    line = line_of(waiting("a", 1), waiting("c", 1, at=1), nodes=N3)
    told = with_room(line.answers, room(line, (held(1),), N3))
    assert told["a"] == Refusal("WaitingForSpares", "1 spare of other jobs makes room: s1")
    assert told["c"] == line.answers["c"]

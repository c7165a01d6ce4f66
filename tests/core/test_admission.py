"""Who starts next: oldest first, nobody holds half, whoever cannot start holds nothing."""

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_operator.core.admission import Queued, plan_admissions
from rerail_operator.core.placement import gang_request
from rerail_operator.core.world import Node, Placement, Refusal

from .ground import GPU, a_node, a_template, nodes_of

DAWN = datetime(2026, 11, 1, tzinfo=UTC)


def job(name: str, nodes: int, *, age: int = 0, gpus: int = 8) -> Queued:
    """`age` counts minutes: the higher, the older."""
    return Queued(name, "team", name, DAWN - timedelta(minutes=age), gang_request(a_template(gpus), nodes))


def four() -> tuple[Node, ...]:
    return tuple(a_node(f"n{i}") for i in range(1, 5))


QUEUES: dict[str, tuple[list[Queued], dict[str, str]]] = {
    "the older of two takes the room": (
        [job("young", 3), job("old", 3, age=1)],
        {
            "old": "n1 n2 n3",
            "young": "WaitingForOlderJob: 1st in the queue: needs 3 nodes with 8 free nvidia.com/gpu; 1 fits; "
            "3 have less than 8 nvidia.com/gpu free: n1, n2, n3; team/old starts first",
        },
    ),
    "of the same age the name decides": (
        [job("b", 4), job("a", 4)],
        {
            "a": "n1 n2 n3 n4",
            "b": "WaitingForOlderJob: 1st in the queue: needs 4 nodes with 8 free nvidia.com/gpu; none fit; "
            "4 have less than 8 nvidia.com/gpu free: n1, n2, n3, n4; team/a starts first",
        },
    ),
    "who cannot start reserves nothing": (
        [job("huge", 5, age=2), job("small", 4, age=1)],
        {
            "huge": "NeverFits: needs 5 nodes with 8 free nvidia.com/gpu; only 4 could ever hold such a pod",
            "small": "n1 n2 n3 n4",
        },
    ),
    "two gangs share nodes where both fit": (
        [job("a", 4, gpus=4), job("b", 4, gpus=4)],
        {"a": "n1 n2 n3 n4", "b": "n1 n2 n3 n4"},
    ),
    "positions count those that wait": (
        [job("a", 4, age=3), job("b", 4, age=2), job("c", 4, age=1), job("d", 4)],
        {
            "a": "n1 n2 n3 n4",
            "b": "WaitingForOlderJob: 1st in the queue: needs 4 nodes with 8 free nvidia.com/gpu; none fit; "
            "4 have less than 8 nvidia.com/gpu free: n1, n2, n3, n4; team/a starts first",
            "c": "WaitingForOlderJob: 2nd in the queue: needs 4 nodes with 8 free nvidia.com/gpu; none fit; "
            "4 have less than 8 nvidia.com/gpu free: n1, n2, n3, n4; team/a starts first",
            "d": "WaitingForOlderJob: 3rd in the queue: needs 4 nodes with 8 free nvidia.com/gpu; none fit; "
            "4 have less than 8 nvidia.com/gpu free: n1, n2, n3, n4; team/a starts first",
        },
    ),
}


def told(offer: Placement | Refusal) -> str:
    return (
        f"{offer.reason}: {offer.message}" if isinstance(offer, Refusal) else " ".join(offer.nodes.values())
    )


@pytest.mark.parametrize(("queue", "answers"), QUEUES.values(), ids=QUEUES)
def test_a_queue_is_answered_as_a_whole(queue: list[Queued], answers: dict[str, str]) -> None:
    offers = plan_admissions(queue, nodes_of(*four()), settled=True)
    assert {uid: told(offer) for uid, offer in offers.items()} == answers


def test_a_younger_job_passes_an_older_one_that_must_wait() -> None:
    nodes = nodes_of(a_node("n1"), a_node("n2", free_gpus=0))
    offers = plan_admissions([job("old", 2, age=1), job("young", 1)], nodes, settled=True)
    assert told(offers["young"]) == "n1"
    assert told(offers["old"]).startswith("InsufficientNodes: 1st in the queue: needs 2 nodes")


def test_nobody_is_admitted_while_the_cluster_settles() -> None:
    offers = plan_admissions([job("young", 1), job("old", 1, age=1)], nodes_of(*four()), settled=False)
    assert told(offers["old"]) == (
        "ClusterSettling: 1st in the queue: waiting until the pods of admitted jobs are accounted for"
    )
    assert told(offers["young"]).startswith("ClusterSettling: 2nd in the queue")


@pytest.mark.parametrize(
    ("number", "text"),
    [(11, "11th"), (12, "12th"), (21, "21st"), (22, "22nd"), (101, "101st"), (111, "111th")],
)
def test_positions_are_english(number: int, text: str) -> None:
    queue = [job(f"j{i:03}", 1) for i in range(number)]
    offers = plan_admissions(queue, nodes_of(a_node("n1", free_gpus=0)), settled=True)
    assert told(offers[f"j{number - 1:03}"]).startswith(f"InsufficientNodes: {text} in the queue")


jobs = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 3), st.sampled_from([1, 2, 4, 8])), max_size=8
).map(lambda rows: [job(f"j{i}", nodes, age=age, gpus=gpus) for i, (nodes, age, gpus) in enumerate(rows)])
grounds = st.lists(st.integers(0, 8), max_size=8).map(
    lambda free: tuple(a_node(f"n{i}", free_gpus=gpus) for i, gpus in enumerate(free))
)


@given(jobs, grounds)
def test_never_two_gangs_on_the_same_resources(queue: list[Queued], nodes: tuple[Node, ...]) -> None:
    offers = plan_admissions(queue, nodes_of(*nodes), settled=True)
    taken: Counter[str] = Counter()
    for each in queue:
        offer = offers[each.uid]
        if isinstance(offer, Placement):
            assert len(set(offer.nodes.values())) == each.request.num_nodes, "half a gang"
            for name in offer.nodes.values():
                taken[name] += each.request.resources[GPU]
    assert all(taken[node.name] <= node.free[GPU] for node in nodes)


@given(jobs, grounds, st.randoms())
def test_the_answer_depends_on_neither_order(
    queue: list[Queued], nodes: tuple[Node, ...], shuffle: object
) -> None:
    offers = plan_admissions(queue, nodes_of(*nodes), settled=True)
    mixed, ground = list(queue), list(nodes)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    shuffle.shuffle(ground)  # type: ignore[attr-defined]
    assert plan_admissions(mixed, nodes_of(*ground), settled=True) == offers


@given(jobs, grounds)
def test_whoever_is_refused_finds_no_room_beside_those_who_start(
    queue: list[Queued], nodes: tuple[Node, ...]
) -> None:
    offers = plan_admissions(queue, nodes_of(*nodes), settled=True)
    free = {node.name: node.free[GPU] for node in nodes}
    for each in queue:
        offer = offers[each.uid]
        if isinstance(offer, Placement):
            for name in offer.nodes.values():
                free[name] -= each.request.resources[GPU]
    for each in queue:
        if isinstance(offers[each.uid], Refusal):
            assert (
                sum(1 for left in free.values() if left >= each.request.resources[GPU])
                < each.request.num_nodes
            )


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_two_jobs_never_hold_half_each(one: int, other: int, room: int) -> None:
    """The deadlock of gang scheduling: both wait for ever for what the other holds."""
    nodes = nodes_of(*(a_node(f"n{i}") for i in range(room)))
    offers = plan_admissions([job("a", one, age=1), job("b", other)], nodes, settled=True)
    held = {uid: len(offer.nodes) for uid, offer in offers.items() if isinstance(offer, Placement)}
    assert held.get("a", one) == one
    assert held.get("b", other) == other
    assert held or min(one, other) > room, "room for one of them, yet neither starts"


def test_every_gang_of_a_mixed_queue_sees_what_the_ones_before_it_left() -> None:
    queue = [job(f"j{i}", 1, age=9 - i, gpus=3) for i in range(9)]
    offers = plan_admissions(queue, nodes_of(*four()), settled=True)
    placed = [told(offers[f"j{i}"]) for i in range(9) if isinstance(offers[f"j{i}"], Placement)]
    assert placed == list(itertools.chain.from_iterable([f"n{i}"] * 2 for i in range(1, 5)))

"""Slow ranks: when one is found, named, told of, and let go."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_api.status import MAX_STRAGGLERS, Straggler
from rerail_operator.core.plan import Level, Note
from rerail_operator.core.publish import write_due
from rerail_operator.core.stragglers import WINDOWS, slow_ranks
from rerail_operator.core.world import SlowRank

from .builders import Scene, after, at_barrier, running

EVEN = {rank: [1.0] * WINDOWS for rank in range(8)}


def told(**windows: list[float]) -> dict[int, list[float]]:
    """Eight ranks that take a second each, but for those named: r3=[...]."""
    return EVEN | {int(name[1:]): seconds for name, seconds in windows.items()}


FOUND: dict[str, tuple[Mapping[int, list[float]], tuple[SlowRank, ...] | None]] = {
    "who takes what all take is not slow": (EVEN, ()),
    "slower than 1.1 times the median in all windows is slow": (
        told(r3=[1.2] * 5),
        (SlowRank(3, 1.2, lasting=True),),
    ),
    "ten per cent are not": (told(r3=[1.1] * 5), ()),
    "a window that is not slow breaks the row": (
        told(r3=[1.5, 1.5, 1.0, 1.5, 1.5]),
        (SlowRank(3, 1.5, lasting=False),),
    ),
    "five windows are looked at, the newest": (
        told(r3=[1.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5]),
        (SlowRank(3, 1.5, lasting=True),),
    ),
    "the slowest comes first": (
        told(r3=[1.2] * 5, r1=[1.4] * 5),
        (SlowRank(1, 1.4, lasting=True), SlowRank(3, 1.2, lasting=True)),
    ),
    "when all are slow together nobody is": ({rank: [1, 9, 9, 9, 9] for rank in range(8)}, ()),
    "a faster rank makes nobody slow": (told(r3=[0.5] * 5), ()),
    "before five windows nothing is known": ({rank: [1.0] * 4 for rank in range(8)}, None),
    "where fewer than half of the ranks tell, nothing is known": (
        {0: [1.0] * 5, 1: [2.0] * 5, 2: [1.0] * 5},
        None,
    ),
    "half of them are enough": ({rank: [1.0 + rank] * 5 for rank in range(4)}, (
        SlowRank(3, 1.6, lasting=True), SlowRank(2, 1.2, lasting=True))),
    "one rank has nobody to be slower than": ({0: [1.0] * 5}, None),
    "ranks that compute nothing by themselves cannot be compared": ({rank: [0.0] * 5 for rank in range(8)}, ()),
}  # fmt: skip


def test_who_is_named_is_looked_at_in_every_window_and_others_in_the_newest() -> None:
    windows = told(r3=[1.5, 1.5, 1.0, 1.0, 1.0], r4=[1.5, 1.5, 1.0, 1.0, 1.0])
    assert slow_ranks(windows, world_size=8) == ()
    assert slow_ranks(windows, world_size=8, named={3, 99}) == (SlowRank(3, 1.0, lasting=False),)


def test_of_very_many_ranks_the_median_of_a_part_is_enough() -> None:
    many = {rank: [1.0 + rank % 7 / 100] * WINDOWS for rank in range(50_000)} | {49_999: [1.3] * WINDOWS}
    assert slow_ranks(many, world_size=50_000) == (SlowRank(49_999, 1.26, lasting=True),)


@pytest.mark.parametrize("sentence", FOUND)
def test_slow_ranks(sentence: str) -> None:
    windows, wanted = FOUND[sentence]
    assert slow_ranks(windows, world_size=8) == wanted


@given(
    st.dictionaries(
        st.integers(0, 63), st.lists(st.floats(0, 1e6), min_size=WINDOWS, max_size=WINDOWS), min_size=2
    )
)
def test_never_is_more_than_half_of_the_gang_slow_in_one_window(windows: dict[int, list[float]]) -> None:
    found = slow_ranks(windows, world_size=len(windows))
    assert found is not None
    assert sum(slow.lasting for slow in found) <= len(windows) / 2


SLOW = SlowRank(3, 1.32, lasting=True)
NAMED = Straggler(rank=3, node_rank=1, node="n1", ratio=1.32, since=after(0))


def named(scene: Scene, *stragglers: Straggler) -> Scene:
    return scene.status(stragglers=stragglers)


NAMES: dict[str, tuple[Scene, tuple[Straggler, ...], str]] = {
    "a rank that is slow in every window is named, and told of": (
        running().see(slow=(SLOW,)),
        (NAMED,),
        "StragglerSeen: rank 3 on n1: for 5 windows slower than the gang's median by more than 10 %, "
        "at worst 1.32 times; all others wait",
    ),
    "one that is slow now and then is not": (running().see(slow=(SlowRank(3, 1.3, lasting=False),)), (), ""),
    "it is told once": (named(running(), NAMED).see(slow=(SLOW,)).later(60), (NAMED,), ""),
    "it stays named while any window is slow, with the newest ratio": (
        named(running(), NAMED).see(slow=(SlowRank(3, 1.05, lasting=False),)).later(60),
        (NAMED.model_copy(update={"ratio": 1.05}),),
        "",
    ),
    "when none is, it is let go": (
        named(running(), NAMED).see(slow=()).later(60),
        (),
        "StragglerGone: rank 3 on n1: no slower than the others any more",
    ),
    "while a new leader knows too little, names stay": (named(running(), NAMED).see(slow=None), (NAMED,), ""),
    "with the round the names go": (named(at_barrier(), NAMED).see(slow=(SLOW,)), (), ""),
    "of a rank that is no rank nothing is said": (
        running().see(slow=(SlowRank(99, 3.0, lasting=True),)),
        (),
        "",
    ),
}


@pytest.mark.parametrize("sentence", NAMES)
def test_naming(sentence: str) -> None:
    scene, wanted, note = NAMES[sentence]
    plan = scene.plan()
    assert plan.status is not None and plan.status.stragglers == wanted
    about = [f"{n.reason}: {n.message}" for n in plan.notes if n.reason.startswith("Straggler")]
    assert about == ([note] if note else [])


def test_of_very_many_the_slowest_are_named_and_nobody_comes_and_goes() -> None:
    slow = tuple(SlowRank(rank, 3 - rank / 100, lasting=True) for rank in range(40))
    plan = running(32).see(slow=slow).plan()
    assert plan.status is not None
    assert [s.rank for s in plan.status.stragglers] == list(range(MAX_STRAGGLERS))
    (note,) = (n for n in plan.notes if n.reason == "StragglerSeen")
    assert note.level is Level.WARNING and "and 12 more" in note.message
    later = named(running(32), *plan.status.stragglers).see(slow=(*slow[::-1], SlowRank(50, 9, True))).plan()
    assert later.status is not None
    assert [s.rank for s in later.status.stragglers] == list(range(MAX_STRAGGLERS))
    assert not [n for n in later.notes if isinstance(n, Note) and n.reason.startswith("Straggler")]


def test_a_name_is_written_at_once_and_a_ratio_with_the_rest() -> None:
    before = running().plan().status
    first = running().see(slow=(SLOW,)).plan().status
    again = named(running(), NAMED).see(slow=(SlowRank(3, 1.4, lasting=True),)).plan().status
    assert before is not None and first is not None and again is not None
    second = after(1) - after(0)
    assert write_due(before, first, second)
    assert not write_due(first, again, second) and write_due(first, again, 11 * second)

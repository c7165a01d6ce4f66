"""What interruptions say about nodes across jobs: who gets a strike, who is avoided, until when, and never too many."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_operator.core.strikes import (
    MAX_NODES,
    PER_NODE,
    WINDOW,
    Account,
    Book,
    Record,
    State,
    Strike,
    avoided_nodes,
    bounded,
    entered,
    in_words,
    verdicts,
)
from rerail_operator.core.world import Nodes

from .ground import a_node
from .struck import FORTY, NOW, K, ago, losses, many, strike


@dataclass(frozen=True)
class Case:
    strikes: tuple[Strike, ...]
    state: State | None
    says: str = ""
    weight: Fraction = Fraction(0)
    until: datetime | None = None


RACK_7 = ("z", "", "r7")
ONE_NODE = {
    "one loss is watched": Case((strike(1),), State.WATCHED, weight=Fraction(1)),
    "two losses are watched": Case((strike(2), strike(1)), State.WATCHED, weight=Fraction(2)),
    "three losses within a week are enough": Case(
        (strike(160), strike(2), strike(1)), State.STRUCK, "", Fraction(3), ago(160) + WINDOW
    ),
    "with a fourth it stays avoided until the second is over": Case(
        (strike(160), strike(100), strike(2), strike(1)), State.STRUCK, "", Fraction(4), ago(100) + WINDOW
    ),
    "what is older than a week is over": Case((strike(169), strike(2), strike(1)), State.WATCHED, "", Fraction(2)),
    "three jobs that lose their node at once count once": Case(
        (strike(1, by="red/a"), strike(1.001, by="red/b"), strike(1.002, by="blue/c")),
        State.WATCHED, "", Fraction(1),
    ),
    "what programs say of the same moment adds nothing to it": Case(
        (strike(1), strike(1.001, K.HANG, "red/b"), strike(1.002, K.HANG, "blue/c")), State.WATCHED, "", Fraction(1)
    ),
    "when all is over the node is not spoken of": Case((strike(200),), None),
    "programs of one namespace strike nobody, however often": Case(
        tuple(strike(h, K.GPU_FAULT, "red/a") for h in (5, 4, 3, 2, 1)),
        State.WATCHED,
        "one namespace's programs",
    ),
    "nor do two jobs of one namespace": Case(
        (strike(3, K.HANG, "red/a"), strike(2, K.GPU_FAULT, "red/b"), strike(1, K.NETWORK, "red/c")),
        State.WATCHED,
        "one namespace's programs",
    ),
    "programs of two namespaces are believed": Case(
        (strike(3, K.GPU_FAULT, "red/a"), strike(2, K.HANG, "blue/b"), strike(1, K.GPU_FAULT, "red/a")),
        State.STRUCK,
        "",
        Fraction(3),
        ago(3) + WINDOW,
    ),
    "nor do peers that only say so": Case(
        tuple(strike(h, seen=False) for h in (4, 3, 2, 1)), State.WATCHED, "one namespace's programs"
    ),
    "a program's word does not top up what the cluster saw": Case(
        (strike(4), strike(3), strike(2, K.GPU_FAULT), strike(1, K.GPU_FAULT)), State.WATCHED, "", Fraction(2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_NODE.values(), ids=ONE_NODE.keys())
def test_the_record_of_one_node(case: Case) -> None:
    found = verdicts({"n1": Record(case.strikes)}, FORTY, NOW)
    if case.state is None:
        assert found == {}
        return
    verdict = found["n1"]
    assert (verdict.state, verdict.weight, verdict.until) == (case.state, case.weight, case.until)
    assert case.says in verdict.why
    assert ("n1" in avoided_nodes(found)) is (case.state is State.STRUCK)


def test_it_says_how_much_is_held_against_a_node() -> None:
    assert avoided_nodes(verdicts(losses({"n1": (3, 2, 1)}), FORTY, NOW)) == {"n1": "3 strikes in 7 days"}


def test_it_is_avoided_until_exactly_when_its_strikes_no_longer_weigh_enough() -> None:
    book = losses({"n1": (100, 2, 1)})
    until = verdicts(book, FORTY, NOW)["n1"].until
    assert until is not None
    assert verdicts(book, FORTY, until - timedelta(seconds=1))["n1"].state is State.STRUCK
    assert verdicts(book, FORTY, until)["n1"].state is State.WATCHED


# -- never too many


def test_beyond_five_percent_whoever_was_struck_first_is_let_in_and_told_so() -> None:
    book = losses({"n1": (30, 29, 28), "n2": (20, 19, 18), "n3": (10, 9, 8)})
    found = verdicts(book, FORTY, NOW)
    assert {name: v.state for name, v in found.items()} == {
        "n1": State.LET_IN,
        "n2": State.STRUCK,
        "n3": State.STRUCK,
    }
    assert found["n1"].why == "3 are struck, and at most 2 of 40 like nodes (5 %) are avoided"


def test_in_a_cluster_of_less_than_twenty_nodes_none_is_avoided() -> None:
    book = losses({"n1": (3, 2, 1)})
    assert verdicts(book, many(19), NOW)["n1"].state is State.LET_IN
    assert verdicts(book, many(20), NOW)["n1"].state is State.STRUCK


def test_nodes_without_accelerators_do_not_make_room_for_striking_those_with() -> None:
    few = {name: node for name, node in many(10).by_name.items()}
    others = {f"cpu{i}": a_node(f"cpu{i}", gpus=0) for i in range(100)}
    found = verdicts(losses({"n1": (3, 2, 1), "cpu1": (3, 2, 1)}), Nodes({**few, **others}), NOW)
    assert (found["n1"].state, found["cpu1"].state) == (State.LET_IN, State.STRUCK)
    assert found["n1"].why == "1 is struck, and at most 0 of 10 like nodes (5 %) are avoided"


def test_a_node_that_is_gone_takes_nobodys_place() -> None:
    book = losses({"gone": (3, 2, 1), "n1": (9, 8, 7)})
    found = verdicts(book, many(20), NOW)
    assert (found["gone"].state, found["n1"].state) == (State.GONE, State.STRUCK)


# -- a whole domain


def fallen(count: int, *, apart: float = 1.0, rack: str = "r7") -> Book:
    """`count` nodes of one rack, each lost once with `apart` seconds between them."""
    return {
        f"n{i}": Record((strike(5 - i * apart / 3600, by=f"red/j{i}", domain=("z", "", rack)),))
        for i in range(count)
    }


def test_nodes_of_a_rack_that_fall_within_ten_seconds_share_one_strike() -> None:
    found = verdicts(fallen(8), FORTY, NOW)
    assert {v.weight for v in found.values()} == {Fraction(1, 8)}


def test_two_nodes_of_a_rack_are_no_domain() -> None:
    assert {v.weight for v in verdicts(fallen(2), FORTY, NOW).values()} == {Fraction(1)}


def test_an_incident_that_took_a_whole_rack_holds_its_share_against_the_node_it_names() -> None:
    book = {"n1": Record(tuple(strike(hours, among=8) for hours in (3, 2, 1)))}
    assert verdicts(book, FORTY, NOW)["n1"].weight == Fraction(3, 8)


def test_nodes_of_a_rack_that_fall_one_by_one_are_struck_each() -> None:
    assert {v.weight for v in verdicts(fallen(5, apart=30), FORTY, NOW).values()} == {Fraction(1)}


def test_a_zone_counts_as_a_domain_where_no_narrower_one_fell() -> None:
    book = {f"n{i}": Record((strike(1, by=f"red/j{i}", domain=("z", "", f"r{i}")),)) for i in range(4)}
    assert {v.weight for v in verdicts(book, FORTY, NOW).values()} == {Fraction(1, 4)}


def test_nodes_that_do_not_say_where_they_stand_are_no_domain() -> None:
    book = {f"n{i}": Record((strike(1, by=f"red/j{i}"),)) for i in range(4)}
    assert {v.weight for v in verdicts(book, FORTY, NOW).values()} == {Fraction(1)}


def test_a_rack_that_fell_three_times_strikes_none_of_its_nodes() -> None:
    book: dict[str, Record] = {}
    for fall in range(3):
        for node in range(6):
            when = strike(50 - fall * 10, by=f"red/j{node}", domain=RACK_7)
            before = book.get(f"n{node}", Record()).strikes
            book[f"n{node}"] = Record((*before, when))
    found = verdicts(book, FORTY, NOW)
    assert {(v.state, v.weight) for v in found.values()} == {(State.WATCHED, Fraction(1, 2))}
    assert in_words(found["n0"]) == "0.5 strikes in 7 days"


# -- whatever comes

NAMES = [f"n{i}" for i in range(60)]
SOME = many(60)
incidents = st.builds(
    lambda node, hours, kind, by, number: (node, strike(hours, kind, by, number=number)),
    st.sampled_from(NAMES[:12]),
    st.floats(0, 200),
    st.sampled_from([K.NODE_LOSS, K.GPU_FAULT, K.HANG, K.NETWORK]),
    st.sampled_from(["red/a", "red/b", "blue/c"]),
    st.integers(1, 10_000),
)


def as_book(found: list[tuple[str, Strike]]) -> Book:
    accounts = [Account(s.uid, frozenset(), ((node, s),)) for node, s in found]
    return entered({}, accounts, NOW)


@given(st.lists(incidents, max_size=120), st.integers(0, 60))
def test_never_more_than_five_percent_are_avoided(found: list[tuple[str, Strike]], size: int) -> None:
    nodes = Nodes(dict(list(SOME.by_name.items())[:size]))
    avoided = avoided_nodes(verdicts(as_book(found), nodes, NOW))
    assert len(avoided) * 20 <= size
    assert avoided.keys() <= nodes.by_name.keys()


@given(st.lists(incidents, max_size=60), st.lists(incidents, max_size=40))
def test_programs_of_one_namespace_never_strike_a_node(
    rest: list[tuple[str, Strike]], lies: list[tuple[str, Strike]]
) -> None:
    """Whatever the cluster itself has seen: what one namespace's programs say does not add to it."""
    seen = [(n, s) for n, s in rest if s.kind is K.NODE_LOSS][:PER_NODE]
    words = [(n, s) for n, s in lies if s.kind is not K.NODE_LOSS and s.namespace == "red"]
    before = verdicts(as_book(seen), SOME, NOW)
    after = verdicts({**as_book(seen), **_joined(as_book(seen), as_book(words))}, SOME, NOW)
    struck = {name for name, v in before.items() if v.state in (State.STRUCK, State.LET_IN)}
    assert {n for n, v in after.items() if v.state in (State.STRUCK, State.LET_IN)} <= struck


def _joined(one: Book, other: Book) -> Book:
    return {
        node: Record((*one.get(node, Record()).strikes, *other.get(node, Record()).strikes))
        for node in one.keys() | other.keys()
    }


@given(st.lists(incidents, max_size=120))
def test_a_week_later_nothing_is_left(found: list[tuple[str, Strike]]) -> None:
    assert bounded(as_book(found), NOW + WINDOW) == {}


@given(st.lists(incidents, max_size=120))
def test_the_book_is_bounded_and_in_an_order_of_its_own(found: list[tuple[str, Strike]]) -> None:
    book = as_book(found)
    assert all(len(record.strikes) <= PER_NODE for record in book.values())
    assert bounded(book, NOW) == book
    assert list(book) == sorted(book)


def test_many_jobs_on_one_node_do_not_crowd_out_what_happened_before() -> None:
    at_once = [strike(hours + job / 3600, by=f"red/j{job}") for hours in (30, 20, 10) for job in range(8)]
    book = as_book([("n1", s) for s in at_once])
    assert len(book["n1"].strikes) == 3
    assert verdicts(book, FORTY, NOW)["n1"].state is State.STRUCK
    accounts = [Account(s.uid, frozenset((s.number,)), (("n1", s),)) for s in at_once[:8]]
    assert entered(book, accounts, NOW) == book


def test_of_too_many_nodes_those_struck_last_are_kept() -> None:
    found = [(f"m{i}", strike(1 + i / 1000, number=i)) for i in range(MAX_NODES + 5)]
    book = as_book(found)
    assert len(book) == MAX_NODES
    assert "m0" in book and f"m{MAX_NODES + 4}" not in book

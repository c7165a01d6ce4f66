"""A survey made from an earlier one says what one from the ground up would say."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_operator.core.placement import gang_request, place_missing
from rerail_operator.core.survey import GangRequest, Survey, survey
from rerail_operator.core.topology import in_order
from rerail_operator.core.world import Effect, Node, Nodes, Refusal, Taint

from .ground import RACK, ZONE, a_node, a_template, nodes_of

CHANGES: dict[str, Callable[[Node], Node]] = {
    "filled": lambda node: replace(node, free={**node.free, "nvidia.com/gpu": 0}),
    "emptied": lambda node: replace(node, free=node.allocatable),
    "not ready": lambda node: replace(node, ready=False),
    "ready": lambda node: replace(node, ready=True),
    "cordoned": lambda node: replace(node, schedulable=False),
    "struck": lambda node: replace(node, struck="3 losses"),
    "in trouble": lambda node: replace(node, trouble="GpuUnhealthy (XidError)"),
    "tainted": lambda node: replace(node, taints=(Taint("team", Effect.NO_SCHEDULE, "red"),)),
    "moved": lambda node: replace(node, labels={**node.labels, ZONE: "z"}),
    "told once more": lambda node: replace(node, ready=node.ready),
}
REQUESTS = {
    "eight accelerators": gang_request(a_template(8), 3),
    "four accelerators": gang_request(a_template(4), 3),
    "in zone b": gang_request(a_template(8, nodeSelector={ZONE: "b"}), 3),
}


@dataclass
class Cluster:
    """Nodes that change between looks; what does not change stays the same object, as the operator keeps it."""

    nodes: dict[str, Node] = field(
        default_factory=lambda: {
            f"n{i}": a_node(f"n{i}", labels={ZONE: "ab"[i % 2], RACK: "xyz"[i % 3]}) for i in range(9)
        }
    )

    def change(self, name: str, how: str) -> None:
        if how == "gone":
            self.nodes.pop(name, None)
        elif how == "new":
            self.nodes[name] = a_node(name, labels={ZONE: "b"})
        elif name in self.nodes:
            self.nodes[name] = CHANGES[how](self.nodes[name])

    def snapshot(self) -> Nodes:
        return Nodes(dict(self.nodes))


names = st.sampled_from([f"n{i}" for i in range(11)])
steps = st.lists(
    st.tuples(
        st.lists(st.tuples(names, st.sampled_from([*CHANGES, "gone", "new"])), max_size=3),
        st.sampled_from(sorted(REQUESTS)),
        st.dictionaries(names, st.sampled_from(["drained", "lost"]), max_size=4),
    ),
    max_size=12,
)


def words(found: Survey, want: int) -> tuple[list[Node], list[Node], Refusal]:
    return found.fitting(), found.fitting_for(want), found.refusal(want, len(found.fitting()))


@given(steps)
def test_whatever_was_asked_before_the_answer_is_that_of_a_first_look(
    lives: list[tuple[list[tuple[str, str]], str, dict[str, str]]],
) -> None:
    cluster = Cluster()
    for changes, asked, excluded in lives:
        for name, how in changes:
            cluster.change(name, how)
        request = replace(REQUESTS[asked], excluded=excluded)
        nodes = cluster.snapshot()
        anew = Survey(request, in_order(tuple(nodes.by_name.values())))
        for want in (1, 3, 12):
            assert words(survey(request, nodes), want) == words(anew, want)


def test_a_look_at_what_has_not_changed_is_the_same_survey() -> None:
    request, cluster = REQUESTS["eight accelerators"], Cluster()
    first = survey(request, cluster.snapshot())
    assert survey(replace(request, num_nodes=7), cluster.snapshot()) is first
    cluster.change("n4", "filled")
    assert survey(request, cluster.snapshot()) is not first


def test_an_earlier_survey_stays_as_it_was() -> None:
    request, cluster = REQUESTS["eight accelerators"], Cluster()
    before = survey(request, cluster.snapshot())
    said = words(before, 12)
    cluster.change("n4", "filled")
    after = survey(replace(request, excluded={"n5": "drained"}), cluster.snapshot())
    reviewed = before.reviewed([replace(cluster.nodes["n1"], ready=False)])
    assert words(before, 12) == said
    assert [len(found.fitting()) for found in (before, after, reviewed)] == [9, 7, 8]


class CountedRules:
    """Node rules that choose every node and count how many they were asked about."""

    def __init__(self) -> None:
        self.asked = 0

    def chosen(self, node: Node) -> bool:
        self.asked += 1
        return True

    def obstacle(self, node: Node) -> None:
        return None


@pytest.mark.parametrize(("lost", "looks"), [(0, 100), (1, 101), (2, 102)])
def test_a_gang_that_waits_for_a_node_has_only_the_changed_ones_looked_at(lost: int, looks: int) -> None:
    rules = CountedRules()
    request = GangRequest(100, {"pods": 1000}, rules)  # type: ignore[arg-type]
    nodes = nodes_of(*(a_node(f"n{i}") for i in range(100)))
    keep = {rank: f"n{rank}" for rank in range(99)}
    away = replace(request, excluded={"n99": "lost"})
    for _ in range(5):
        assert isinstance(place_missing(away, nodes, (99,), keep), Refusal)
    for number in range(lost):
        nodes = Nodes({**nodes.by_name, f"n{number}": a_node(f"n{number}", ready=False)})
    for _ in range(5):
        assert isinstance(place_missing(away, nodes, (99,), keep), Refusal)
    assert rules.asked == looks

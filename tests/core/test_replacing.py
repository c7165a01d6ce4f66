"""Replacing lost node ranks: nobody else moves, nobody is doubled, neighbours stay near."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_operator.core.placement import gang_request, place_missing
from rerail_operator.core.world import Node, Placement, Refusal

from .ground import GPU, a_template, at, built, grounds, nodes_of

FLOOR = (
    at("a1", "a", "r1"),
    at("a2", "a", "r1"),
    at("a3", "a", "r2"),
    at("b1", "b", "r3"),
    at("b2", "b", "r3"),
)


@dataclass(frozen=True)
class Missing:
    ranks: tuple[int, ...]
    keep: Mapping[int, str]
    answer: Mapping[int, str] | str
    wished: Mapping[int, str] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[Node, ...] = FLOOR


MISSING = {
    "a rank goes to the rack of its neighbour": Missing((1,), {0: "b1"}, {1: "b2"}),
    "then to the zone of its neighbour": Missing((1,), {0: "a1", 2: "a2"}, {1: "a3"}),
    "then anywhere": Missing((2,), {0: "b1", 1: "b2"}, {2: "a1"}),
    "each rank follows its own neighbour": Missing((1, 2), {0: "a1", 3: "b1"}, {1: "a2", 2: "b2"}),
    "a wish is met where it fits": Missing((1,), {0: "b1"}, {1: "a3"}, wished={1: "a3"}),
    "a wish for a node that is left out is not": Missing(
        (1,), {0: "b1"}, {1: "b2"}, {1: "a3"}, {"a3": "lost"}
    ),
    "a wish for the place of another rank is not": Missing((1,), {0: "b1"}, {1: "b2"}, wished={1: "b1"}),
    "of two wishes for one node the lower rank's is met": Missing(
        (1, 2), {0: "b1"}, {1: "a1", 2: "a2"}, {1: "a1", 2: "a1"}
    ),
    "nobody stays: like a new gang, without gaps": Missing((0, 1), {}, {0: "a1", 1: "a2"}),
    "a kept node that is gone from the cluster is no neighbour": Missing(
        (1,), {0: "zz"}, {1: "a1"}, nodes=(at("a1", "a"),)
    ),
    "all or none": Missing(
        (1, 2),
        {0: "a1"},
        "InsufficientNodes: needs 2 nodes with 8 free nvidia.com/gpu; 1 fits; "
        "2 are left out (holds another pod of this job): a1, a9",
        nodes=(at("a1", "a"), at("a2", "a"), at("a9", "a")),
        excluded={"a9": "holds another pod of this job"},
    ),
    "the last node is lost and gone": Missing(
        (1,),
        {0: "a1"},
        "InsufficientNodes: needs 1 node with 8 free nvidia.com/gpu; none fit; 1 is left out (holds another pod of this job): a1",
        nodes=(at("a1", "a"),),
    ),
}


@pytest.mark.parametrize("case", MISSING.values(), ids=MISSING)
def test_only_missing_ranks_are_placed(case: Missing) -> None:
    request = gang_request(a_template(), len(case.ranks) + len(case.keep), case.excluded)
    offer = place_missing(request, nodes_of(*case.nodes), case.ranks, case.keep, case.wished)
    if isinstance(offer, Refusal):
        assert f"{offer.reason}: {offer.message}" == case.answer
    else:
        assert offer.nodes == case.answer


@given(grounds, st.integers(1, 5), st.integers(1, 4))
def test_replacing_moves_nobody_and_doubles_nobody(
    ground: list[tuple[str, str, int, bool | None]], kept: int, lost: int
) -> None:
    nodes = built(ground)
    keep = {2 * rank: node.name for rank, node in enumerate(nodes[:kept])}
    missing = [2 * rank + 1 for rank in range(lost)]
    offer = place_missing(gang_request(a_template(4), kept + lost), nodes_of(*nodes), missing, keep)
    able = {n.name for n in nodes if n.ready and n.free[GPU] >= 4000} - set(keep.values())
    assert isinstance(offer, Placement) is (len(able) >= lost)
    if isinstance(offer, Placement):
        assert list(offer.nodes) == missing
        assert len({*offer.nodes.values(), *keep.values()}) == len(keep) + lost

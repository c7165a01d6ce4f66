"""A place for all or none, one pod per node, and a sentence with numbers where there is none."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_operator.core.placement import claimed, gang_request, place_gang
from rerail_operator.core.world import Effect, Node, Placement, Refusal, Taint

from .ground import GPU, a_node, a_template, at, built, grounds, nodes_of

MINE = Taint("team", Effect.NO_SCHEDULE, "red")
SOFT = Taint("slow", Effect.PREFER_NO_SCHEDULE)
EVICTING = Taint("broken", Effect.NO_EXECUTE)


def affinity(*terms: dict[str, Any]) -> dict[str, Any]:
    return {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    }


def rule(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


@dataclass(frozen=True)
class Case:
    nodes: tuple[Node, ...]
    want: int
    answer: list[str] | str
    gpus: int = 8
    excluded: Mapping[str, str] = field(default_factory=dict)
    template: Mapping[str, Any] = field(default_factory=dict)


def ready(*names: str) -> tuple[Node, ...]:
    return tuple(a_node(name) for name in names)


CASES = {
    "the first nodes in natural order": Case(ready("node-10", "node-2", "node-1"), 2, ["node-1", "node-2"]),
    "exactly as many as there are": Case(ready("b", "a"), 2, ["a", "b"]),
    "cordoned and not ready are told apart": Case(
        (
            *ready("d", "e", "f"),
            a_node("a", schedulable=False),
            a_node("b", schedulable=False),
            a_node("c", ready=False),
        ),
        4,
        "InsufficientNodes: needs 4 nodes with 8 free nvidia.com/gpu; 3 fit; 2 are cordoned: a, b; 1 is not ready: c",
    ),
    "lost from sight is not the same as not ready": Case(
        (*ready("a"), a_node("b", ready=None), a_node("c", deleting=True)),
        2,
        "InsufficientNodes: needs 2 nodes with 8 free nvidia.com/gpu; 1 fits; 1 is unreachable: b; 1 is being deleted: c",
    ),
    "a node whose conditions speak against it is left out with their words": Case(
        (
            *ready("a"),
            replace(a_node("b"), trouble="GpuUnhealthy (XidError)"),
            replace(a_node("c", free_gpus=0), trouble="GpuUnhealthy (XidError)"),
        ),
        2,
        "InsufficientNodes: needs 2 nodes with 8 free nvidia.com/gpu; 1 fits; 2 have the condition GpuUnhealthy (XidError): b, c",
    ),
    "a GPU less is not enough": Case(
        (*ready("a"), a_node("b", free_gpus=7)),
        2,
        "InsufficientNodes: needs 2 nodes with 8 free nvidia.com/gpu; 1 fits; 1 has less than 8 nvidia.com/gpu free: b",
    ),
    "memory taken by a foreign pod counts as much as GPUs": Case(
        (a_node("a", free={"memory": 0}),),
        1,
        "InsufficientNodes: needs 1 node with 8 free nvidia.com/gpu, 64Gi memory; none fit; 1 has less than 64Gi memory free: a",
        template={"memory": "64Gi"},
    ),
    "a node full of pods takes no more": Case(
        (a_node("a", free={"pods": 0}),),
        1,
        "InsufficientNodes: needs 1 node with 8 free nvidia.com/gpu; none fit; 1 has less than 1 pods free: a",
    ),
    "a taint that is not tolerated is named": Case(
        (*ready("a"), a_node("b", taints=(MINE,)), a_node("c", taints=(EVICTING,))),
        2,
        "InsufficientNodes: needs 2 nodes with 8 free nvidia.com/gpu; 1 fits; 1 has the taint broken:NoExecute: c; "
        "1 has the taint team=red:NoSchedule: b",
    ),
    "a soft taint keeps nobody away": Case((a_node("a", taints=(SOFT,)),), 1, ["a"]),
    "a tolerated taint keeps nobody away": Case(
        (a_node("a", taints=(MINE,)),),
        1,
        ["a"],
        template={
            "tolerations": [{"key": "team", "operator": "Equal", "value": "red", "effect": "NoSchedule"}]
        },
    ),
    "a toleration of another value does not help": Case(
        (a_node("a", taints=(MINE,)),),
        1,
        "InsufficientNodes: needs 1 node with 8 free nvidia.com/gpu; none fit; 1 has the taint team=red:NoSchedule: a",
        template={"tolerations": [{"key": "team", "value": "blue"}]},
    ),
    "a toleration of everything helps always": Case(
        (a_node("a", taints=(MINE, EVICTING)),),
        1,
        ["a"],
        template={"tolerations": [{"operator": "Exists"}]},
    ),
    "a node left out for this job says why": Case(
        ready("a", "b"),
        2,
        "InsufficientNodes: needs 2 nodes with 8 free nvidia.com/gpu; 1 fits; 1 is left out (lost in round 3): b",
        excluded={"b": "lost in round 3"},
    ),
    "an avoided node is taken by nobody while there are others": Case(
        (replace(a_node("a"), struck="3 strikes in 7 days"), *ready("b", "c")), 2, ["b", "c"]
    ),
    "an avoided node is taken where the gang fits in no other way": Case(
        (replace(a_node("a"), struck="3 strikes in 7 days"), *ready("b", "c")), 3, ["a", "b", "c"]
    ),
    "no more avoided nodes are taken than are missing": Case(
        tuple(replace(node, struck="3 strikes in 7 days") for node in ready("a", "b")) + ready("c"),
        2,
        ["a", "c"],
    ),
    "an avoided node that would not have been enough is told": Case(
        (replace(a_node("a"), struck="3 strikes in 7 days"), *ready("b"), a_node("c", free_gpus=0)),
        3,
        "InsufficientNodes: needs 3 nodes with 8 free nvidia.com/gpu; 1 fits; "
        "1 has less than 8 nvidia.com/gpu free: c; 1 is avoided for 3 strikes in 7 days: a",
    ),
    "many names are cut after five": Case(
        tuple(a_node(f"n{i}", free_gpus=0) for i in range(8)),
        1,
        "InsufficientNodes: needs 1 node with 8 free nvidia.com/gpu; none fit; "
        "8 have less than 8 nvidia.com/gpu free: n0, n1, n2, n3, n4 and 3 more",
    ),
    "no node is large enough": Case(
        (a_node("a", gpus=4),),
        1,
        "NeverFits: needs 1 node with 8 free nvidia.com/gpu; no node could ever hold such a pod; 1 is too small for 8 nvidia.com/gpu: a",
    ),
    "fewer large nodes than needed": Case(
        (*ready("a"), a_node("b", gpus=4)),
        2,
        "NeverFits: needs 2 nodes with 8 free nvidia.com/gpu; only 1 could ever hold such a pod; 1 is too small for 8 nvidia.com/gpu: b",
    ),
    "a busy node may be free one day, so it is not never": Case(
        (*ready("a"), a_node("b", free_gpus=0)),
        2,
        "InsufficientNodes: needs 2 nodes with 8 free nvidia.com/gpu; 1 fits; 1 has less than 8 nvidia.com/gpu free: b",
    ),
    "an empty cluster": Case(
        (),
        1,
        "NeverFits: needs 1 node with 8 free nvidia.com/gpu; no node could ever hold such a pod; the cluster has no nodes",
    ),
    "a selector": Case(
        (a_node("a", labels={"pool": "x"}), a_node("b", labels={"pool": "y"}), a_node("c")),
        1,
        ["b"],
        template={"nodeSelector": {"pool": "y"}},
    ),
    "a selector that nothing matches": Case(
        ready("a"),
        1,
        "NeverFits: needs 1 node with 8 free nvidia.com/gpu; no node could ever hold such a pod; "
        "1 does not match nodeSelector or affinity: a",
        template={"nodeSelector": {"pool": "y"}},
    ),
    "nothing asked needs nodes all the same": Case(
        (*ready("a"), a_node("b", schedulable=False)),
        2,
        "InsufficientNodes: needs 2 nodes; 1 fits; 1 is cordoned: b",
        gpus=0,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_gang_is_placed_or_told_why_not(case: Case) -> None:
    spec = {key: value for key, value in case.template.items() if key != "memory"}
    template = a_template(case.gpus, **spec)
    if "memory" in case.template:
        template["spec"]["containers"][0]["resources"]["limits"]["memory"] = case.template["memory"]
    offer = place_gang(gang_request(template, case.want, case.excluded), nodes_of(*case.nodes))
    if isinstance(offer, Refusal):
        assert f"{offer.reason}: {offer.message}" == case.answer
    else:
        assert list(offer.nodes.values()) == case.answer
        assert list(offer.nodes) == list(range(case.want))


NODE = a_node("a", labels={"disk": "nvme", "cores": "96"})

TERMS = {
    "In": (rule("disk", "In", "ssd", "nvme"), True),
    "In, other value": (rule("disk", "In", "ssd"), False),
    "In, no label": (rule("gone", "In", "x"), False),
    "NotIn": (rule("disk", "NotIn", "ssd"), True),
    "NotIn, same value": (rule("disk", "NotIn", "nvme"), False),
    "NotIn, no label": (rule("gone", "NotIn", "x"), True),
    "Exists": (rule("disk", "Exists"), True),
    "Exists, no label": (rule("gone", "Exists"), False),
    "DoesNotExist": (rule("gone", "DoesNotExist"), True),
    "DoesNotExist, label there": (rule("disk", "DoesNotExist"), False),
    "Gt": (rule("cores", "Gt", "64"), True),
    "Gt, equal": (rule("cores", "Gt", "96"), False),
    "Lt": (rule("cores", "Lt", "128"), True),
    "Lt, equal": (rule("cores", "Lt", "96"), False),
    "Gt, not a number": (rule("disk", "Gt", "64"), False),
    "an operator nobody knows": (rule("disk", "Like", "nvme"), False),
}


@pytest.mark.parametrize(("requirement", "holds"), TERMS.values(), ids=TERMS)
def test_required_affinity_is_read_as_kube_scheduler_does(requirement: dict[str, Any], holds: bool) -> None:
    template = a_template(affinity=affinity({"matchExpressions": [requirement]}))
    assert isinstance(place_gang(gang_request(template, 1), nodes_of(NODE)), Placement) is holds


@pytest.mark.parametrize(
    ("terms", "holds"),
    [
        ([{"matchFields": [rule("metadata.name", "In", "a")]}], True),
        ([{"matchFields": [rule("metadata.name", "NotIn", "a")]}], False),
        (
            [
                {"matchExpressions": [rule("disk", "In", "ssd")]},
                {"matchExpressions": [rule("cores", "Exists")]},
            ],
            True,
        ),
        ([{"matchExpressions": [rule("disk", "Exists"), rule("gone", "Exists")]}], False),
        ([{}], False),
    ],
    ids=[
        "by name",
        "not by name",
        "terms are alternatives",
        "rules of a term all hold",
        "an empty term holds nowhere",
    ],
)
def test_terms_and_fields(terms: list[dict[str, Any]], holds: bool) -> None:
    offer = place_gang(gang_request(a_template(affinity=affinity(*terms)), 1), nodes_of(NODE))
    assert isinstance(offer, Placement) is holds


TOPOLOGIES: dict[str, tuple[tuple[Node, ...], int, list[str]]] = {
    "one zone with room beats names in order": (
        (at("n1", "a"), at("n2", "b"), at("n3", "b")),
        2,
        ["n2", "n3"],
    ),
    "the fullest zone with room leaves the larger hole": (
        (at("n1", "a"), at("n2", "a"), at("n3", "a"), at("n4", "b"), at("n5", "b")),
        2,
        ["n4", "n5"],
    ),
    "one rack beats one zone": (
        (at("n1", "a", "r1"), at("n2", "a", "r2"), at("n3", "a", "r2")),
        2,
        ["n2", "n3"],
    ),
    "node ranks follow zones where the gang spans them": (
        (at("n1", "b"), at("n2", "a"), at("n3", "b"), at("n4", "a")),
        4,
        ["n2", "n4", "n1", "n3"],
    ),
    "as few zones as possible": (
        (at("n1", "a"), at("n2", "b"), at("n3", "b"), at("n4", "c"), at("n5", "c")),
        3,
        ["n1", "n2", "n3"],
    ),
    "what does not fill a zone is cut from the last one taken": (
        (at("n1", "a"), at("n2", "a"), at("n3", "b"), at("n4", "b"), at("n5", "b")),
        4,
        ["n1", "n3", "n4", "n5"],
    ),
    "zone 2 comes before zone 10": ((at("n1", "z10"), at("n2", "z2")), 2, ["n2", "n1"]),
}


@pytest.mark.parametrize(("nodes", "want", "names"), TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_neighbouring_node_ranks_stand_near_each_other(
    nodes: tuple[Node, ...], want: int, names: list[str]
) -> None:
    offer = place_gang(gang_request(a_template(), want), nodes_of(*nodes))
    assert isinstance(offer, Placement)
    assert list(offer.nodes.values()) == names


@given(grounds, st.integers(1, 6), st.integers(0, 8), st.randoms())
def test_all_or_none_on_distinct_nodes_with_room_whatever_the_order(
    ground: list[tuple[str, str, int, bool | None]], want: int, gpus: int, shuffle: Any
) -> None:
    nodes = built(ground)
    request = gang_request(a_template(gpus), want)
    offer = place_gang(request, nodes_of(*nodes))
    able = [node.name for node in nodes if node.ready and node.free[GPU] >= gpus * 1000]
    assert isinstance(offer, Placement) is (len(able) >= want)
    if isinstance(offer, Placement):
        assert len(set(offer.nodes.values())) == want
        assert set(offer.nodes.values()) <= set(able)
    mixed = list(nodes)
    shuffle.shuffle(mixed)
    assert place_gang(request, nodes_of(*mixed)) == offer


def test_a_claim_takes_what_the_pods_take() -> None:
    nodes = nodes_of(a_node("a"), a_node("b"))
    request = gang_request(a_template(6), 1)
    offer = place_gang(request, nodes)
    assert isinstance(offer, Placement)
    (left,) = claimed(nodes, offer, request.resources)
    assert (left.name, left.free[GPU], left.free["pods"], left.allocatable[GPU]) == ("a", 2000, 109_000, 8000)


def test_18750_nodes_are_planned_in_half_a_second() -> None:
    nodes = nodes_of(*(at(f"node-{i}", f"z{i % 4}", f"r{i % 640}") for i in range(18_750)))
    request = gang_request(a_template(), 18_750)
    spent = []
    for _ in range(3):
        began = time.process_time()
        offer = place_gang(request, nodes)
        spent.append(time.process_time() - began)
        assert isinstance(offer, Placement)
        assert len(set(offer.nodes.values())) == 18_750
    assert min(spent) < 0.5, spent

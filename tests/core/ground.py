"""Builders for placement tests: nodes, templates and jobs in one line each."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from rerail_api.v1alpha1 import TrainingJob, parse_job
from rerail_operator.core.world import Node, Nodes, Taint

GPU = "nvidia.com/gpu"
ZONE = "topology.kubernetes.io/zone"
RACK = "topology.rerail.dev/rack"
GIB = 1024**3 * 1000
ROOM = {GPU: 8000, "cpu": 96_000, "memory": 1024 * GIB, "pods": 110_000}


def a_node(
    name: str,
    *,
    free_gpus: int = 8,
    gpus: int = 8,
    labels: Mapping[str, str] | None = None,
    taints: tuple[Taint, ...] = (),
    ready: bool | None = True,
    schedulable: bool = True,
    deleting: bool = False,
    free: Mapping[str, int] | None = None,
) -> Node:
    """A node of 96 CPUs, 1 TiB and 8 GPUs, all free unless said."""
    allocatable = {**ROOM, GPU: gpus * 1000}
    return Node(
        name=name,
        ready=ready,
        schedulable=schedulable,
        taints=taints,
        labels=labels or {},
        allocatable=allocatable,
        free={**allocatable, GPU: min(free_gpus, gpus) * 1000, **(free or {})},
        deleting=deleting,
    )


def nodes_of(*nodes: Node) -> Nodes:
    return Nodes({node.name: node for node in nodes})


def a_template(gpus: int = 8, **spec: Any) -> dict[str, Any]:
    container = {
        "name": "trainer",
        "image": "example.com/trainer:1",
        "command": ["python", "-m", "rerail_trainer"],
        "resources": {"limits": {GPU: gpus}} if gpus else {},
    }
    return {"spec": {"containers": [container], **spec}}


def a_job(template: dict[str, Any] | None = None, **spec: Any) -> TrainingJob:
    return parse_job(
        {
            "apiVersion": "rerail.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {
                "name": "gpt",
                "namespace": "team",
                "uid": "c0ffee12-0000-4000-8000-000000000000",
                "generation": 3,
            },
            "spec": {"numNodes": 2, "template": template or a_template(), **spec},
        }
    )


def at(name: str, zone: str, rack: str = "") -> Node:
    return a_node(name, labels={ZONE: zone, **({RACK: rack} if rack else {})})


grounds = st.lists(
    st.builds(
        lambda zone, rack, free, ready: (zone, rack, free, ready),
        st.sampled_from("ab"),
        st.sampled_from("xyz"),
        st.integers(0, 8),
        st.sampled_from([True, True, True, False, None]),
    ),
    max_size=12,
)


def built(ground: list[tuple[str, str, int, bool | None]]) -> tuple[Node, ...]:
    return tuple(
        a_node(f"n{i}", labels={ZONE: zone, RACK: rack}, free_gpus=free, ready=ready_)
        for i, (zone, rack, free, ready_) in enumerate(ground)
    )

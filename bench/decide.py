"""The core alone: the CPU time of one pass, by what it sees, and of a placement."""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from statistics import median
from typing import Any

from rerail_api.contract import AgentState
from rerail_operator.core.admission import Queued, plan_admissions
from rerail_operator.core.placement import gang_request
from rerail_operator.core.world import Nodes, PodPhase
from tests.core import ground
from tests.core.builders import NOON, Scene, a_pod, a_release, admitted, an_agent, fresh, running

from .report import Json, Tell

REPEATS = 5


def measure(nodes: int, tell: Tell) -> Json:
    """Milliseconds of CPU per pass, the median of five, for one job that fills all but one of the nodes."""
    passes = {name: _milliseconds(scene.plan) for name, scene in _scenes(nodes).items()}
    waits, changed = _waits_for_a_node(nodes)
    passes["a lost pod waits for a node, nothing new"] = _milliseconds(waits.plan)
    in_turn = cycle((changed, waits))
    passes["the same, and another node has changed"] = _milliseconds(lambda: next(in_turn).plan())
    queue, cluster = _line(nodes)
    passes["one admission pass, 50 jobs waiting"] = _milliseconds(
        lambda: plan_admissions(queue, cluster, True)
    )
    for name, took in passes.items():
        tell(f"{nodes:6} nodes  {name:44} {took:8.1f} ms")
    return {"nodes": nodes, "milliseconds": passes}


def _milliseconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return round(1000 * median(times), 1)


def _scenes(size: int) -> dict[str, Scene]:
    """A job's life as its passes see it."""
    nothing, runs = admitted(size), _runs(size)
    pending = replace(nothing, pods=tuple(a_pod(rank, phase=PodPhase.PENDING) for rank in range(size)))
    placed = replace(nothing, pods=tuple(a_pod(rank) for rank in range(size)))
    half = size // 2
    silent = {uid: replace(agent, connected=False) for uid, agent in runs.agents.items()}
    return {
        "a place is offered": fresh(size).offered(*(f"n{i}" for i in range(size))).see(dry_run_passed=True),
        "admitted, no pod yet: creates all": nothing,
        "half of the pods created": replace(pending, pods=pending.pods[:half]),
        "all pods pending": pending,
        "half of the agents are in": _with_agents(placed, half, state=AgentState.READY, round=1),
        "all at the barrier": _with_agents(placed, size, state=AgentState.READY, round=1),
        "running": runs,
        "a rank has failed: the root is named": runs.exits(half, code=1).later(3),
        "the new round: all are called to the barrier": runs.status(round=2),
        "all agents silent for 30 s": replace(runs, agents=silent).later(30),
        "one pod lost, its place planned anew": replace(
            runs.status(round=2), pods=tuple(pod for pod in runs.pods if pod.node_rank != half)
        ),
        "suspended: all pods go": runs.spec(suspend=True),
    }


def _waits_for_a_node(size: int) -> tuple[Scene, Scene]:
    """A pod is lost with its node and no node is free; the same with another node cordoned."""
    runs, half = _runs(size).status(round=2), size // 2
    gone = {name: replace(runs.nodes[name], ready=False) for name in (f"n{half}", f"n{size}")}
    waits = replace(
        runs,
        pods=tuple(pod for pod in runs.pods if pod.node_rank != half),
        nodes={**runs.nodes, **gone},
    )
    return waits, replace(waits, nodes={**waits.nodes, "n1": replace(waits.nodes["n1"], schedulable=False)})


def _runs(size: int) -> Scene:
    """`builders.running` for many nodes: that one adds agents one by one."""
    scene = replace(admitted(size), pods=tuple(a_pod(rank) for rank in range(size)))
    status = running(1).job.status.model_copy(update={"template_hash": scene.job.status.template_hash})
    scene = replace(scene, job=scene.job.model_copy(update={"status": status}))
    scene = _with_agents(scene, size, state=AgentState.RUNNING, round=1, ranks_alive=2)
    agents = {
        uid: replace(agent, release=a_release(rank, size))
        for rank, (uid, agent) in enumerate(scene.agents.items())
    }
    return replace(scene, agents=agents)


def _with_agents(scene: Scene, count: int, **fields: Any) -> Scene:
    agents = {pod.uid: an_agent(pod.uid, pod.node_rank, NOON, **fields) for pod in scene.pods[:count]}
    return replace(scene, agents=agents)


def _line(size: int) -> tuple[list[Queued], Nodes]:
    """Fifty jobs that wait; together they ask for twice what is there."""
    cluster = ground.nodes_of(*(ground.a_node(f"n{number}") for number in range(size)))
    request = gang_request(ground.a_template(), max(1, size // 25))
    queue = [Queued(f"uid-{n}", "team", f"job-{n}", NOON, request) for n in range(50)]
    return queue, cluster

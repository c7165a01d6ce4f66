"""Strikes against a node on a real API server: kept when the leader changes, obeyed by placement, cleared by hand."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from rerail_operator.core.strikes import TOGETHER
from rerail_operator.shell.strikes.record import NAME

from .jobs import GPU, Json, job
from .operator_process import SYSTEM
from .test_operators import holder
from .yard import Yard

pytestmark = pytest.mark.controlplane

NODES = 20
"""The fewest of which one may be avoided."""
HOST = "kubernetes.io/hostname"
STRIKES = f"/api/v1/namespaces/{SYSTEM}/configmaps/{NAME}"


@pytest.fixture(scope="module")
def wide_yard(opened_yard: Yard) -> Iterator[Yard]:
    missing = NODES - len(opened_yard.nodes)
    opened_yard.nodes += opened_yard.cluster.kwok(missing, prefix="more-")
    yield opened_yard


def pinned(name: str, node: str) -> Json:
    manifest = job(name, nodes=1, limits={GPU: 1})
    manifest["spec"]["template"]["spec"]["nodeSelector"] = {HOST: node}
    return manifest


def lines(yard: Yard, node: str) -> list[str]:
    return str((yard.cluster.api.get(STRIKES).get("data") or {}).get(node, "")).splitlines()


def lose(yard: Yard, name: str, node: str, strikes: int) -> None:
    """A job of its own runs on the node, which then falls silent and comes back."""
    yard.submit(pinned(name, node))
    yard.until_job(name, phase="Running")
    (pod,) = yard.pods(name)
    if strikes > 1:
        # Twice within ten seconds would be once; an agent was last heard of up to two beats before it is muted.
        before = datetime.fromisoformat(lines(yard, node)[-1].split()[0])
        yard.until("it is another time", lambda: datetime.now(UTC) - before > TOGETHER + timedelta(seconds=6))
    yard.node_not_ready(node)
    yard.agents.mute(pod)
    told = yard.until(
        "the node is struck", lambda: len(lines(yard, node)) == strikes and lines(yard, node), 90
    )
    assert f"NodeLoss seen default/{name}" in told[-1]
    yard.node_not_ready(node, yes=False)
    yard.delete_jobs()


def nodes_command(yard: Yard, *words: str) -> str:
    config = ["--kubeconfig", str(yard.cluster.kubeconfig)]
    command = [sys.executable, "-m", "rerail_operator.shell.cli", "nodes", *config, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_node_that_failed_three_times_is_avoided_by_the_next_leader_too_until_a_person_clears_it(
    yard: Yard, wide_yard: Yard
) -> None:
    node = yard.nodes[0]
    both = yard.operate(2)
    lose(yard, "first", node, strikes=1)
    lose(yard, "second", node, strikes=2)
    next(one for one in both if one.name == holder(yard)).kill()
    lose(yard, "third", node, strikes=3)
    shown = nodes_command(yard)
    assert f"{NODES} nodes: 1 with strikes, 1 avoided" in shown

    assert "avoided by all jobs until" in yard.cluster.kubectl("describe", "node", node)

    # Struck under one leader, avoided under the next: it has seen none of these jobs.
    next(one for one in both if one.alive and one.name == holder(yard)).kill()
    yard.operate(2)
    yard.until("somebody leads", lambda: holder(yard) in {one.name for one in both if one.alive})
    yard.submit(job("wide", nodes=NODES - 1))
    yard.until_job("wide", phase="Running", seconds=120)
    taken = {pod["spec"]["nodeName"] for pod in yard.pods("wide").values()}
    assert taken == set(yard.nodes) - {node}
    # Where there is no other it is better than nothing, and that is said.
    yard.submit(job("last", nodes=1))
    yard.until_job("last", phase="Running")
    assert any(f"for want of others with {node} (3 strikes in 7 days)" in one for one in yard.events("last"))
    yard.delete_jobs()

    assert nodes_command(yard, "--clear", node).startswith(f"{node}: 3 strikes are cleared")
    yard.until("the operator takes notice", lambda: lands_on(yard) == node, 60)


def lands_on(yard: Yard) -> str:
    """Where a job of one node goes when all nodes are free."""
    yard.delete_jobs()
    yard.submit(job("probe", nodes=1))
    yard.until_job("probe", phase="Running")
    (pod,) = yard.pods("probe").values()
    return str(pod["spec"]["nodeName"])

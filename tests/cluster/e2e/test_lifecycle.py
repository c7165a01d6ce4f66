"""One job or two on pretended nodes: start, faults, suspension, competition, the end. Real operator, real API server."""

import signal

import pytest

from .jobs import GPU, condition, job
from .yard import Yard

pytestmark = pytest.mark.controlplane


def running(yard: Yard, name: str, **wanted: object) -> list[str]:
    """The job's pods once all its ranks run."""
    yard.until_job(name, phase="Running", **wanted)
    return list(yard.pods(name))


def test_a_job_runs_completes_and_never_runs_again(yard: Yard) -> None:
    yard.submit(job("whole", ttlSecondsAfterFinished=3600))
    pods = running(yard, "whole", round=1)
    assert len(pods) == 2
    yard.agents.progress(pods[0], 5, total_steps=10, loss=3.0, checkpoint_step=4)
    yard.until("the step is told", lambda: yard.status("whole").get("progress", {}).get("step") == 5)
    yard.agents.done(pods)
    seen = yard.until_job("whole", phase="Complete")
    assert seen["nodes"]["desired"] == 2
    assert seen["restarts"]["total"] == 0
    assert condition(seen, "Complete")["status"] == "True"
    yard.until(
        "its pods end with 0",
        lambda: {p["status"]["phase"] for p in yard.pods("whole").values()} == {"Succeeded"},
    )
    # Whatever happens to its pods now: it is over. Another job that starts and ends shows that time has passed.
    for pod in pods:
        yard.cluster.kubectl("delete", "pod", pod)
    yard.submit(job("other", nodes=4))
    yard.agents.done(running(yard, "other"))
    yard.until_job("other", phase="Complete")
    after = yard.status("whole")
    assert (after["phase"], after["round"], after["completionTime"]) == (
        "Complete",
        1,
        seen["completionTime"],
    )
    assert yard.pods("whole") == {}


def test_a_failed_rank_restarts_the_gang_and_touches_no_pod(yard: Yard) -> None:
    yard.submit(job("rank"))
    pods, before = running(yard, "rank"), yard.uids("rank")
    yard.agents.progress(pods[0], 7, checkpoint_step=5)
    yard.agents.fail(pods[1], rank=1, exit_code=None, signal=9)
    seen = yard.until_job("rank", phase="Running", round=2)
    assert yard.uids("rank") == before
    assert (seen["restarts"]["total"], seen["restarts"]["charged"]) == (1, 1)
    (incident,) = seen["incidents"]
    assert (incident["class"], incident["signal"], incident["rank"]) == ("ProcessFault", "SIGKILL", 1)
    yard.until("an event tells it", lambda: any("Restarting" in one for one in yard.events("rank")))


def test_a_deleted_pod_is_replaced_and_nothing_is_charged(yard: Yard) -> None:
    yard.submit(job("deleted"))
    first, second = running(yard, "deleted")
    kept = yard.uids("deleted")[first]
    yard.cluster.kubectl("delete", "pod", second)
    seen = yard.until_job("deleted", phase="Running", round=2)
    assert (seen["restarts"]["total"], seen["restarts"]["charged"]) == (1, 0)
    after = yard.uids("deleted")
    assert after.pop(first) == kept
    assert len(after) == 1 and second not in after


def test_a_pod_whose_container_dies_is_replaced(yard: Yard) -> None:
    yard.submit(job("dies"))
    first, second = running(yard, "dies")
    yard.annotate(second, fail="137")
    seen = yard.until_job("dies", phase="Running", round=2)
    assert seen["restarts"]["total"] == 1
    (incident,) = seen["incidents"]
    assert incident["exitCode"] == 137
    assert first in yard.pods("dies")


def test_a_node_that_is_lost_is_left_and_the_gang_goes_on_elsewhere(yard: Yard) -> None:
    yard.submit(job("lost"))
    first, second = running(yard, "lost")
    node = yard.pods("lost")[second]["spec"]["nodeName"]
    try:
        yard.agents.mute(second)
        yard.node_not_ready(node)
        seen = yard.until_job("lost", phase="Running", round=2)
    finally:
        yard.node_not_ready(node, False)
    (incident,) = seen["incidents"]
    assert (incident["class"], incident["node"], incident["charged"]) == ("NodeLoss", node, False)
    pods = yard.pods("lost")
    assert first in pods
    living = {p["spec"]["nodeName"] for p in pods.values() if p["metadata"]["name"] != second}
    assert len(living) == 2 and node not in living


def test_a_replacement_runs_while_the_old_pod_hangs_in_terminating(yard: Yard) -> None:
    yard.submit(job("hangs"))
    _, second = running(yard, "hangs")
    yard.annotate(second, hang_terminating="yes")
    yard.cluster.kubectl("delete", "pod", second, "--wait=false")
    try:
        yard.until_job("hangs", phase="Running", round=2)
        assert yard.cluster.get("pod", second)["metadata"]["deletionTimestamp"]
        assert second not in yard.pods("hangs")
    finally:
        yard.annotate(second, hang_terminating=None)


def test_suspend_gives_the_nodes_back_and_resume_opens_a_round(yard: Yard) -> None:
    yard.submit(job("paused", nodes=4))
    running(yard, "paused")
    yard.change("paused", {"suspend": True})
    seen = yard.until_job("paused", phase="Suspended", reason="Suspended")
    assert yard.pods("paused") == {}
    assert condition(seen, "Suspended")["status"] == "True"
    yard.submit(job("guest", nodes=4))
    yard.agents.done(running(yard, "guest"))
    yard.until_job("guest", phase="Complete")
    yard.change("paused", {"suspend": False})
    seen = yard.until_job("paused", phase="Running", round=2)
    assert seen["restarts"]["total"] == 0


def test_of_two_jobs_with_room_for_one_the_second_waits_and_says_for_what(yard: Yard) -> None:
    yard.submit(job("first", nodes=3))
    pods = running(yard, "first")
    yard.submit(job("second", nodes=3))
    seen = yard.until_job("second", phase="Queued", reason="InsufficientNodes")
    assert f"needs 3 nodes with 8 free {GPU}; 1 fit" in seen["message"]
    assert condition(seen, "Admitted")["reason"] == "InsufficientNodes"
    assert yard.pods("second") == {}
    yard.agents.done(pods)
    yard.until_job("first", phase="Complete")
    running(yard, "second")


def test_jobs_planned_at_once_never_share_a_node_bound_or_not(yard: Yard) -> None:
    scheduler = yard.cluster.processes["kube-scheduler"]
    yard.submit(job("bound", nodes=1))
    running(yard, "bound")
    scheduler.signal(signal.SIGSTOP)
    try:
        # Nothing is bound now: what one job was promised is known to the operator alone.
        yard.submit(job("left", nodes=1), job("right", nodes=2), job("surplus", nodes=2))
        yard.until(
            "three pods wait to be bound", lambda: len(yard.pods("left")) + len(yard.pods("right")) == 3
        )
        yard.until_job("surplus", phase="Queued")
        assert not any(pod["spec"].get("nodeName") for pod in yard.pods("right").values())
    finally:
        scheduler.signal(signal.SIGCONT)
    running(yard, "left")
    running(yard, "right")
    taken = [
        pod["spec"]["nodeName"] for name in ("bound", "left", "right") for pod in yard.pods(name).values()
    ]
    assert sorted(taken) == sorted(yard.nodes)
    assert yard.pods("surplus") == {}
    assert {yard.status(name)["round"] for name in ("left", "right")} == {1}


def test_a_foreign_pod_that_takes_memory_but_no_gpu_counts(yard: Yard) -> None:
    greedy = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "greedy", "namespace": "default"},
        "spec": {
            "nodeName": yard.nodes[0],
            "containers": [
                {"name": "eat", "image": "none.example/x", "resources": {"requests": {"memory": "900Gi"}}}
            ],
        },
    }
    yard.cluster.apply(greedy)
    try:
        yard.until(
            "it holds its memory", lambda: yard.cluster.get("pod", "greedy")["status"]["phase"] == "Running"
        )
        yard.submit(job("wide", nodes=4, limits={GPU: 8, "memory": "200Gi"}))
        seen = yard.until_job("wide", phase="Queued", reason="InsufficientNodes")
        assert "memory" in seen["message"] and "3 fit" in seen["message"]
        assert yard.pods("wide") == {}
    finally:
        yard.cluster.kubectl("delete", "pod", "greedy", "--force")
    running(yard, "wide")

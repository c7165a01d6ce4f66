"""What only the in-memory cluster can do: play scheduler and kubelet, have faults on demand, restore."""

import asyncio
from typing import Any

import pytest

from rerail_operator.shell import memory
from rerail_operator.shell.cluster import (
    Change,
    ClusterError,
    Conflict,
    Expired,
    Kind,
    NotFound,
    Object,
    Rejected,
    Unavailable,
)
from rerail_operator.shell.memory import MemoryCluster, MemoryOptions
from rerail_operator.shell.memory_faults import Fault, FaultKind
from rerail_operator.shell.observe import observe_pod
from tests.contract.stage import job, pod, unique
from tests.contract.suite import worker_labels
from tests.shell.hand_clock import HandClock

HOLD = {"key": "hold", "effect": "NoSchedule"}


def node(name: str, spec: dict[str, Any] | None = None, cpu: str = "4") -> Object:
    conditions = [{"type": "Ready", "status": "True"}]
    status = {"allocatable": {"cpu": cpu, "pods": "2"}, "conditions": conditions}
    return {"metadata": {"name": name}, "spec": spec or {}, "status": status}


def asking(name: str, cpu: str, **spec: Any) -> Object:
    body = pod(name, "n1", worker_labels(), resources={"requests": {"cpu": cpu}})
    body["spec"] |= spec
    return body


BINDING: dict[str, tuple[Object | None, Object, bool, str]] = {
    "fits": (node("n1"), asking("p", "4"), False, ""),
    "asks for too much": (node("n1"), asking("p", "5"), False, "Insufficient cpu"),
    "asks for too much, and nobody counts": (node("n1"), asking("p", "5"), True, ""),
    "the node is not there": (None, asking("p", "1"), False, "NodeAffinity"),
    "the node is cordoned": (node("n1", {"unschedulable": True}), asking("p", "1"), False, "unschedulable"),
    "a taint": (node("n1", {"taints": [HOLD]}), asking("p", "1"), False, "untolerated taint {hold"),
    "a taint that is tolerated": (
        node("n1", {"taints": [HOLD]}),
        asking("p", "1", tolerations=[{"key": "hold", "operator": "Exists"}]),
        False,
        "",
    ),
    "every taint is tolerated": (
        node("n1", {"taints": [HOLD]}),
        asking("p", "1", tolerations=[{"operator": "Exists"}]),
        False,
        "",
    ),
    "a mere preference": (
        node("n1", {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}),
        asking("p", "1"),
        False,
        "",
    ),
}


@pytest.mark.parametrize("sentence", BINDING)
async def test_binding(sentence: str) -> None:
    there, body, ignoring, why = BINDING[sentence]
    cluster = MemoryCluster(HandClock(), MemoryOptions(ignore_resources=ignoring))
    if there is not None:
        await cluster.create(Kind.NODE, "", there)
    await cluster.create(Kind.POD, "ml", body)
    seen = observe_pod(await cluster.get(Kind.POD, "ml", "p"))
    assert seen is not None and seen.bound is (not why) and why in seen.unschedulable


async def test_a_waiting_pod_is_bound_when_there_is_room() -> None:
    cluster = MemoryCluster(HandClock())
    await cluster.create(Kind.NODE, "", node("n1"))
    first = await cluster.create(Kind.POD, "ml", asking("first", "3"))
    await cluster.create(Kind.POD, "ml", asking("second", "3"))
    assert "nodeName" not in (await cluster.get(Kind.POD, "ml", "second"))["spec"]
    cluster.set_pod_status(first["metadata"]["uid"], {"phase": "Succeeded"})
    assert (await cluster.get(Kind.POD, "ml", "second"))["spec"]["nodeName"] == "n1"


async def test_a_kubelet_writes_statuses_and_lets_pods_go() -> None:
    cluster = MemoryCluster(HandClock())
    await cluster.create(Kind.NODE, "", node("n1"))
    uid = (await cluster.create(Kind.POD, "ml", asking("p", "1")))["metadata"]["uid"]
    ready = {"type": "Ready", "status": "True"}
    cluster.set_pod_status(uid, {"phase": "Running", "conditions": [ready]})
    status = (await cluster.get(Kind.POD, "ml", "p"))["status"]
    assert status["phase"] == "Running"
    assert {entry["type"] for entry in status["conditions"]} == {"PodScheduled", "Ready"}
    with pytest.raises(Conflict):
        cluster.confirm_deleted(uid)
    await cluster.delete(Kind.POD, "ml", "p", grace_seconds=5)
    dying = (await cluster.get(Kind.POD, "ml", "p"))["metadata"]
    assert dying["deletionTimestamp"] == "2026-01-01T00:00:05Z"
    cluster.confirm_deleted(uid)
    cluster.confirm_deleted(uid)
    with pytest.raises(NotFound):
        cluster.set_pod_status(uid, {"phase": "Running"})


async def test_an_ended_pod_needs_no_kubelet_to_go() -> None:
    cluster = MemoryCluster(HandClock())
    await cluster.create(Kind.NODE, "", node("n1"))
    uid = (await cluster.create(Kind.POD, "ml", asking("p", "1")))["metadata"]["uid"]
    cluster.set_pod_status(uid, {"phase": "Failed"})
    await cluster.delete(Kind.POD, "ml", "p")
    with pytest.raises(NotFound):
        await cluster.get(Kind.POD, "ml", "p")


FAULTS: dict[FaultKind, tuple[type[ClusterError], bool]] = {
    FaultKind.LOST_REPLY: (Unavailable, True),
    FaultKind.DROPPED: (Unavailable, False),
    FaultKind.THROTTLED: (Unavailable, False),
    FaultKind.CONFLICT: (Conflict, False),
}


@pytest.mark.parametrize("kind", FaultKind)
async def test_faults_strike_as_often_as_told_and_happen_or_not(kind: FaultKind) -> None:
    error, happens = FAULTS[kind]
    cluster = MemoryCluster(HandClock())
    cluster.faults.add(Fault(kind, "create", Kind.CONFIG_MAP, times=1, skip=1))
    names = [unique("c") for _ in range(3)]
    bodies: list[Object] = [{"metadata": {"name": name}} for name in names]
    await cluster.create(Kind.CONFIG_MAP, "ml", bodies[0])
    await cluster.create(Kind.SECRET, "ml", bodies[1])  # another kind is not struck
    with pytest.raises(error):
        await cluster.create(Kind.CONFIG_MAP, "ml", bodies[1])
    await cluster.create(Kind.CONFIG_MAP, "ml", bodies[2])
    there = {entry["metadata"]["name"] for entry in (await cluster.list(Kind.CONFIG_MAP)).items}
    assert (names[1] in there) is happens and cluster.faults.pending == 0


async def test_watches_end_as_told_and_bring_bookmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BOOKMARK_SECONDS", 0.01)
    cluster = MemoryCluster(HandClock())
    clean = cluster.watch(Kind.POD, "0")
    assert (await anext(clean)).change is Change.BOOKMARK
    cluster.end_watches()
    assert [event async for event in clean] == []
    broken = cluster.watch(Kind.POD, "0")
    assert (await anext(broken)).change is Change.BOOKMARK
    cluster.end_watches(Unavailable("dropped"))
    with pytest.raises(Unavailable):
        await anext(broken)


async def test_a_short_history_expires_and_the_future_is_unavailable() -> None:
    cluster = MemoryCluster(HandClock(), MemoryOptions(history=3))
    for _ in range(10):
        await cluster.create(Kind.CONFIG_MAP, "ml", {"metadata": {"name": unique("c")}})
    with pytest.raises(Expired):
        await anext(cluster.watch(Kind.CONFIG_MAP, "1"))
    with pytest.raises(Unavailable):
        await anext(cluster.watch(Kind.CONFIG_MAP, "9999"))


async def test_nobody_can_change_what_is_stored_by_keeping_a_reference() -> None:
    cluster = MemoryCluster(HandClock())
    body = job("j")
    created = await cluster.create(Kind.JOB, "ml", body)
    body["spec"]["numNodes"] = 7
    created["spec"]["numNodes"] = 8
    listed = (await cluster.list(Kind.JOB)).items[0]
    listed["spec"]["checkpoint"]["path"] = "/elsewhere"
    stored = await cluster.get(Kind.JOB, "ml", "j")
    other = await cluster.create(Kind.JOB, "ml", job("other"))
    assert stored["spec"]["numNodes"] == 1
    assert stored["spec"]["checkpoint"]["path"] == other["spec"]["checkpoint"]["path"] == "/checkpoints"


async def test_a_finalizer_holds_a_job_until_it_is_taken_off() -> None:
    cluster = MemoryCluster(HandClock())
    body = job("j")
    body["metadata"]["finalizers"] = ["example.com/wait"]
    await cluster.create(Kind.JOB, "ml", body)
    await cluster.delete(Kind.JOB, "ml", "j")
    held = await cluster.get(Kind.JOB, "ml", "j")
    assert held["metadata"]["deletionTimestamp"]
    await cluster.patch(Kind.JOB, "ml", "j", {"metadata": {"finalizers": None}})
    with pytest.raises(NotFound):
        await cluster.get(Kind.JOB, "ml", "j")


async def test_a_restored_job_is_the_same_one() -> None:
    first = MemoryCluster(HandClock())
    saved = await first.create(Kind.JOB, "ml", job("j"))
    second = MemoryCluster(HandClock())
    second.restore(Kind.JOB, saved)
    again = await second.get(Kind.JOB, "ml", "j")
    assert again["metadata"]["uid"] == saved["metadata"]["uid"]
    written = await second.replace(Kind.JOB, "ml", {**again, "status": {"round": 1}}, status=True)
    assert written["status"]["round"] == 1


async def test_selectors_and_names_that_make_no_sense_are_refused() -> None:
    cluster = MemoryCluster(HandClock())
    with pytest.raises(Rejected, match="unable to parse"):
        await cluster.create(Kind.CONFIG_MAP, "ml", {"metadata": {"name": "c"}})
        await cluster.list(Kind.CONFIG_MAP, labels="a ~ b")
    with pytest.raises(Rejected, match="name"):
        await cluster.create(Kind.CONFIG_MAP, "ml", {"metadata": {}})
    with pytest.raises(Rejected, match="namespace"):
        await cluster.create(Kind.CONFIG_MAP, "ml", {"metadata": {"name": "c", "namespace": "other"}})


async def test_many_watchers_see_every_write_in_order() -> None:
    cluster = MemoryCluster(HandClock())

    async def follow() -> list[str]:
        seen: list[str] = []
        async for event in cluster.watch(Kind.CONFIG_MAP, "0"):
            seen.append(event.object["metadata"]["name"])
            if len(seen) == 50:
                break
        return seen

    followers = [asyncio.create_task(follow()) for _ in range(5)]
    names = [f"c{number}" for number in range(50)]
    for name in names:
        await cluster.create(Kind.CONFIG_MAP, "ml", {"metadata": {"name": name}})
    async with asyncio.timeout(10):
        assert await asyncio.gather(*followers) == [names] * 5

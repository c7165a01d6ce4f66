"""The engine end to end on the in-memory cluster: real core, reconciler and coordinator, stand-in agents."""

import asyncio
import copy
from pathlib import Path

import pytest

from rerail_operator.shell.cluster import Kind, Object
from rerail_operator.shell.memory_faults import Fault, FaultKind
from tests.shell.agent_client import Frame
from tests.shell.hamlet import Hamlet, hamlet, job
from tests.shell.waiting import until


async def test_a_job_runs_and_completes(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await there.cluster.create(Kind.JOB, "default", job())
        seen = await there.until("gpt", phase="Running")
        assert seen["round"] == 1
        assert seen["nodes"]["summary"] == "2/2"
        await there.progress(5, loss=3.0, checkpoint_step=4)
        await there.all_done()
        seen = await there.until("gpt", phase="Complete")
        assert seen["progress"]["step"] == 5
        assert seen["lastCheckpoint"]["step"] == 4
        assert seen["restarts"]["total"] == 0
        assert there.engine is not None and there.engine.failures == 0


async def test_a_failed_rank_restarts_the_gang_without_touching_a_pod(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await there.cluster.create(Kind.JOB, "default", job())
        await there.until("gpt", phase="Running")
        before = set(await there.pods())
        await there.progress(5, checkpoint_step=4)
        await there.rank_fails(sorted(before)[1], signal=9, exit_code=None, rank=1)
        seen = await there.until("gpt", phase="Running", round=2)
        assert set(await there.pods()) == before
        assert seen["restarts"] == {"total": 1, "charged": 1, "sinceProgress": 1}
        incident = seen["incidents"][0]
        assert (incident["class"], incident["signal"], incident["rank"]) == ("ProcessFault", "SIGKILL", 1)
        assert there.engine is not None and there.engine.failures == 0


async def test_a_deleted_pod_is_replaced_and_charged_to_nobody(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await there.cluster.create(Kind.JOB, "default", job())
        await there.until("gpt", phase="Running")
        names = sorted(await there.pods())
        await there.cluster.delete(Kind.POD, "default", names[1], grace_seconds=1)
        seen = await there.until("gpt", phase="Running", round=2)
        assert seen["restarts"]["charged"] == 0 and seen["restarts"]["total"] == 1
        after = sorted(await there.pods())
        assert after[0] == names[0] and after[1] != names[1]


async def test_an_operator_that_restarts_in_the_middle_counts_once(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await there.cluster.create(Kind.JOB, "default", job())
        await there.until("gpt", phase="Running")
        names = sorted(await there.pods())
        await there.rank_fails(names[0])
        await there.until("gpt", round=2)
        await there.stop_operator()
        await there.start_operator()
        seen = await there.until("gpt", phase="Running", round=2)
        assert seen["restarts"]["total"] == 1
        assert len(seen["incidents"]) == 1
        assert sorted(await there.pods()) == names


async def test_suspend_gives_everything_back_and_resume_opens_a_round(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await there.cluster.create(Kind.JOB, "default", job())
        await there.until("gpt", phase="Running")
        await there.cluster.patch(Kind.JOB, "default", "gpt", {"spec": {"suspend": True}})
        seen = await there.until("gpt", phase="Suspended", reason="Suspended")
        assert await there.pods() == {}
        assert seen["restarts"]["total"] == 0
        await there.cluster.patch(Kind.JOB, "default", "gpt", {"spec": {"suspend": False}})
        seen = await there.until("gpt", phase="Running")
        assert seen["round"] == 2


async def test_of_two_jobs_with_room_for_one_the_second_waits_and_then_runs(tmp_path: Path) -> None:
    async with hamlet(tmp_path, nodes=3) as there:
        await there.cluster.create(Kind.JOB, "default", job("first"))
        await there.until("first", phase="Running")
        await there.cluster.create(Kind.JOB, "default", job("second"))
        seen = await there.until("second", phase="Queued", reason="InsufficientNodes")
        assert "needs 2 nodes with 8 free nvidia.com/gpu" in seen["message"]
        await there.all_done()
        await there.until("first", phase="Complete")
        await there.until("second", phase="Running")


async def test_a_place_that_comes_free_without_any_pod_is_taken_at_once(tmp_path: Path) -> None:
    async with hamlet(tmp_path, nodes=3) as there:
        # The claim is taken before the write that tells it; here that write has to be made again.
        there.cluster.faults.add(Fault(FaultKind.CONFLICT, "replace", Kind.JOB))
        await there.cluster.create(Kind.JOB, "default", job("first"))
        async with asyncio.timeout(10):
            while there.cluster.faults.pending:
                await asyncio.sleep(0.001)
        await there.cluster.create(Kind.JOB, "default", job("second"))
        await there.until("second", phase="Queued")
        await there.cluster.patch(Kind.JOB, "default", "first", {"spec": {"suspend": True}})
        await there.until("second", phase="Running")


async def test_a_job_that_the_server_refuses_keeps_no_other_waiting(tmp_path: Path) -> None:
    async with hamlet(tmp_path, nodes=2) as there:
        broken = copy.deepcopy(job("broken"))
        broken["spec"]["template"]["spec"]["containers"][0]["resourcez"] = {}
        await there.cluster.create(Kind.JOB, "default", broken)
        await there.cluster.create(Kind.JOB, "default", job("second"))
        await there.until("second", phase="Running")
        await there.until("broken", phase="Queued", reason="TemplateRejected")


async def test_a_template_that_the_server_refuses_is_told_and_nothing_is_claimed(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        broken = copy.deepcopy(job())
        broken["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limit": {"nvidia.com/gpu": 8}}
        await there.cluster.create(Kind.JOB, "default", broken)
        seen = await there.until("gpt", phase="Queued", reason="TemplateRejected")
        assert "limit" in seen["message"]
        assert await there.pods() == {}
        await there.cluster.create(Kind.JOB, "default", job("second"))
        await there.until("second", phase="Running")


async def test_an_agent_of_an_older_round_whose_pod_is_gone_is_sent_away(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await there.cluster.create(Kind.JOB, "default", job())
        await there.until("gpt", phase="Running")
        (uid, name) = sorted(
            (pod["metadata"]["uid"], pod["metadata"]["name"]) for pod in (await there.pods()).values()
        )[1]
        zombie = there.agents[name]
        await there.cluster.delete(Kind.POD, "default", name, uid=uid, grace_seconds=0)
        seen = await there.until("gpt", phase="Running", round=2)
        assert seen["restarts"]["total"] == 1
        # The node that was cut off is back, and on it the container that nobody has ended.
        await until(
            lambda: [order for order in zombie.received if order.get("do") == "finish"], what="its dismissal"
        )
        assert [order.get("do") for order in zombie.received if order["kind"] == "order"] == [
            "join",
            "run",
            "finish",
        ]
        assert zombie.received[-1]["message"] == "its pod is gone and round 2 has begun without it"


async def test_a_deleted_job_leaves_no_pod(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await there.cluster.create(Kind.JOB, "default", job())
        await there.until("gpt", phase="Running")
        await there.cluster.delete(Kind.JOB, "default", "gpt")
        await there.until_no_pods()


WRITES = {
    "the admission": ("replace", Kind.JOB, 0),
    "the release": ("replace", Kind.JOB, 1),
    "the first word of Running": ("replace", Kind.JOB, 2),
    "the template": ("create", Kind.REVISION, 0),
    "the agent": ("create", Kind.CONFIG_MAP, 0),
    "the dry run": ("create", Kind.POD, 0),
    "the first pod": ("create", Kind.POD, 1),
    "the last pod": ("create", Kind.POD, 2),
}


@pytest.mark.parametrize("what", [FaultKind.LOST_REPLY, FaultKind.DROPPED, FaultKind.THROTTLED])
@pytest.mark.parametrize("write", WRITES)
async def test_a_start_survives_a_fault_at(write: str, what: FaultKind, tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        verb, kind, skip = WRITES[write]
        there.cluster.faults.add(Fault(what, verb, kind, skip=skip))
        await there.cluster.create(Kind.JOB, "default", job())
        seen = await there.until("gpt", phase="Running", seconds=20)
        assert there.cluster.faults.pending == 0, "the fault never struck"
        assert seen["restarts"]["total"] == 0
        assert seen["round"] == 1
        assert len(await there.pods()) == 2


@pytest.mark.parametrize("what", list(FaultKind))
@pytest.mark.parametrize("skip", [0, 1, 2])
async def test_a_restart_is_counted_once_whatever_happens_to_its_writes(
    what: FaultKind, skip: int, tmp_path: Path
) -> None:
    async with hamlet(tmp_path) as there:
        await there.cluster.create(Kind.JOB, "default", job())
        await there.until("gpt", phase="Running")
        there.cluster.faults.add(Fault(what, "replace", Kind.JOB, skip=skip))
        await there.rank_fails(sorted(await there.pods())[0])
        seen = await there.until("gpt", phase="Running", round=2, seconds=20)
        assert seen["restarts"]["total"] == 1
        assert len(seen["incidents"]) == 1


async def test_the_first_loss_is_kept_though_progress_is_written_seldom(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await there.cluster.create(Kind.JOB, "default", job())
        await there.until("gpt", phase="Running")
        for step, loss in ((1, 6.0), (2, 5.0), (3, 4.0)):
            await there.progress(step, loss=loss)
            await asyncio.sleep(0.6)  # the coordinator passes progress on twice a second
        await there.all_done()
        seen = await there.until("gpt", phase="Complete")
        assert (seen["progress"]["firstLoss"], seen["progress"]["loss"]) == (6.0, 4.0)


async def with_a_spare(there: Hamlet, name: str = "gpt") -> Frame:
    """The job runs and its spare stands at the barrier."""
    await there.cluster.create(Kind.JOB, "default", job(name, spares=1))
    return await there.until(
        name, phase="Running", nodes={"desired": 2, "ready": 2, "spares": 1, "summary": "2/2"}
    )


def by_node_rank(pods: dict[str, Object]) -> dict[str, str]:
    return {
        pod["metadata"]["labels"].get("rerail.dev/node-rank", "spare"): name for name, pod in pods.items()
    }


async def test_a_spare_takes_the_place_of_a_lost_pod(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await with_a_spare(there)
        before = by_node_rank(await there.pods())
        await there.cluster.delete(Kind.POD, "default", before["1"], grace_seconds=1)
        seen = await there.until("gpt", phase="Running", round=2)
        after = by_node_rank(await there.pods())
        assert (after["0"], after["1"]) == (before["0"], before["spare"])
        assert seen["restarts"]["total"] == 1
        assert there.agents[after["1"]].report["release"]["node_rank"] == 1
        # A node is free again: a new spare takes the old one's part.
        await there.until("gpt", nodes={"desired": 2, "ready": 2, "spares": 1, "summary": "2/2"})
        assert there.engine is not None and there.engine.failures == 0


async def test_a_promotion_survives_whatever_happens_to_its_patch(tmp_path: Path) -> None:
    for what in FaultKind:
        folder = tmp_path / what.name
        folder.mkdir()
        async with hamlet(folder) as there:
            await with_a_spare(there)
            before = by_node_rank(await there.pods())
            there.cluster.faults.add(Fault(what, "patch", Kind.POD))
            await there.cluster.delete(Kind.POD, "default", before["0"], grace_seconds=1)
            seen = await there.until("gpt", phase="Running", round=2)
            assert there.cluster.faults.pending == 0, f"{what} never struck"
            assert by_node_rank(await there.pods())["0"] == before["spare"]
            assert seen["restarts"]["total"] == 1


async def test_a_spare_makes_room_for_a_job_that_waits(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await with_a_spare(there)
        await there.cluster.create(Kind.JOB, "default", job("second", nodes=1))
        await there.until("second", phase="Running")
        seen = await there.until("gpt", nodes={"desired": 2, "ready": 2, "spares": 0, "summary": "2/2"})
        assert (seen["phase"], seen["round"]) == ("Running", 1)


async def test_a_spare_makes_room_for_a_node_rank_of_another_job(tmp_path: Path) -> None:
    async with hamlet(tmp_path, nodes=4) as there:
        await there.cluster.create(Kind.JOB, "default", job("other", nodes=1))
        await there.until("other", phase="Running")
        await with_a_spare(there)
        (mine,) = (n for n in await there.pods() if n.startswith("other"))
        node = (await there.pods())[mine]["spec"]["nodeName"]
        await there.cluster.patch(Kind.NODE, "", node, {"spec": {"unschedulable": True}})
        await there.cluster.delete(Kind.POD, "default", mine, grace_seconds=1)
        await there.until("other", phase="Running", round=2)
        await there.until("gpt", nodes={"desired": 2, "ready": 2, "spares": 0, "summary": "2/2"})


async def test_a_job_that_ends_leaves_no_spare(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        await with_a_spare(there)
        pods = by_node_rank(await there.pods())
        for rank in ("0", "1"):
            await there.agents[pods[rank]].say(state="Done", ranks_alive=0)
        await there.until("gpt", phase="Complete")
        async with asyncio.timeout(10):
            while "spare" in by_node_rank(await there.pods()):
                await asyncio.sleep(0.02)

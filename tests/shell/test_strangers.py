"""Who may create pods in another namespace has no say in a job: neither by labels nor by what an agent claims."""

import asyncio
from pathlib import Path
from typing import Any

from rerail_api.contract import LABEL_JOB, LABEL_NODE_RANK, LABEL_SINCE_ROUND
from rerail_operator.shell.cluster import Kind
from tests.shell.agent_client import AgentClient
from tests.shell.hamlet import Hamlet, hamlet, job


async def running(there: Hamlet) -> tuple[str, dict[str, Any]]:
    """A running job; its UID and the pod of node rank 0."""
    await there.cluster.create(Kind.JOB, "default", job())
    await there.until("gpt", phase="Running")
    uid = (await there.cluster.get(Kind.JOB, "default", "gpt"))["metadata"]["uid"]
    pods = (await there.pods()).values()
    return uid, next(pod for pod in pods if pod["metadata"]["labels"][LABEL_NODE_RANK] == "0")


async def test_a_pod_of_another_namespace_with_the_labels_of_a_job_takes_no_seat(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        uid, own = await running(there)
        # Without the job's name nothing tears it down either.
        labels = {key: text for key, text in own["metadata"]["labels"].items() if key != LABEL_JOB}
        meta = {"name": "stranger", "namespace": "elsewhere", "labels": {**labels, LABEL_SINCE_ROUND: "999"}}
        spec = {"containers": own["spec"]["containers"]}
        await there.cluster.create(Kind.POD, "elsewhere", {"kind": "Pod", "metadata": meta, "spec": spec})
        assert there.engine is not None
        async with asyncio.timeout(10):
            while len(there.engine.fleet.pod_records(uid)) < 3:
                await asyncio.sleep(0.02)
        assert {pod.name for pod in there.engine.fleet.pods(uid)} == set(there.agents)
        await there.all_done()
        seen = await there.until("gpt", phase="Complete")
        assert (seen["round"], seen["restarts"]["total"]) == (1, 0)


async def test_an_agent_of_no_pod_of_the_job_reports_no_progress(tmp_path: Path) -> None:
    async with hamlet(tmp_path) as there:
        uid, _ = await running(there)
        assert there.coordinator is not None
        stranger = AgentClient("elsewhere/gpt", uid, "other", "other-uid", there.token.read_text())
        stranger.report = {
            **stranger.report,
            "state": "Running",
            "round": 1,
            "progress": {"step": 10**9, "checkpoint_step": 10**9, "phase": "train"},
            "progress_age": 0.0,
        }
        await stranger.connect("127.0.0.1", there.coordinator.port)
        await stranger.receive("welcome")
        await stranger.say()
        await there.progress(5, checkpoint_step=4)
        await there.all_done()
        seen = await there.until("gpt", phase="Complete")
        await stranger.close()
        assert seen["progress"]["step"] == 5
        assert seen["lastCheckpoint"]["step"] == 4

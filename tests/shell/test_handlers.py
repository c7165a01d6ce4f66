"""kopf on a real API server: every event of a TrainingJob becomes its key in our loop."""

import asyncio
from collections.abc import Iterator

import kopf
import pytest

from rerail_operator.shell import handlers
from rerail_operator.shell.handlers import JobServer, pin
from rerail_operator.shell.keys import JobKey
from tests.cluster.rig import ControlPlane

from .jobs import raw_job
from .waiting import until

pytestmark = pytest.mark.controlplane
KEY = JobKey("team", "job")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with ControlPlane() as cluster:
        cluster.kubectl("apply", "--server-side", "-f", "crds/trainingjobs.yaml")
        cluster.kubectl("wait", "--for=condition=Established", "crd/trainingjobs.rerail.dev", "--timeout=30s")
        cluster.kubectl("create", "namespace", "team")
        yield cluster


def manifest(**spec: object) -> dict[str, object]:
    raw = raw_job()
    return {
        "apiVersion": raw["apiVersion"],
        "kind": raw["kind"],
        "metadata": {"name": "job", "namespace": "team"},
        "spec": {**raw["spec"], **spec},
    }


async def test_create_change_delete_and_resume_reach_the_queue(
    cluster: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    seen: list[JobKey] = []
    server = JobServer(seen.append)
    server.start()
    try:
        await until(lambda: server.starts == 1, 30)
        await asyncio.to_thread(cluster.apply, manifest())
        await until(lambda: seen, 20, "create")
        assert set(seen) == {KEY}
        # an event of its own write, if there were one, would come now
        await asyncio.sleep(1)
        assert len(seen) == 1, "kopf must not write to the object"
        stored = await asyncio.to_thread(cluster.get, "trainingjob", "job", "-n", "team")
        assert "finalizers" not in stored["metadata"]
        assert not [a for a in stored["metadata"].get("annotations", {}) if "kopf" in a or "rerail" in a]
        seen.clear()
        await asyncio.to_thread(cluster.apply, manifest(suspend=True))
        await until(lambda: seen, 20, "change")
        await server.stop()

        seen.clear()
        resumed = JobServer(seen.append)
        resumed.start()
        await until(lambda: KEY in seen, 30, "resume: what was there before the start")
        seen.clear()
        await asyncio.to_thread(cluster.kubectl, "delete", "trainingjob", "job", "-n", "team")
        await until(lambda: seen, 20, "delete")
        await resumed.stop()
    finally:
        await server.stop()


async def test_kopf_that_has_ended_is_started_again_and_ends_nothing_else(
    cluster: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    seen: list[JobKey] = []
    server = JobServer(seen.append)

    def pin_badly_once(settings: kopf.OperatorSettings) -> None:
        pin(settings)
        if server.starts == 0:
            settings.watching.server_timeout = (
                300.5  # the API server refuses such a watch, and kopf ends of it
            )

    monkeypatch.setattr(handlers, "pin", pin_badly_once)
    ours = asyncio.create_task(asyncio.sleep(3600))
    server.start()
    try:
        await until(lambda: server.starts == 2, 60)
        await asyncio.to_thread(cluster.apply, manifest())
        await until(lambda: KEY in seen, 20)
        assert not ours.done()
    finally:
        ours.cancel()
        await server.stop()
        await asyncio.to_thread(
            cluster.kubectl, "delete", "trainingjob", "job", "-n", "team", "--ignore-not-found"
        )


def test_kopf_posts_nothing_and_ends_no_process() -> None:
    settings = kopf.OperatorSettings()
    pin(settings)
    assert settings.posting.enabled is False
    assert settings.peering.standalone is True
    assert settings.process.ultimate_exiting_timeout is None
    assert 300 <= (settings.watching.server_timeout or 0) <= 600

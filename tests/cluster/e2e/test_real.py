"""Real nodes, real images, the real trainer: what breaks is repaired, and the losses are those of an undisturbed run."""

import json
import os
import random
import signal
import textwrap
import time
from collections.abc import Iterator

import pytest

from tests.chaos.on_nodes import NodeLife, blows_of
from tests.cluster.rig import ControlPlane, Options, paths
from tests.cluster.rig.images import build_images
from tests.cluster.rig.storage import StoredImage
from tests.local.runs import ledger_sums

from .jobs import GPU, NODE_RANK, Json, condition, trainer
from .operator_process import SYSTEM
from .site import SAVE_EVERY, STEPS, Site, training

pytestmark = [pytest.mark.realnodes, pytest.mark.timeout(600)]

NODES = 3
GRACE_SECONDS = 20
RUN_SECONDS = 150.0
HURT_AT = 20
PLAIN = "FROM ${BASE_IMAGE} AS plain\nUSER 1000:1000\nWORKDIR /tmp\n"


def _blows(seed: int) -> str:
    return ", ".join(blow.name for blow in blows_of(random.Random(seed), NODES))


@pytest.fixture(scope="module")
def plain_image(tmp_path_factory: pytest.TempPathFactory) -> StoredImage:
    """Python and nothing else."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "Dockerfile").write_text(f"ARG BASE_IMAGE\n{PLAIN}")
    return build_images(folder, targets=("plain",))["plain"]


@pytest.fixture(scope="module")
def opened_site(plain_image: StoredImage) -> Iterator[Site]:
    images = [*build_images().values(), plain_image]
    with ControlPlane(Options(isolated=True, node_grace_seconds=GRACE_SECONDS)) as cluster:
        site = Site(cluster, cluster.real_nodes(NODES, gpus=8, images=images))
        site.install()
        yield site
        site.check_garbage()


@pytest.fixture
def site(opened_site: Site) -> Iterator[Site]:
    yield opened_site
    opened_site.delete_jobs()


@pytest.fixture(scope="module")
def undisturbed(opened_site: Site) -> dict[int, str]:
    """The losses of a run that nothing happens to: two nodes, one rank each."""
    opened_site.submit(training("undisturbed"))
    seen = opened_site.until_job("undisturbed", RUN_SECONDS, phase="Complete")
    assert seen["restarts"]["total"] == 0
    assert seen["progress"]["step"] == seen["lastCheckpoint"]["step"] == STEPS
    losses = opened_site.losses("undisturbed")
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert [step for step, _ in opened_site.printed("undisturbed")] == sorted(losses), "a step was made twice"
    opened_site.cluster.kubectl("delete", "tj", "undisturbed")
    return losses


def completed(site: Site, name: str, restarts: int, charged: int) -> Json:
    """The status of a job that had this many restarts and then completed."""
    seen = site.until_job(name, RUN_SECONDS, phase="Complete")
    assert (seen["restarts"]["total"], seen["restarts"]["charged"]) == (restarts, charged), seen["incidents"]
    assert seen["progress"]["step"] == STEPS
    return seen


def test_the_chart_with_its_defaults_runs_two_ready_replicas(site: Site) -> None:
    deployment = site.cluster.get("deployment", "rerail", "-n", SYSTEM)
    assert deployment["status"]["readyReplicas"] == deployment["spec"]["replicas"] == 2
    pods = site.cluster.get("pods", "-n", SYSTEM)["items"]
    assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
    assert {site.user(pod["metadata"]["name"]) for pod in pods} == {65532}
    assert site.leaders_node() in site.nodes.names
    for pod in pods:
        told = site.cluster.kubectl("logs", pod["metadata"]["name"], "-n", SYSTEM)
        # A job's own traceback is a message; one of the operator's is a field of its line.
        assert [line for line in told.splitlines() if "exception" in json.loads(line)] == []


def test_a_killed_rank_resumes_from_its_checkpoint_and_the_losses_are_the_same(
    site: Site, undisturbed: dict[int, str]
) -> None:
    site.submit(training("rank"))
    site.until_step("rank", HURT_AT)
    before = site.uids("rank")
    victim = sorted(before)[1]
    (pid,) = site.ranks(victim)
    os.kill(pid, signal.SIGKILL)
    seen = completed(site, "rank", restarts=1, charged=1)
    (incident,) = seen["incidents"]
    assert (incident["class"], incident["signal"], incident["rank"]) == ("ProcessFault", "SIGKILL", 1)
    assert incident["resumedStep"] >= HURT_AT - SAVE_EVERY
    assert site.uids("rank") == before, "a restart in place touches no pod"
    assert site.losses("rank") == undisturbed
    described = site.cluster.kubectl("describe", "tj", "rank")
    assert "was killed by signal 9" in described and "Completed" in described


def test_a_whole_container_that_is_killed_is_replaced(site: Site, undisturbed: dict[int, str]) -> None:
    site.submit(training("container"))
    site.until_step("container", HURT_AT)
    first, second = sorted(site.pods("container"))
    os.kill(
        site.agent(second), signal.SIGKILL
    )  # the kernel kills all of its namespace, as for want of memory
    seen = completed(site, "container", restarts=1, charged=1)
    assert seen["incidents"][0]["exitCode"] == 137
    assert first in site.pods("container") and second not in site.pods("container")
    assert site.losses("container") == undisturbed


@pytest.mark.parametrize("seed", [23, 41], ids=_blows)
def test_a_life_with_blows_keeps_every_promise(site: Site, undisturbed: dict[int, str], seed: int) -> None:
    told = NodeLife(site, seed, {step: float(loss) for step, loss in undisturbed.items()}).live()
    assert told.problems() == [], str(told)


def test_a_deleted_pod_saves_and_is_replaced(site: Site, undisturbed: dict[int, str]) -> None:
    site.submit(training("deleted"))
    site.until_step("deleted", HURT_AT)
    first, second = sorted(site.pods("deleted"))
    site.cluster.kubectl("delete", "pod", second, "--wait=false")
    completed(site, "deleted", restarts=1, charged=0)
    assert first in site.pods("deleted") and second not in site.pods("deleted")
    assert site.losses("deleted") == undisturbed


def test_a_node_that_dies_is_left_and_the_training_goes_on_elsewhere(
    site: Site, undisturbed: dict[int, str]
) -> None:
    with site.cordoned(site.leaders_node()):
        site.submit(training("node"))
        site.until_step("node", HURT_AT)
    pod, found = sorted(site.pods("node").items())[1]
    lost = found["spec"]["nodeName"]
    killed = time.monotonic()
    site.nodes.kill_node(lost)
    try:
        site.until("the loss is known", lambda: site.status("node").get("incidents"), GRACE_SECONDS)
        known = time.monotonic() - killed
        print(f"a dead node is known after {known:.1f} s, killing it included")
        seen = completed(site, "node", restarts=1, charged=0)
        (incident,) = seen["incidents"]
        # Its peer knows long before the API server, which waits for the node's lease.
        assert (incident["class"], incident["node"], incident["nodeRank"]) == ("NodeLoss", lost, 1)
        assert "1 peer cannot reach it" in incident["message"]
        (moved,) = [one for name, one in site.pods("node").items() if name != sorted(site.pods("node"))[0]]
        assert moved["spec"]["nodeName"] != lost and pod not in site.pods("node")
        assert site.losses("node") == undisturbed
    finally:
        site.nodes.restart_node(lost)
        site.cluster.kubectl("rollout", "status", "deployment/rerail", "-n", SYSTEM, "--timeout=90s")


def test_a_spare_takes_the_rank_of_a_node_that_dies(site: Site, undisturbed: dict[int, str]) -> None:
    manifest = training("spared")
    manifest["spec"]["spares"] = 1
    site.submit(manifest)
    site.until("a spare stands ready", lambda: site.status("spared").get("nodes", {}).get("spares") == 1)
    site.until_step("spared", HURT_AT)
    before, pods = site.uids("spared"), site.pods("spared")
    seats = {one["metadata"]["labels"].get(NODE_RANK): pod for pod, one in pods.items()}
    nodes = {rank: pods[pod]["spec"]["nodeName"] for rank, pod in seats.items()}
    assert len(set(nodes.values())) == NODES and set(seats) == {"0", "1", None}
    # The leader lives on: what is measured here is the spare.
    victim = next(rank for rank in ("1", "0") if nodes[rank] != site.leaders_node())
    lost, spare = nodes[victim], seats[None]
    killed = time.monotonic()
    site.nodes.kill_node(lost)
    try:
        site.until_job("spared", RUN_SECONDS, round=2)
        site.until_step("spared", site.step("spared") + 1)
        print(f"a step further than ever {time.monotonic() - killed:.1f} s after the node began to die")
        seen = completed(site, "spared", restarts=1, charged=0)
        (incident,) = seen["incidents"]
        stages = incident["stageSeconds"]
        print(f"by stages: {stages}")
        assert (incident["class"], incident["node"], incident["nodeRank"]) == ("NodeLoss", lost, int(victim))
        assert incident["rung"] == "Swap"
        kept = {pod: uid for pod, uid in before.items() if pod != seats[victim]}
        assert site.uids("spared") == kept, "no pod was made"
        assert site.pods("spared")[spare]["metadata"]["labels"][NODE_RANK] == victim
        assert [event for event in site.events("spared") if event.startswith("SpareTakesRank: ")] != []
        assert site.losses("spared") == undisturbed
        assert {"detection", "load"} <= set(stages) and "queued" not in stages
        assert ledger_sums(seen)
    finally:
        site.nodes.restart_node(lost)
        site.cluster.kubectl("rollout", "status", "deployment/rerail", "-n", SYSTEM, "--timeout=90s")


def test_suspend_saves_the_last_step_and_resume_goes_on_from_it(
    site: Site, undisturbed: dict[int, str]
) -> None:
    site.submit(training("paused"))
    site.until_step("paused", HURT_AT)
    site.change("paused", {"suspend": True})
    site.until_job("paused", 90, phase="Suspended", reason="Suspended")
    assert site.pods("paused") == {}
    reached = site.step("paused")
    assert HURT_AT <= reached < STEPS
    site.change("paused", {"suspend": False})
    seen = completed(site, "paused", restarts=0, charged=0)
    assert (seen["round"], seen["resumedFromStep"]) == (2, reached)
    # No step was made twice: what the notice saved was everything.
    assert [step for step, _ in site.printed("paused")] == list(range(1, STEPS + 1))
    assert site.losses("paused") == undisturbed


@pytest.mark.parametrize(("example", "script"), [("02-plain-pytorch", "plain"), ("03-torchrun", "torchrun")])
def test_a_shipped_script_runs_as_its_manifest_says(site: Site, example: str, script: str) -> None:
    folder = paths.CHECKOUT / "examples" / example
    site.cluster.kubectl("create", "configmap", f"{script}-script", f"--from-file={folder / 'train.py'}")
    try:
        site.cluster.kubectl("apply", "-f", str(folder / "job.yaml"))
        seen = site.until_job(script, RUN_SECONDS, phase="Complete")
        assert seen["restarts"]["total"] == 0
        said = site.cluster.kubectl("logs", sorted(site.pods(script))[0])
        assert "loss" in said
        assert (site.nodes.shared_on_host / "checkpoints" / script / "latest.pt").exists()
    finally:
        site.cluster.kubectl("delete", "configmap", f"{script}-script")


def test_a_program_that_always_fails_ends_failed_with_its_traceback_in_describe(site: Site) -> None:
    manifest = training("broken")
    trainer(manifest)["command"] = [
        "python",
        "-c",
        "def flux():\n raise ValueError('the flux is low')\nflux()",
    ]
    site.submit(manifest)
    seen = site.until_job("broken", 90, phase="Failed", reason="RepeatedFailure")
    assert condition(seen, "Failed")["status"] == "True"
    described = site.cluster.kubectl("describe", "tj", "broken")
    assert "Traceback (most recent call last)" in described
    assert "ValueError: the flux is low" in described
    pod = seen["incidents"][-1]["pod"]
    site.until("the logs can be read", lambda: "the flux is low" in site.cluster.kubectl("logs", pod))


def test_a_users_image_without_rerail_runs_in_a_restricted_namespace_with_a_quota(
    site: Site, plain_image: StoredImage
) -> None:
    site.namespace("users", {"pod-security.kubernetes.io/enforce": "restricted"})
    hard = {"pods": "2", f"requests.{GPU}": "4", "requests.cpu": "1", "limits.memory": "1Gi"}
    site.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "team", "namespace": "users"},
            "spec": {"hard": hard},
        }
    )
    program = textwrap.dedent("""
        import json, os
        print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], flush=True)
        with open(os.environ["RERAIL_PROGRESS"], "a") as told:
            for step in range(1, 4):
                told.write(json.dumps({"step": step, "total_steps": 3, "loss": 1.0 / step}) + chr(10))
    """)
    container = {
        "name": "trainer",
        "image": plain_image.name,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", program],
        "resources": {"requests": {"cpu": "100m"}, "limits": {GPU: 2, "memory": "256Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    manifest = training("plain")
    manifest["metadata"]["namespace"] = "users"
    manifest["spec"]["template"]["spec"] = {"containers": [container], "securityContext": security}
    manifest["spec"]["numProcPerNode"] = "auto"
    site.submit(manifest)
    seen = site.until_job("plain", 90, namespace="users", phase="Complete")
    assert seen["progress"]["step"] == 3
    said = "".join(site.cluster.kubectl("logs", pod, "-n", "users") for pod in site.pods("plain", "users"))
    assert [f"rank {rank} of 4" in said for rank in range(4)] == [True] * 4
    site.cluster.kubectl("delete", "namespace", "users", "--wait=false")


def test_an_image_that_is_not_there_is_told_in_the_kubelets_words(site: Site) -> None:
    manifest = training("imageless", nodes=1)
    trainer(manifest).update(image="rerail-nothing:absent", imagePullPolicy="Never")
    site.submit(manifest)
    seen = site.until_job("imageless", phase="Starting", reason="ContainerWaiting")
    assert "ErrImageNeverPull" in seen["message"] and "rerail-nothing:absent" in seen["message"]


def test_upgrade_uninstall_and_reinstall_touch_no_running_job(site: Site) -> None:
    site.submit(training("lasting", steps=100_000))
    site.until_step("lasting", HURT_AT)
    site.until_job("lasting", phase="Running")
    before = site.uids("lasting")
    site.install("--set", "logging.level=debug")
    site.cluster.helm("uninstall", "rerail", "--namespace", SYSTEM, "--wait")
    alone = site.step("lasting")
    site.until_step("lasting", alone + 5)
    assert site.cluster.get("crd", "trainingjobs.rerail.dev")
    site.install()
    reached = site.step("lasting")
    seen = site.until(
        "the new operators follow the job",
        lambda: (told := site.status("lasting"))["progress"].get("step", 0) > reached and told,
        90,
    )
    assert (seen["phase"], seen["round"], seen["restarts"]["total"]) == ("Running", 1, 0)
    assert site.uids("lasting") == before
    counts = [pod["status"]["containerStatuses"][0]["restartCount"] for pod in site.pods("lasting").values()]
    assert counts == [0, 0]

"""How a real API server says no, and what becomes of it: rights, quota, Pod Security, outages."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rerail_operator.core.names import pod_labels
from rerail_operator.shell.cluster import AlreadyExists, Forbidden, Kind, Rejected, Unavailable
from rerail_operator.shell.fleet import Fleet
from rerail_operator.shell.kube.client import KubeCluster
from tests.cluster.rig import ControlPlane
from tests.contract.stage import job, pod, unique, until

pytestmark = pytest.mark.controlplane

CRD = Path(__file__).parents[2] / "crds" / "trainingjobs.yaml"
NAMESPACE = "refusals"


@pytest.fixture(scope="module")
def rig() -> Iterator[ControlPlane]:
    with ControlPlane() as cluster:
        cluster.kwok(2, gpus=8)
        cluster.kubectl("apply", "--server-side", "-f", str(CRD))
        cluster.kubectl("wait", "--for=condition=Established", "crd/trainingjobs.rerail.dev")
        namespace(cluster, NAMESPACE)
        yield cluster


@pytest.fixture
async def admin(rig: ControlPlane) -> AsyncIterator[KubeCluster]:
    async with KubeCluster.from_environment(str(rig.kubeconfig)) as cluster:
        yield cluster


def namespace(cluster: ControlPlane, name: str, **labels: str) -> None:
    named = {f"pod-security.kubernetes.io/{key}": value for key, value in labels.items()}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": named}})
    cluster.wait(
        "its service account",
        lambda: "default" in cluster.kubectl("get", "serviceaccounts", "-n", name, "-o", "name"),
    )


async def test_a_missing_right_is_named_by_verb_and_resource(rig: ControlPlane) -> None:
    rig.kubectl("create", "serviceaccount", "poor", "-n", NAMESPACE)
    rig.kubectl("create", "role", "reader", "-n", NAMESPACE, "--verb=get,list", "--resource=pods")
    binding = ("create", "rolebinding", "reader", "-n", NAMESPACE, "--role=reader")
    rig.kubectl(*binding, f"--serviceaccount={NAMESPACE}:poor")
    path = rig.service_account_kubeconfig(NAMESPACE, "poor")
    async with KubeCluster.from_environment(str(path)) as poor:
        with pytest.raises(Forbidden, match="does not allow create on pods"):
            await poor.create(Kind.POD, NAMESPACE, pod(unique("p")))
        with pytest.raises(Forbidden, match="does not allow update on trainingjobs/status"):
            await poor.replace(Kind.JOB, NAMESPACE, {"metadata": {"name": "j"}}, status=True)
        with pytest.raises(Forbidden, match="does not allow list on nodes"):
            await poor.list(Kind.NODE)


async def test_documents_outside_the_kinds_can_be_fetched(admin: KubeCluster) -> None:
    keys = await admin.fetch("/openid/v1/jwks")
    assert keys["keys"][0]["kty"] == "RSA"
    assert (await admin.fetch("/.well-known/openid-configuration"))["issuer"].startswith("https://")
    crd = await admin.fetch("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingjobs.rerail.dev")
    assert crd["metadata"]["annotations"]["rerail.dev/schema-hash"]


async def test_a_full_quota_may_pass_later(rig: ControlPlane, admin: KubeCluster) -> None:
    namespace(rig, "full")
    rig.kubectl("create", "quota", "q", "-n", "full", "--hard=pods=1")
    rig.wait(
        "the quota is counted",
        lambda: rig.get("resourcequota", "q", "-n", "full").get("status", {}).get("used"),
    )
    await admin.create(Kind.POD, "full", pod(unique("p")))
    with pytest.raises(Rejected, match="exceeded quota") as refused:
        await admin.create(Kind.POD, "full", pod(unique("p")), dry_run=True)
    assert refused.value.retriable and not isinstance(refused.value, Forbidden)


async def test_pod_security_is_a_refusal_with_the_servers_words(
    rig: ControlPlane, admin: KubeCluster
) -> None:
    namespace(rig, "strict", enforce="restricted")
    with pytest.raises(Rejected, match="violates PodSecurity") as refused:
        await admin.create(Kind.POD, "strict", pod(unique("p")), dry_run=True)
    assert not refused.value.retriable and not isinstance(refused.value, Forbidden)


async def test_a_hundred_pods_by_a_throttled_account_arrive_once_each(
    rig: ControlPlane, admin: KubeCluster
) -> None:
    uid = "1" * 32
    labels = [pod_labels("many", uid, node_rank=rank, birth_round=1, slot=rank) for rank in range(100)]
    names = [unique("many") for _ in range(100)]

    async def create(name: str, rank: int) -> None:
        body = pod(name, "no-such-node", labels[rank])
        while True:
            try:
                await admin.create(Kind.POD, NAMESPACE, body)
            except Unavailable as error:
                await asyncio.sleep(error.retry_after or 0.1)
            except AlreadyExists:
                return

    rank = iter(range(100))
    async with asyncio.timeout(60):
        await asyncio.gather(*(create(name, next(rank)) for name in names))
    there = await admin.list(Kind.POD, labels=f"rerail.dev/job-uid={uid}")
    assert sorted(entry["metadata"]["name"] for entry in there.items) == sorted(names)
    for number in range(16):
        await admin.delete_collection(
            Kind.POD, NAMESPACE, {"rerail.dev/job-uid": uid, "rerail.dev/bucket": str(number)}
        )
    assert not (await admin.list(Kind.POD, labels=f"rerail.dev/job-uid={uid}")).items


async def test_a_fleet_survives_the_api_server_and_misses_nothing(
    rig: ControlPlane, admin: KubeCluster
) -> None:
    fleet = Fleet(admin, lambda _key: None, lambda: None)
    await fleet.start()
    try:
        async with asyncio.timeout(20):
            await fleet.wait_synced()
        made = await admin.create(Kind.JOB, NAMESPACE, job(unique("j")))
        meta = made["metadata"]
        names = [unique("p") for _ in range(3)]
        for rank, name in enumerate(names):
            labels = pod_labels(meta["name"], meta["uid"], node_rank=rank, birth_round=1, slot=rank)
            await admin.create(Kind.POD, NAMESPACE, pod(name, "no-such-node", labels))

        async def seen(wanted: set[str]) -> bool:
            return {entry.name for entry in fleet.pods(meta["uid"])} == wanted

        await until("all three are seen", lambda: seen(set(names)))
        await asyncio.to_thread(rig.kill_apiserver)
        with pytest.raises(Unavailable, match="no answer"):
            await admin.get(Kind.POD, NAMESPACE, names[0])
        assert await seen(set(names)), "what was known stays known while the API server is away"
        await asyncio.to_thread(rig.start_apiserver)
        await admin.delete(Kind.POD, NAMESPACE, names[1])
        await until("the deletion is seen", lambda: seen({names[0], names[2]}), seconds=30.0)
    finally:
        await fleet.stop()

"""A real API server and kube-scheduler take the manifests as they are meant: strict, restricted, pinned."""

from collections.abc import Iterator
from typing import Any

import pytest

from rerail_operator.core.manifests import (
    Endpoint,
    PodSpecInput,
    agent_config_map,
    controller_revision,
    frozen_template,
    pod_manifest,
)
from rerail_operator.core.names import pod_name, template_hash
from rerail_operator.core.placement import gang_request, place_gang
from rerail_operator.core.plan import CreatePod
from rerail_operator.core.world import Nodes, Placement, Refusal
from rerail_operator.shell.observe import observe_node
from tests.cluster.rig import ApiError, ControlPlane

from .ground import GPU, RACK, ZONE, a_job, a_template

pytestmark = pytest.mark.controlplane

STRICT = "fieldValidation=Strict"
PODS = "/api/v1/namespaces/team/pods"
RESTRICTED = {
    "securityContext": {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
FAST_ZONE = {"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["b"]}]}
AFFINITY = {
    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [FAST_ZONE]}}
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with ControlPlane() as cluster:
        cluster.kubectl("create", "namespace", "team")
        cluster.kubectl("label", "namespace", "team", "pod-security.kubernetes.io/enforce=restricted")
        cluster.kwok(4, labels=lambda i: {ZONE: "ab"[i // 2], RACK: f"r{i}"})
        cluster.wait("the default service account", lambda: _has_account(cluster), 30)
        yield cluster


def _has_account(cluster: ControlPlane) -> bool:
    try:
        cluster.api.get("/api/v1/namespaces/team/serviceaccounts/default")
    except ApiError:
        return False
    return True


def restricted(gpus: int = 8, **spec: Any) -> dict[str, Any]:
    template = a_template(gpus, **{**RESTRICTED, **spec})
    template["spec"]["containers"][0]["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    return template


def pod(template: dict[str, Any], node: str, rank: int = 0, round_: int = 1) -> dict[str, Any]:
    job = a_job(template)
    name = pod_name(job.metadata.name, job.metadata.uid, round_, rank)
    create = CreatePod(name, node, rank, rank, round_)
    return pod_manifest(
        job, template, PodSpecInput(create, 8, "hash", "config", Endpoint("c.svc:7400", True, "c"))
    )


def snapshot(cluster: ControlPlane) -> Nodes:
    items = cluster.api.get("/api/v1/nodes")["items"]
    return Nodes({node.name: node for item in items if (node := observe_node(item)) is not None})


def test_strict_validation_and_pod_security_restricted_take_the_pod(cluster: ControlPlane) -> None:
    stored = cluster.api.post(f"{PODS}?dryRun=All&{STRICT}", pod(restricted(), "kwok-0000", round_=9))
    tolerations = {t["key"]: t.get("tolerationSeconds") for t in stored["spec"]["tolerations"]}
    assert tolerations["node.kubernetes.io/not-ready"] is None
    assert tolerations["node.kubernetes.io/unreachable"] is None


def test_a_typo_in_the_template_is_the_users_to_read(cluster: ControlPlane) -> None:
    template = restricted()
    template["spec"]["containers"][0]["resources"] = {"limit": {GPU: 8}}
    with pytest.raises(ApiError, match=r"unknown field .*resources\.limit"):
        cluster.api.post(f"{PODS}?dryRun=All&{STRICT}", pod(template, "kwok-0000", round_=9))


def test_agent_and_frozen_template_are_stored_and_come_back(cluster: ControlPlane) -> None:
    template = restricted(nodeSelector={"a": "b"})
    job = a_job(template)
    config = agent_config_map(job, bytes(range(256)) * 200, "CA")
    stored = cluster.api.post(f"/api/v1/namespaces/team/configmaps?{STRICT}&dryRun=All", config)
    assert (stored["immutable"], stored["binaryData"]) == (True, config["binaryData"])
    revision = controller_revision(job, template, template_hash(template))
    kept = cluster.api.post(
        f"/apis/apps/v1/namespaces/team/controllerrevisions?{STRICT}&dryRun=All", revision
    )
    assert frozen_template(kept) == template


def test_kube_scheduler_binds_the_gang_where_it_was_planned(cluster: ControlPlane) -> None:
    template = restricted(affinity=AFFINITY)
    offer = place_gang(gang_request(template, 2), snapshot(cluster))
    assert isinstance(offer, Placement)
    assert list(offer.nodes.values()) == ["kwok-0002", "kwok-0003"], "zone b"
    for rank, node in offer.nodes.items():
        cluster.api.post(f"{PODS}?{STRICT}", pod(template, node, rank))
    bound: dict[int, str] = {}

    def all_run() -> bool:
        for item in cluster.api.get(PODS)["items"]:
            if item["status"].get("phase") == "Running":
                bound[int(item["metadata"]["labels"]["rerail.dev/node-rank"])] = item["spec"]["nodeName"]
        return len(bound) == 2

    cluster.wait("both pods run", all_run, 60)
    assert bound == offer.nodes
    refusal = place_gang(gang_request(template, 3), snapshot(cluster))
    assert isinstance(refusal, Refusal)
    assert refusal.message == (
        "needs 3 nodes with 8 free nvidia.com/gpu; only 2 could ever hold such a pod; "
        "2 do not match nodeSelector or affinity: kwok-0000, kwok-0001"
    )

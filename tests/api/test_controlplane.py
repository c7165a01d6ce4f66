"""A real API server takes the CRD, refuses every bad example in the same words and fills in the same defaults."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rerail_api.contract import API_VERSION, PLURAL
from rerail_api.crd import CRD_NAME, crd_yaml
from rerail_api.v1alpha1 import parse_job
from tests.api.examples import BadExample, a_job, bad_examples, shipped_jobs
from tests.cluster.rig import ApiClient, ApiError, CommandFailed, ControlPlane, until

pytestmark = pytest.mark.controlplane
JOBS = f"/apis/{API_VERSION}/namespaces/default/{PLURAL}"
STRICT = "fieldValidation=Strict"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with ControlPlane() as cluster:
        cluster.kubectl("apply", "-f", "-", stdin=crd_yaml())
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD_NAME}", "--timeout=60s")
        until(lambda: _served(cluster.api), 60.0, "TrainingJobs are served")
        yield cluster


def _served(api: ApiClient) -> bool:
    try:
        api.get(JOBS)
    except ApiError:
        return False
    return True


@pytest.fixture
def api(cluster: ControlPlane) -> Iterator[ApiClient]:
    yield cluster.api
    cluster.api.delete(JOBS)


def store(api: ApiClient, manifest: dict[str, Any]) -> dict[str, Any]:
    """Create a job with the status it has."""
    stored = api.post(f"{JOBS}?{STRICT}", {k: v for k, v in manifest.items() if k != "status"})
    if "status" in manifest:
        stored = write_status(api, stored, manifest["status"])
    return stored


def write_status(api: ApiClient, stored: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    path = f"{JOBS}/{stored['metadata']['name']}/status?{STRICT}"
    return api.request("PUT", path, stored | {"status": status})


def attempt(api: ApiClient, example: BadExample) -> None:
    """Do what the example shows; the server is expected to refuse."""
    if example.concerns_status:
        stored = store(api, example.before or {k: v for k, v in example.manifest.items() if k != "status"})
        write_status(api, stored, example.manifest["status"])
    elif example.before is not None:
        stored = store(api, example.before)
        path = f"{JOBS}/{stored['metadata']['name']}?{STRICT}"
        api.request("PUT", path, stored | {"spec": example.manifest["spec"]})
    else:
        store(api, example.manifest)


@pytest.mark.parametrize("example", bad_examples(), ids=lambda example: example.name)
def test_the_server_refuses_it_in_the_same_words(api: ApiClient, example: BadExample) -> None:
    with pytest.raises(ApiError) as refused:
        attempt(api, example)
    answer = json.loads(refused.value.body)
    if not example.rule:
        assert example.server in answer["message"]
        return
    causes = {
        (cause["field"], cause["message"].removeprefix("Invalid value: "))
        for cause in answer["details"]["causes"]
    }
    assert causes == {(example.path, example.message)}


def test_the_server_s_defaults_are_the_model_s(api: ApiClient) -> None:
    stored = store(api, a_job())
    assert parse_job(stored).spec.to_json() == stored["spec"]
    assert stored["spec"] == parse_job(a_job()).spec.to_json()
    written = write_status(api, stored, {"round": 1})
    assert parse_job(written).status.to_json() == written["status"]


def test_the_server_takes_the_shipped_examples(api: ApiClient) -> None:
    assert shipped_jobs()
    for manifest in shipped_jobs().values():
        metadata = manifest["metadata"] | {"namespace": "default"}
        parse_job(store(api, manifest | {"metadata": metadata}))


@pytest.mark.parametrize(
    ("before", "after"),
    [(True, True), (True, False), (False, True)],
    ids=["while suspended", "in the write that resumes", "in the write that suspends"],
)
def test_a_suspended_job_may_change_its_shape(api: ApiClient, before: bool, after: bool) -> None:
    stored = store(api, a_job(suspend=before))
    spec = a_job(suspend=after, numNodes=4, numProcPerNode=8)["spec"]
    spec["template"]["spec"]["containers"][0]["command"] = ["python", "other.py"]
    changed = api.request("PUT", f"{JOBS}/good", stored | {"spec": spec})
    assert changed["spec"]["numNodes"] == 4
    assert changed["metadata"]["generation"] == stored["metadata"]["generation"] + 1


def test_a_finished_job_keeps_its_end_while_counts_go_on(api: ApiClient) -> None:
    end = {
        "type": "Complete",
        "status": "True",
        "reason": "Done",
        "lastTransitionTime": "2026-11-23T10:00:00Z",
    }
    status = {"round": 3, "completionTime": "2026-11-23T10:00:00Z", "conditions": [end]}
    stored = store(api, a_job() | {"status": status})
    later = write_status(api, stored, status | {"phase": "Complete", "round": 3})
    assert later["metadata"]["generation"] == stored["metadata"]["generation"]
    assert parse_job(later).status.finished


def test_a_template_passes_through_untouched(api: ApiClient) -> None:
    job = a_job()
    pod = job["spec"]["template"]["spec"]
    pod |= {
        "hostIPC": True,
        "tolerations": [{"operator": "Exists"}],
        "volumes": [{"name": "d", "emptyDir": {}}],
    }
    pod["containers"][0] |= {
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    }
    assert store(api, job)["spec"]["template"] == job["spec"]["template"]


def test_people_see_the_columns(cluster: ControlPlane, api: ApiClient) -> None:
    stored = store(api, a_job())
    status = {"phase": "Running", "reason": "AllRanksRunning", "nodes": {"summary": "4/4"}, "round": 2}
    status |= {"restarts": {"total": 1}, "progress": {"step": 1200}, "lastCheckpoint": {"step": 1150}}
    write_status(api, stored, status | {"ledger": {"ettr": 0.97}})
    head, row = cluster.kubectl("get", "tj", "good").splitlines()
    assert head.split() == ["NAME", "PHASE", "REASON", "READY", "RESTARTS", "STEP", "AGE"]
    assert row.split()[:-1] == ["good", "Running", "AllRanksRunning", "4/4", "1", "1200"]
    head, row = cluster.kubectl("get", "tj", "good", "-o", "wide").splitlines()
    assert head.split()[6:9] == ["ROUND", "CHECKPOINT", "ETTR"]
    assert row.split()[6:9] == ["2", "1150", "0.97"]
    found = cluster.kubectl("get", "tj", "--field-selector", "status.phase=Running", "-o", "name")
    assert found.strip() == "trainingjob.rerail.dev/good"


def test_kubectl_explains_every_field(cluster: ControlPlane) -> None:
    # The OpenAPI document follows the CRD a moment later.
    shown = until(lambda: _explain(cluster, "tj.spec.numProcPerNode"), 60.0, "kubectl explain")
    assert "Ranks per node, 1 to 64, or auto" in " ".join(shown.split())


def _explain(cluster: ControlPlane, field: str) -> str:
    try:
        return cluster.kubectl("explain", field)
    except CommandFailed:
        return ""


def test_the_crd_can_be_applied_again(cluster: ControlPlane) -> None:
    assert "unchanged" in cluster.kubectl("apply", "-f", "-", stdin=crd_yaml())

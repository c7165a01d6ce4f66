"""What Rerail sets on a pod, and that everything else is left alone."""

import base64
import copy
from typing import Any

import pytest

from rerail_api.contract import RESERVED_ENV, Env
from rerail_operator.core.manifests import (
    Endpoint,
    PodSpecInput,
    agent_config_map,
    controller_revision,
    frozen_template,
    pinned_affinity,
    pod_manifest,
)
from rerail_operator.core.names import template_hash
from rerail_operator.core.plan import CreatePod

from .ground import a_job, a_template

CREATE = CreatePod(name="gpt-c0ffe-2-1", node="node-7", node_rank=1, slot=1, round=2)
GIVEN = PodSpecInput(
    CREATE, 8, "abc", "gpt-c0ffe-agent-1", Endpoint("rerail.rerail-system.svc:7400", True, "rerail")
)


def made(template: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    template = template or a_template()
    before = copy.deepcopy(template)
    pod = pod_manifest(a_job(template, **spec), template, GIVEN)
    assert template == before, "the user's template was changed"
    return pod


def trainer_of(pod: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in pod["spec"]["containers"] if c["name"] == "trainer")


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in trainer_of(pod)["env"]}


def test_the_pod_belongs_to_its_job_and_says_its_place() -> None:
    meta = made()["metadata"]
    assert (meta["name"], meta["namespace"]) == ("gpt-c0ffe-2-1", "team")
    assert meta["labels"] == {
        "app.kubernetes.io/managed-by": "rerail",
        "rerail.dev/job-name": "gpt",
        "rerail.dev/job-uid": "c0ffee12-0000-4000-8000-000000000000",
        "rerail.dev/node-rank": "1",
        "rerail.dev/since-round": "2",
        "rerail.dev/birth-round": "2",
        "rerail.dev/slot": "1",
        "rerail.dev/bucket": "1",
    }
    assert meta["annotations"] == {"rerail.dev/template-hash": "abc"}
    (owner,) = meta["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"], owner["blockOwnerDeletion"]) == (
        "TrainingJob",
        "gpt",
        True,
        False,
    )


def test_our_labels_win_over_the_templates_and_the_others_stay() -> None:
    template = {
        **a_template(),
        "metadata": {"labels": {"team": "red", "rerail.dev/slot": "9"}, "annotations": {"a": "b"}},
    }
    meta = made(template)["metadata"]
    assert (meta["labels"]["team"], meta["labels"]["rerail.dev/slot"], meta["annotations"]["a"]) == (
        "red",
        "1",
        "b",
    )


def test_the_agent_stands_in_front_of_the_command_and_the_arguments_stay() -> None:
    template = a_template()
    template["spec"]["containers"][0]["args"] = ["--preset", "tiny"]
    trainer = trainer_of(made(template))
    assert trainer["command"] == [
        "python3",
        "/var/run/rerail/agent/agent.pyz",
        "--",
        "python",
        "-m",
        "rerail_trainer",
    ]
    assert trainer["args"] == ["--preset", "tiny"]
    assert trainer["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_every_variable_of_the_agent_is_set_once_and_reserved() -> None:
    pod = made(checkpoint={"path": "/ckpt", "graceSeconds": 60, "resume": "Never"}, launcher="PerNode")
    names = [e["name"] for e in trainer_of(pod)["env"]]
    per_round = {
        Env.ROUND,
        Env.MIN_STEP,
        Env.PROGRESS,
        Env.ADVICE,
        Env.CHECKPOINT_SECONDS,
    }  # the agent's to set, anew in each round
    ours = {name for name in RESERVED_ENV if name.startswith("RERAIL_")}
    assert len(names) == len(set(names))
    assert set(names) == ours - per_round
    env = environment(pod)
    assert env["RERAIL_COORDINATOR"] == "rerail.rerail-system.svc:7400"
    assert env["RERAIL_COORDINATOR_TLS"] == "1"
    assert env["RERAIL_COORDINATOR_NAME"] == "rerail"
    assert env["RERAIL_NPROC"] == "8"
    assert env["RERAIL_LAUNCHER"] == "PerNode"
    assert env["RERAIL_GRACE_SECONDS"] == "60"
    assert env["RERAIL_JOB"] == "team/gpt"
    assert env["RERAIL_CHECKPOINT_DIR"] == "/ckpt"
    assert env["RERAIL_RESUME"] == "Never"
    assert env["RERAIL_POD_UID"] == {"fieldRef": {"fieldPath": "metadata.uid"}}
    assert env["RERAIL_POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert pod["spec"]["terminationGracePeriodSeconds"] == 80


def test_the_users_variables_come_after_ours_so_that_they_may_refer_to_them() -> None:
    template = a_template()
    template["spec"]["containers"][0]["env"] = [{"name": "WHO", "value": "$(RERAIL_POD)"}]
    names = [e["name"] for e in trainer_of(made(template))["env"]]
    assert names[-1] == "WHO"
    assert names.index("RERAIL_POD") < names.index("WHO")


def test_the_termination_log_is_the_containers_own() -> None:
    template = a_template()
    template["spec"]["containers"][0]["terminationMessagePath"] = "/tmp/last-words"
    assert environment(made(template))["RERAIL_TERMINATION_LOG"] == "/tmp/last-words"
    assert environment(made())["RERAIL_TERMINATION_LOG"] == "/dev/termination-log"


def test_agent_and_identity_are_mounted_read_only() -> None:
    pod = made()
    volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
    mounts = {m["name"]: m for m in trainer_of(pod)["volumeMounts"]}
    assert volumes["rerail-agent"]["configMap"] == {"name": "gpt-c0ffe-agent-1"}
    assert volumes["rerail-identity"]["projected"]["sources"] == [
        {"serviceAccountToken": {"audience": "rerail", "expirationSeconds": 3600, "path": "token"}}
    ]
    assert mounts["rerail-agent"] == {
        "name": "rerail-agent",
        "mountPath": "/var/run/rerail/agent",
        "readOnly": True,
    }
    assert mounts["rerail-identity"]["readOnly"] is True
    assert volumes["rerail-shm"]["emptyDir"] == {"medium": "Memory"}
    assert mounts["rerail-shm"] == {"name": "rerail-shm", "mountPath": "/dev/shm"}


@pytest.mark.parametrize("path", ["/dev/shm", "/dev/shm/"])
def test_a_shared_memory_that_the_user_mounts_is_the_users(path: str) -> None:
    template = a_template(volumes=[{"name": "mine", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}])
    template["spec"]["containers"][0]["volumeMounts"] = [{"name": "mine", "mountPath": path}]
    pod = made(template)
    assert [v["name"] for v in pod["spec"]["volumes"]] == ["mine", "rerail-agent", "rerail-identity"]
    assert [m["name"] for m in trainer_of(pod)["volumeMounts"]] == ["mine", "rerail-agent", "rerail-identity"]


def test_not_ready_and_unreachable_are_tolerated_without_limit_before_the_users_own() -> None:
    mine = {
        "key": "node.kubernetes.io/not-ready",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 30,
    }
    tolerations = made(a_template(tolerations=[mine]))["spec"]["tolerations"]
    assert [t["key"] for t in tolerations[:2]] == [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ]
    assert not any("tolerationSeconds" in t for t in tolerations[:2])
    assert tolerations[2:] == [mine]


PIN = {"key": "metadata.name", "operator": "In", "values": ["node-7"]}
FAST = {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["nvme"]}]}
BIG = {"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["8"]}]}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"

AFFINITIES: dict[str, tuple[Any, list[Any]]] = {
    "none: only the pin": (None, [{"matchFields": [PIN]}]),
    "each alternative is pinned": (
        {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [FAST, BIG]}}},
        [{**FAST, "matchFields": [PIN]}, {**BIG, "matchFields": [PIN]}],
    ),
    "a field of the user's stays beside the pin": (
        {
            "nodeAffinity": {
                REQUIRED: {
                    "nodeSelectorTerms": [{"matchFields": [{**PIN, "operator": "NotIn", "values": ["x"]}]}]
                }
            }
        },
        [{"matchFields": [{**PIN, "operator": "NotIn", "values": ["x"]}, PIN]}],
    ),
    "an empty term matches nothing and may not become a bare pin": (
        {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{}, FAST]}}},
        [{**FAST, "matchFields": [PIN]}],
    ),
}


@pytest.mark.parametrize(("affinity", "terms"), AFFINITIES.values(), ids=AFFINITIES)
def test_the_pin_goes_into_every_alternative(affinity: Any, terms: list[Any]) -> None:
    assert pinned_affinity(affinity, "node-7")["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] == terms


def test_preferred_and_pod_affinity_are_left_alone() -> None:
    affinity = {
        "podAntiAffinity": {"x": 1},
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}]},
    }
    pinned = pinned_affinity(affinity, "node-7")
    assert pinned["podAntiAffinity"] == {"x": 1}
    assert pinned["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] == [{"weight": 1}]


def test_everything_else_is_left_alone() -> None:
    sidecar = {"name": "logs", "image": "busybox"}
    template = a_template(
        nodeSelector={"pool": "a"},
        priorityClassName="high",
        hostNetwork=True,
        securityContext={"runAsNonRoot": True},
        initContainers=[{"name": "init", "image": "busybox"}],
        volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    )
    template["spec"]["containers"].append(sidecar)
    template["spec"]["containers"][0]["securityContext"] = {"allowPrivilegeEscalation": False}
    spec = made(template)["spec"]
    for untouched in (
        "nodeSelector",
        "priorityClassName",
        "hostNetwork",
        "securityContext",
        "initContainers",
    ):
        assert spec[untouched] == template["spec"][untouched]
    assert spec["containers"][1] == sidecar
    assert spec["containers"][0]["securityContext"] == {"allowPrivilegeEscalation": False}
    assert spec["volumes"][0]["name"] == "data"
    assert (spec["restartPolicy"], "nodeName" in spec, "schedulerName" in spec) == ("Never", False, False)


def test_pod_security_restricted_finds_nothing_of_ours_to_refuse() -> None:
    pod = made()
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    assert {key for v in pod["spec"]["volumes"] for key in v if key != "name"} <= allowed
    refused = {"hostNetwork", "hostPID", "hostIPC", "securityContext"}
    assert not refused & pod["spec"].keys()
    assert not {"securityContext", "ports"} & trainer_of(pod).keys()


def test_the_agents_config_map_is_immutable_and_named_by_its_content() -> None:
    job = a_job()
    one, other = agent_config_map(job, b"agent", "CA"), agent_config_map(job, b"agent", "CB")
    assert one["immutable"] is True
    assert base64.b64decode(one["binaryData"]["agent.pyz"]) == b"agent"
    assert one["data"] == {"ca.crt": "CA"}
    assert one == agent_config_map(job, b"agent", "CA")
    assert one["metadata"]["name"] != other["metadata"]["name"]
    assert one["metadata"]["ownerReferences"][0]["uid"] == job.metadata.uid


def test_without_tls_there_is_no_ca() -> None:
    assert agent_config_map(a_job(), b"agent")["data"] == {}


def test_a_frozen_template_comes_back_word_for_word() -> None:
    job, template = a_job(), a_template(nodeSelector={"a": "b"})
    revision = controller_revision(job, template, template_hash(template))
    assert frozen_template(revision) == template
    assert revision["metadata"]["name"] == f"gpt-c0ffe-{template_hash(template)}"
    assert revision["revision"] == 3

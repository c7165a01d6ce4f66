"""The chart under the real helm and a real API server: refusals, defaults, every option, and the operator's rights."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerail_api.crd import CRD_NAME
from rerail_operator.shell.cluster import Kind
from rerail_operator.shell.kube.resources import RESOURCES
from rerail_operator.shell.settings import read_settings
from rerail_operator.shell.strikes.record import NAME as STRIKES
from tests.cluster.rig import ControlPlane
from tests.cluster.rig.binaries import ensure

from .checkout import CHART
from .rights import OWN_CONFIG_MAP, granted

pytestmark = pytest.mark.controlplane

IMAGE = "image.repository=registry.example/rerail-operator"
NAMESPACE = "rerail-system"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:rerail"


@pytest.fixture(scope="module")
def helm() -> Path:
    return ensure(["helm"])["helm"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with ControlPlane() as cluster:
        cluster.kubectl("create", "namespace", NAMESPACE)
        cluster.helm("install", "rerail", str(CHART), "-n", NAMESPACE, "--set", IMAGE)
        yield cluster


def helm_says(helm: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([helm, *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def rendered(helm: Path, *settings: str, release: str = "rerail") -> list[dict[str, Any]]:
    words = [
        word
        for setting in (IMAGE, *settings)
        for word in ("--set-json" if '={"' in setting or "=[" in setting else "--set", setting)
    ]
    code, out, err = helm_says(helm, "template", release, str(CHART), "-n", NAMESPACE, *words)
    assert code == 0, err
    return [document for document in yaml.safe_load_all(out) if document]


def one(objects: list[dict[str, Any]], kind: str, name: str = "rerail") -> dict[str, Any]:
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)
    return found


def test_the_chart_passes_helms_own_linter(helm: Path) -> None:
    code, out, err = helm_says(helm, "lint", "--strict", str(CHART), "--set", IMAGE)
    assert code == 0, out + err
    assert "[WARNING]" not in out


def test_without_an_image_the_chart_says_what_to_do(helm: Path) -> None:
    code, _, err = helm_says(helm, "template", "rerail", str(CHART))
    assert code != 0
    assert (
        "set image.repository to the operator's image: `make images REGISTRY=...` builds and pushes it and prints the values"
        in err
    )


BAD_VALUES = {
    "an unknown value": ("replica=2", "replica"),
    "an unknown value far down": ("metrics.service.enable=true", "enable"),
    "no replica": ("replicas=0", "replicas"),
    "a privileged port": ("coordinator.port=443", "port"),
    "a level that does not exist": ("logging.level=verbose", "level"),
    "a resource without a vendor": ("accelerators={gpu}", "accelerators"),
    "a condition that is true on good nodes": ("badNodeConditions={Ready}", "badNodeConditions"),
    "a digest that is none": ("image.digest=latest", "digest"),
    "a switch that is a word": ("rbac.aggregateToEdit=perhaps", "aggregateToEdit"),
}


@pytest.mark.parametrize(("setting", "named"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_value_is_refused_by_name(helm: Path, setting: str, named: str) -> None:
    code, _, err = helm_says(helm, "template", "rerail", str(CHART), "--set", IMAGE, "--set", setting)
    assert code != 0
    assert "values don't meet the specifications of the schema" in err
    assert named in err


def test_defaults_are_two_replicas_that_prefer_to_stand_apart(helm: Path) -> None:
    objects = rendered(helm)
    spec = one(objects, "Deployment")["spec"]
    assert spec["replicas"] == 2
    (preferred,) = spec["template"]["spec"]["affinity"]["podAntiAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    assert preferred["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert one(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert {o["kind"] for o in objects}.isdisjoint(
        {"NetworkPolicy", "FlowSchema", "PriorityLevelConfiguration"}
    )


def test_the_operator_runs_restricted(helm: Path) -> None:
    pod = one(rendered(helm), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_every_selector_finds_the_operators_pods_and_every_port_is_one_of_theirs(helm: Path) -> None:
    objects = rendered(helm, "networkPolicy.enabled=true")
    template = one(objects, "Deployment")["spec"]["template"]
    labels, ports = (
        template["metadata"]["labels"],
        {p["name"] for p in template["spec"]["containers"][0]["ports"]},
    )
    selectors = [o["spec"]["selector"] for o in objects if o["kind"] == "Service"]
    selectors += [
        o["spec"]["selector"]["matchLabels"]
        for o in objects
        if o["kind"] in ("PodDisruptionBudget", "Deployment")
    ]
    selectors.append(one(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    assert [s for s in selectors if not s.items() <= labels.items()] == []
    targets = {p["targetPort"] for o in objects if o["kind"] == "Service" for p in o["spec"]["ports"]}
    targets |= {p["port"] for rule in one(objects, "NetworkPolicy")["spec"]["ingress"] for p in rule["ports"]}
    assert targets <= ports


def test_agents_find_the_coordinator_at_the_address_they_are_given(helm: Path) -> None:
    objects = rendered(helm, "coordinator.port=7411", release="blue")
    container = one(objects, "Deployment", "blue-rerail")["spec"]["template"]["spec"]["containers"][0]
    environment = {e["name"]: e.get("value") for e in container["env"]}
    assert environment["RERAIL_COORDINATOR_SERVICE"] == f"blue-rerail-coordinator.{NAMESPACE}.svc:7411"
    service = one(objects, "Service", "blue-rerail-coordinator")
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert service["spec"]["ports"][0]["port"] == 7411


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("logging.level=debug", "logging.format=text", "workers=64", "accelerators={amd.com/gpu}"),
        ("badNodeConditions={GpuUnhealthy,KernelDeadlock}",),
    ],
)
def test_the_operator_can_read_what_the_deployment_sets(helm: Path, settings: tuple[str, ...]) -> None:
    fields = {"metadata.namespace": NAMESPACE, "metadata.name": "rerail-5d8-x2x", "status.podIP": "10.1.2.3"}
    container = one(rendered(helm, *settings), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    environment = {
        e["name"]: e["value"] if "value" in e else fields[e["valueFrom"]["fieldRef"]["fieldPath"]]
        for e in container["env"]
    }
    read = read_settings(environment)
    assert read.unknown == ()
    assert str(read.coordinator_service) == f"rerail-coordinator.{NAMESPACE}.svc:7400"
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert ports == {
        "coordinator": read.coordinator_port,
        "probes": read.probe_port,
        "metrics": read.metrics_port,
    }


def test_a_digest_wins_over_a_tag(helm: Path) -> None:
    digest = f"sha256:{'a' * 64}"
    objects = rendered(helm, f"image.digest={digest}", "image.tag=1.2.3")
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"].endswith(
        f"@{digest}"
    )


@pytest.mark.parametrize(
    ("settings", "viewer", "editor"),
    [((), True, False), (("rbac.aggregateToView=false", "rbac.aggregateToEdit=true"), False, True)],
    ids=["defaults", "the other way round"],
)
def test_roles_for_people(helm: Path, settings: tuple[str, ...], viewer: bool, editor: bool) -> None:
    objects = rendered(helm, *settings)
    roles = {name: one(objects, "ClusterRole", f"rerail-{name}") for name in ("viewer", "editor")}
    assert ("rbac.authorization.k8s.io/aggregate-to-view" in roles["viewer"]["metadata"]["labels"]) is viewer
    assert ("rbac.authorization.k8s.io/aggregate-to-edit" in roles["editor"]["metadata"]["labels"]) is editor
    for role in roles.values():
        assert [rule["resources"] for rule in role["rules"]] == [["trainingjobs"]], "never the status"


OPTIONS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "everything on": (
        "networkPolicy.enabled=true",
        "priorityAndFairness.enabled=true",
        "rbac.aggregateToEdit=true",
        "podDisruptionBudget.maxUnavailable=50%",
        "priorityClassName=system-cluster-critical",
        'imagePullSecrets=[{"name": "pull"}]',
        'podLabels={"team": "ml"}',
        'podAnnotations={"a": "b"}',
        'nodeSelector={"pool": "cpu"}',
        'tolerations=[{"key": "x", "operator": "Exists"}]',
        'affinity={"nodeAffinity": {}}',
        'extraEnv=[{"name": "HTTPS_PROXY", "value": "http://proxy"}]',
        'metrics.service.annotations={"prometheus.io/scrape": "true"}',
        'serviceAccount.annotations={"a": "b"}',
    ),
    "everything off": (
        "metrics.service.enabled=false",
        "rbac.create=false",
        "podDisruptionBudget.enabled=false",
        "replicas=1",
        "serviceAccount.create=false",
        "serviceAccount.name=default",
    ),
}


@pytest.mark.parametrize("settings", OPTIONS.values(), ids=OPTIONS)
def test_a_real_api_server_takes_every_object_without_a_warning(
    cluster: ControlPlane, helm: Path, settings: tuple[str, ...]
) -> None:
    objects = rendered(helm, *settings, release="other-rerail")
    text = yaml.safe_dump_all(objects)
    answer = cluster.kubectl(
        "apply",
        "--dry-run=server",
        "--validate=strict",
        "--warnings-as-errors",
        "-n",
        NAMESPACE,
        "-f",
        "-",
        stdin=text,
    )
    assert len(answer.splitlines()) == len(objects)


def test_a_namespace_with_pod_security_restricted_takes_the_operator(
    cluster: ControlPlane, helm: Path
) -> None:
    cluster.kubectl("create", "namespace", "strict")
    cluster.kubectl("label", "namespace", "strict", "pod-security.kubernetes.io/enforce=restricted")
    template = one(rendered(helm), "Deployment")["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": template["spec"]}
    pod["spec"] = {**pod["spec"], "serviceAccountName": "default"}
    assert "created" in cluster.kubectl(
        "create", "--dry-run=server", "-n", "strict", "-f", "-", stdin=yaml.safe_dump(pod)
    )


def test_installing_brings_the_crd_and_says_how_to_upgrade_it(cluster: ControlPlane) -> None:
    assert cluster.get("crd", CRD_NAME)["metadata"]["name"] == CRD_NAME
    notes = cluster.helm("get", "notes", "rerail", "-n", NAMESPACE)
    assert "helm show crds CHART | kubectl apply --server-side --force-conflicts -f -" in notes
    assert "kubectl -n rerail-system rollout status deployment/rerail" in notes


def can(cluster: ControlPlane, **attributes: str) -> bool:
    """Whether the API server lets the operator's account do this."""
    part = "nonResourceAttributes" if "path" in attributes else "resourceAttributes"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{NAMESPACE}", "system:authenticated"]
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": ACCOUNT, "groups": groups, part: attributes},
    }
    allowed: bool = cluster.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"][
        "allowed"
    ]
    return allowed


def questions() -> Iterator[tuple[dict[str, str], bool]]:
    """Every verb on every resource of ours, in another namespace and at home, and whether it is granted."""
    cluster, namespace = granted()
    for kind, resource in RESOURCES.items():
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"):
            right = (resource.group, resource.plural, verb)
            about = {"verb": verb, "group": resource.group, "resource": resource.plural}
            yield about, right in cluster
            if kind is not Kind.NODE:
                yield about | {"namespace": "default"}, right in cluster
                home, allowed = about | {"namespace": NAMESPACE}, right in cluster | namespace
                if right == OWN_CONFIG_MAP:  # one of that name only
                    yield home | {"name": STRIKES}, allowed
                yield home, allowed and right != OWN_CONFIG_MAP


def test_the_installed_account_may_do_what_the_rules_say_and_nothing_else(cluster: ControlPlane) -> None:
    assert [about for about, allowed in questions() if can(cluster, **about) is not allowed] == []
    status = {
        "group": "rerail.dev",
        "resource": "trainingjobs",
        "subresource": "status",
        "namespace": "default",
    }
    assert can(cluster, verb="update", **status)
    assert not can(cluster, verb="patch", **status)
    crd = {"group": "apiextensions.k8s.io", "resource": "customresourcedefinitions"}
    assert can(cluster, verb="get", name=CRD_NAME, **crd)
    assert not can(cluster, verb="get", name="others.example.com", **crd)
    assert can(cluster, verb="get", path="/openid/v1/jwks")
    assert not can(cluster, verb="get", path="/logs")

"""Bad input on a real API server: the user reads what is wrong, in the server's own words, and nothing is claimed."""

import copy

import pytest

from tests.cluster.rig import CommandFailed

from .jobs import Json, condition, job, trainer
from .yard import Yard

pytestmark = pytest.mark.controlplane

HELD_IN_NO_TIME = 30.0


def refused(yard: Yard, name: str, reason: str, namespace: str = "default") -> str:
    """The message of a job that is held for this reason; condition and event say the same."""
    seen = yard.until_job(name, namespace=namespace, phase="Queued", reason=reason)
    admitted = condition(seen, "Admitted")
    assert (admitted["status"], admitted["reason"], admitted["message"]) == ("False", reason, seen["message"])
    yard.until("an event tells it", lambda: any(reason in one for one in yard.events(name, namespace)))
    assert yard.pods(name, namespace) == {}
    return str(seen["message"])


def test_a_typo_in_the_template_is_told_and_keeps_nobody_waiting(yard: Yard) -> None:
    broken = copy.deepcopy(job("typo", nodes=4))
    trainer(broken)["resourcez"] = {"limits": {"cpu": 1}}
    yard.submit(broken)
    assert "resourcez" in refused(yard, "typo", "TemplateRejected")
    yard.submit(job("sound", nodes=4))
    yard.until_job("sound", HELD_IN_NO_TIME, phase="Running")
    # The mended manifest is tried anew; here there is no room for it.
    yard.cluster.api.delete("/apis/rerail.dev/v1alpha1/namespaces/default/trainingjobs/typo")
    yard.submit(job("typo", nodes=4))
    yard.until_job("typo", phase="Queued", reason="InsufficientNodes")


def test_a_quota_is_told_and_the_job_starts_once_it_is_raised(yard: Yard) -> None:
    yard.namespace("tight")
    quota: Json = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus", "namespace": "tight"},
        "spec": {"hard": {"requests.nvidia.com/gpu": "4"}},
    }
    yard.cluster.apply(quota)
    yard.until("the quota counts", lambda: yard.cluster.get("quota", "gpus", "-n", "tight").get("status"))
    yard.submit(job("large", nodes=2, namespace="tight"))
    message = refused(yard, "large", "QuotaExceeded", "tight")
    assert "exceeded quota: gpus" in message
    yard.submit(job("meanwhile", nodes=4))
    yard.until_job("meanwhile", HELD_IN_NO_TIME, phase="Running")
    yard.agents.done(list(yard.pods("meanwhile")))
    yard.until_job("meanwhile", phase="Complete")
    yard.cluster.api.delete("/api/v1/namespaces/tight/resourcequotas/gpus")
    yard.until_job("large", namespace="tight", phase="Running")


def test_pod_security_is_told_in_the_servers_words_and_a_fitting_template_runs(yard: Yard) -> None:
    yard.namespace("strict", {"pod-security.kubernetes.io/enforce": "restricted"})
    yard.submit(job("loose", nodes=1, namespace="strict"))
    message = refused(yard, "loose", "TemplateRejected", "strict")
    assert "violates PodSecurity" in message and "runAsNonRoot" in message
    fitting = job("fitting", nodes=1, namespace="strict")
    fitting["spec"]["template"]["spec"]["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    trainer(fitting)["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    yard.submit(fitting)
    yard.until_job("fitting", namespace="strict", phase="Running")


def test_manifests_that_cannot_be_right_are_refused_by_kubectl_apply(yard: Yard) -> None:
    nameless, unknown, impossible = (job(name) for name in ("nameless", "unknown", "impossible"))
    trainer(nameless).pop("command")
    unknown["spec"]["numNode"] = 2
    impossible["spec"]["numNodes"] = 0
    for manifest, words in ((nameless, "command"), (unknown, "numNode"), (impossible, "numNodes")):
        with pytest.raises(CommandFailed) as refusal:
            yard.cluster.apply(manifest)
        assert words in refusal.value.stderr


def test_a_gang_that_no_cluster_of_this_size_could_hold_is_told_so(yard: Yard) -> None:
    yard.submit(job("vast", nodes=5))
    seen = yard.until_job("vast", phase="Queued", reason="NeverFits")
    assert "5 nodes" in seen["message"] and "4" in seen["message"]

"""The operator's role holds what its code uses: nothing is missing, and nothing is there for nothing."""

import yaml

from rerail_operator.shell.kube.resources import CLUSTER_RIGHTS, OWN_NAMESPACE_RIGHTS
from rerail_operator.shell.strikes.record import NAME

from .checkout import CHART
from .rights import granted, used


def test_every_right_that_the_code_uses_is_granted() -> None:
    (everywhere, own), (cluster, namespace) = used(), granted()
    assert everywhere - cluster == set()
    assert own - namespace == set()


def test_no_right_is_granted_that_the_code_does_not_use() -> None:
    (everywhere, own), (cluster, namespace) = used(), granted()
    assert cluster - everywhere == set()
    assert namespace - own == set()


def test_the_adapters_own_table_says_the_same() -> None:
    cluster, namespace = granted()
    table = {(group, target, verb) for (group, target), verbs in CLUSTER_RIGHTS.items() for verb in verbs}
    assert table == {right for right in cluster if not right[1].startswith("/")}
    own = {(group, target, verb) for (group, target), verbs in OWN_NAMESPACE_RIGHTS.items() for verb in verbs}
    assert own == namespace


def test_no_rule_is_a_wildcard_and_secrets_stay_at_home() -> None:
    cluster, namespace = granted()
    assert [right for right in cluster | namespace if "*" in right] == []
    assert [right for right in cluster if right[1] in ("secrets", "leases", "*")] == []


def test_one_config_map_only_can_be_changed() -> None:
    rules = yaml.safe_load((CHART / "files" / "rbac-rules.yaml").read_text())
    (rule,) = (r for r in rules["namespace"] if "configmaps" in r["resources"])
    assert (rule["resourceNames"], rule["verbs"]) == ([NAME], ["update"])
    assert all("update" not in r["verbs"] for r in rules["cluster"] if "configmaps" in r.get("resources", ()))


def test_one_crd_only_can_be_read() -> None:
    rules = yaml.safe_load((CHART / "files" / "rbac-rules.yaml").read_text())
    (rule,) = (r for r in rules["cluster"] if "customresourcedefinitions" in r.get("resources", ()))
    assert rule["resourceNames"] == ["trainingjobs.rerail.dev"]

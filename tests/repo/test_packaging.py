"""Images, pins, values and settings agree with each other."""

import dataclasses
import json
import re
import tomllib
from typing import Any

import pytest
import yaml

from rerail_api.contract import LABEL_MANAGED, MANAGED_BY
from rerail_operator.shell.settings import DEFAULT_ACCELERATORS, PREFIX, Settings

from .checkout import CHART, ROOT

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Passed on to Kubernetes as they are, and checked there.
FREE = {"affinity", "global", "tolerations", "namespaceSelector", "podSelector", "ipBlock", "valueFrom"}


def objects(schema: dict[str, Any], name: str = "values") -> list[tuple[str, dict[str, Any]]]:
    found = [(name, schema)] if schema.get("type") == "object" else []
    for key, below in {**schema.get("properties", {}), **schema.get("definitions", {})}.items():
        found += objects(below, key)
    if isinstance(schema.get("items"), dict):
        found += objects(schema["items"], name)
    return found


def test_a_typo_in_the_values_is_refused_at_every_depth() -> None:
    open_ = [
        name for name, part in objects(SCHEMA) if "additionalProperties" not in part and name not in FREE
    ]
    assert open_ == []


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return resolve(SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]])
    return schema


def differences(values: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """Keys that values.yaml and the schema do not share."""
    schema = resolve(schema)
    if not isinstance(values, dict) or "properties" not in schema:
        return []
    known = set(schema["properties"]) - {"global"}
    here = [f"{path}{key}" for key in known ^ set(values)]
    return here + [
        d
        for key in known & set(values)
        for d in differences(values[key], schema["properties"][key], f"{path}{key}.")
    ]


def test_values_and_schema_name_the_same_keys() -> None:
    assert differences(VALUES, SCHEMA) == []


def test_every_value_is_used_by_a_template() -> None:
    templates = "".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))
    leaves = [
        f"{top}.{below}"
        for top, value in VALUES.items()
        if isinstance(value, dict) and value
        for below in value
    ]
    leaves += [top for top, value in VALUES.items() if not (isinstance(value, dict) and value)]
    unused = [
        leaf
        for leaf in leaves
        if f".Values.{leaf}" not in templates and f".Values.{leaf.split('.')[0]} " not in templates
    ]
    assert unused == []


def chart_environment() -> set[str]:
    return set(re.findall(r"name: (RERAIL_\w+)", (CHART / "templates" / "deployment.yaml").read_text()))


def test_the_deployment_sets_every_setting_of_the_operator_and_nothing_else() -> None:
    settings = {f"{PREFIX}{field.name.upper()}" for field in dataclasses.fields(Settings)} - {
        f"{PREFIX}UNKNOWN"
    }
    assert chart_environment() == settings


def test_chart_and_operator_know_the_same_accelerators() -> None:
    assert tuple(VALUES["accelerators"]) == DEFAULT_ACCELERATORS


def test_the_operators_own_pods_are_never_taken_for_workers() -> None:
    labels = (CHART / "templates" / "_helpers.tpl").read_text()
    assert f"{LABEL_MANAGED}: {{{{ .Release.Service }}}}" in labels
    assert MANAGED_BY != "Helm"


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~ ;]", text, maxsplit=1)[0].lower().replace("_", "-") for text in requirements}


@pytest.mark.parametrize("extra", ["operator", "trainer"])
def test_everything_that_an_image_needs_is_pinned_with_hashes(extra: str) -> None:
    pinned = (ROOT / "requirements" / f"{extra}.txt").read_text()
    wanted = names(PYPROJECT["project"]["dependencies"]) | names(
        PYPROJECT["project"]["optional-dependencies"][extra]
    )
    found = set(re.findall(r"^([a-z0-9.-]+)==", pinned, re.M))
    assert wanted - found == set()
    for block in re.split(r"\n(?=[a-z0-9])", pinned):
        assert "--hash=sha256:" in block, block[:80]
    assert "://" not in pinned


def test_images_run_as_nobody_special() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M)[1:]
    users = {stage.split()[2]: re.findall(r"^USER (\S+)", stage, re.M) for stage in stages}
    assert users == {"base": [], "operator": ["65532:65532"], "trainer": ["1000:1000"]}


def test_what_the_images_copy_reaches_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = set(re.findall(r"^COPY ([a-z]+)/", (ROOT / "Dockerfile").read_text(), re.M))
    assert {f"!{folder}/" for folder in copied} <= set(ignored)


def test_kind_mounts_the_examples_directory_into_all_nodes() -> None:
    cluster = yaml.safe_load((ROOT / "kind-config.yaml").read_text())
    assert [node["role"] for node in cluster["nodes"]] == ["control-plane", "worker", "worker"]
    job = yaml.safe_load((ROOT / "examples" / "01-recover" / "job.yaml").read_text())
    (path,) = {v["hostPath"]["path"] for v in job["spec"]["template"]["spec"]["volumes"] if "hostPath" in v}
    assert all(
        [mount["containerPath"] for mount in node["extraMounts"]] == [path] for node in cluster["nodes"]
    )

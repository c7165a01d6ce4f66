"""A template that cannot be read is a sentence, never a crash."""

import copy
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerail_operator.core.admission import Queued, plan_admissions
from rerail_operator.core.placement import gang_request
from rerail_operator.core.template_facts import checkpoint_is_durable
from rerail_operator.core.template_shape import unreadable

from .ground import GPU, a_node, a_template, nodes_of

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def with_container(**fields: Any) -> dict[str, Any]:
    template = a_template()
    template["spec"]["containers"][0].update(fields)
    return template


SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "a plain template": (a_template(), ""),
    "nulls are as good as nothing": (a_template(tolerations=None, affinity={"nodeAffinity": None}), ""),
    "tolerations that are no list": (
        a_template(tolerations="all"),
        "spec.template.spec.tolerations is 'all': write a list",
    ),
    "a toleration that is no object": (
        a_template(tolerations=["x"]),
        "spec.template.spec.tolerations[0] is 'x': write an object",
    ),
    "limits that are no object": (
        with_container(resources={"limits": [8]}),
        "spec.template.spec.containers[0].resources.limits is [8]: write an object",
    ),
    "affinity terms that are no list": (
        a_template(affinity={"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": {}}}}),
        f"spec.template.spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms is {{}}: write a list",
    ),
    "a quantity that is none": (
        with_container(resources={"limits": {"memory": "64GB"}}),
        "resources in spec.template.spec: '64GB' is not a quantity: write for example 8, 500m or 64Gi",
    ),
    "a quantity that is a word of YAML": (
        with_container(resources={"limits": {GPU: True}}),
        "resources in spec.template.spec: True is not a quantity: write for example 8, 500m or 64Gi",
    ),
    "a mount path that is a number": (
        with_container(volumeMounts=[{"name": "v", "mountPath": 5}]),
        "spec.template.spec.containers[0].volumeMounts[0].mountPath is 5: write a text",
    ),
}


@pytest.mark.parametrize(("template", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_what_cannot_be_read_is_named_with_its_path(template: dict[str, Any], sentence: str) -> None:
    assert unreadable(template) == sentence


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "x", "8", "1Gi", "In", "Exists"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["key", "limits", "requests", "name", "values", "cpu"]), inner, max_size=2
        )
    ),
    max_leaves=4,
)
FULL = a_template(
    initContainers=[{"name": "i", "restartPolicy": "Always", "resources": {"requests": {"cpu": 1}}}],
    volumes=[{"name": "v", "emptyDir": {}}],
    tolerations=[{"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}],
    nodeSelector={"a": "b"},
    affinity={
        "nodeAffinity": {
            REQUIRED: {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]
            }
        }
    },
    resources={"requests": {"cpu": 1}},
    overhead={"cpu": "1m"},
)
FULL["spec"]["containers"][0]["volumeMounts"] = [
    {"name": "v", "mountPath": "/checkpoints", "readOnly": False}
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in below for found in places(inner, (*path, key)))]


# What the API's models already refuse never gets here.
GUARDED = {
    ("spec",),
    ("spec", "containers"),
    ("spec", "containers", 0),
    ("spec", "volumes", 0),
    ("spec", "containers", 0, "command"),
}
PLACES = [p for p in places(FULL) if p and p not in GUARDED and p[-1] != "name"]


@settings(max_examples=600)
@given(st.sampled_from(PLACES), junk)
def test_whatever_stands_where_it_is_readable_or_named(place: tuple[Any, ...], written: Any) -> None:
    template = copy.deepcopy(FULL)
    holder: Any = template
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = written
    if not unreadable(template):
        request = gang_request(template, 1)
        queued = Queued("u", "team", "j", datetime(2026, 11, 1, tzinfo=UTC), request)
        assert set(plan_admissions([queued], nodes_of(a_node("a", labels={"a": "b"})), True)) == {"u"}
        checkpoint_is_durable(template, "/checkpoints")

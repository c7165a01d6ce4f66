"""Every rule has one bad example, and the model refuses it in the rule's own words."""

import copy
from collections import Counter

import pytest

from rerail_api.crd import open_api_schema
from rerail_api.rules import RULES, TRANSITIONS
from rerail_api.v1alpha1 import InvalidJob, Problem, check_change, parse_job
from tests.api.examples import BadExample, a_job, bad_examples, shipped_jobs
from tests.api.structural import violations

EXAMPLES = bad_examples()
BY_RULE = {example.rule: example for example in EXAMPLES if example.rule}


def test_every_rule_has_exactly_one_bad_example() -> None:
    assert Counter(e.rule for e in EXAMPLES if e.rule) == Counter(r.name for r in (*RULES, *TRANSITIONS))


@pytest.mark.parametrize("rule", [*RULES, *TRANSITIONS], ids=lambda rule: rule.name)
def test_the_example_shows_the_rule_s_own_words(rule) -> None:
    example = BY_RULE[rule.name]
    assert (example.path, example.message) == (rule.path, rule.message)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_model_refuses_it_for_that_reason_alone(example: BadExample) -> None:
    if example.before is None:
        with pytest.raises(InvalidJob) as refused:
            parse_job(example.manifest)
        problems = refused.value.problems
    else:
        problems = check_change(parse_job(example.before), parse_job(example.manifest))
    assert problems == (Problem(example.path, example.message),)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if not e.rule], ids=lambda example: example.name)
def test_the_schema_refuses_a_bad_shape(example: BadExample) -> None:
    found = violations(example.manifest, open_api_schema())
    # Lists with unique keys are the API server's business; this judge of schemas does not know them.
    assert found or "Duplicate" in example.server


@pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda rule: rule.name)
def test_no_change_is_always_a_good_change(transition) -> None:
    example = BY_RULE[transition.name]
    assert example.before is not None
    for manifest in (example.before, example.manifest):
        assert check_change(parse_job(manifest), parse_job(manifest)) == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [(True, True), (True, False), (False, True)],
    ids=["while suspended", "in the write that resumes", "in the write that suspends"],
)
def test_a_suspended_job_may_change_its_shape(before: bool, after: bool) -> None:
    old = parse_job(a_job(suspend=before))
    changed = a_job(suspend=after, numNodes=4, numProcPerNode=8, launcher="PerNode")
    changed["spec"]["template"]["spec"]["containers"][0]["command"] = ["torchrun", "train.py"]
    assert check_change(old, parse_job(changed)) == ()


TORCHRUN_COMMANDS = {
    "torchrun by name": (["torchrun", "t.py"], None, False),
    "torchrun by path": (["/opt/bin/torchrun", "t.py"], None, False),
    "torchrun as a module": (["python", "-m", "torch.distributed.run", "t.py"], None, False),
    "the old launcher": (["python", "-m", "torch.distributed.launch", "t.py"], None, False),
    "the module among the args": (["python"], ["-m", "torch.distributed.run", "t.py"], False),
    "a file that is only called so": (["python", "torchrun"], None, True),
    "a name that only ends so": (["mytorchrun"], None, True),
    "a plain script": (["python", "train.py"], ["--lr", "1"], True),
}


@pytest.mark.parametrize(("command", "args", "good"), TORCHRUN_COMMANDS.values(), ids=TORCHRUN_COMMANDS)
def test_torchrun_is_seen_in_every_form(command, args, good) -> None:
    job = a_job()
    job["spec"]["template"]["spec"]["containers"][0] |= {"command": command} | (
        {"args": args} if args else {}
    )
    assert accepted(job) is good
    assert accepted(job | {"spec": job["spec"] | {"launcher": "PerNode"}})


def test_other_containers_may_do_as_they_like() -> None:
    job = a_job()
    sidecar = {"name": "log", "image": "example.com/log:1", "env": [{"name": "RANK", "value": "x"}]}
    job["spec"]["template"]["spec"]["containers"].append(sidecar)
    assert accepted(job)


@pytest.mark.parametrize(
    ("field", "value"),
    [("nodeName", ""), ("schedulerName", "default-scheduler"), ("restartPolicy", "Never"), ("volumes", None)],
)
def test_fields_that_say_nothing_new_are_left_alone(field: str, value: object) -> None:
    job = a_job()
    job["spec"]["template"]["spec"][field] = value
    assert accepted(job)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("a", True),
        ("7b", True),
        ("a" * 40, True),
        ("a" * 41, False),
        ("A", False),
        ("a.b", False),
        ("-a", False),
        ("a-", False),
        ("a\n", False),
    ],
)
def test_job_names(name: str, good: bool) -> None:
    job = a_job()
    job["metadata"]["name"] = name
    assert accepted(job) is good


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("/", True),
        ("/a/..b", True),
        ("/a..", True),
        ("/..", False),
        ("/a/../b", False),
        ("a", False),
        ("", False),
    ],
)
def test_checkpoint_paths(path: str, good: bool) -> None:
    assert accepted(a_job(checkpoint={"path": path})) is good


def test_shipped_examples_are_good() -> None:
    jobs = shipped_jobs()
    assert jobs
    assert [file for file, manifest in jobs.items() if not accepted(manifest)] == []
    assert {
        file: bad for file, manifest in jobs.items() if (bad := violations(manifest, open_api_schema()))
    } == {}


def test_the_smallest_job_is_good() -> None:
    assert accepted(a_job())
    assert violations(a_job(), open_api_schema()) == []


def test_all_problems_are_told_at_once() -> None:
    job = copy.deepcopy(a_job(numNodes=0, laucher="PerRank"))
    with pytest.raises(InvalidJob) as refused:
        parse_job(job)
    assert [str(problem) for problem in refused.value.problems] == [
        "spec.numNodes: write 1 or more (found 0)",
        "spec.laucher: unknown field; did you mean launcher?",
    ]


def accepted(manifest: dict) -> bool:
    try:
        parse_job(manifest)
    except InvalidJob:
        return False
    return True

"""The table of failures: complete, without contradictions, and what its columns come to in a job's life."""

from pathlib import Path

import pytest

from rerail_api.contract import ExitCode
from rerail_api.status import IncidentClass, SamePoint
from rerail_operator.core.taxonomy import (
    BY_CODE,
    BY_SIGN,
    TABLE,
    Action,
    Cause,
    Sign,
    Witness,
    witness_of,
)
from rerail_operator.shell.failures_page import FILE, page

from .builders import Scene, after, running
from .test_restarts import after_failures, failing
from .wants import Want, check

ORDERED_ENDS = {ExitCode.DONE, ExitCode.PREEMPTED_SAVED, ExitCode.PREEMPTED_NOT_SAVED}


def test_every_sign_has_one_row() -> None:
    assert [row.sign for row in TABLE] == list(Sign) and len(BY_SIGN) == len(TABLE)


def test_every_code_of_the_contract_that_is_a_failure_has_one_row() -> None:
    assert set(BY_CODE) == {int(code) for code in ExitCode if code not in ORDERED_ENDS} | {67, 68, 69}
    assert sum(len(row.codes) for row in TABLE) == len(BY_CODE)
    assert all((row.cause is Cause.CODE) is bool(row.codes) for row in TABLE)


def test_what_ends_the_job_at_once_is_said_by_the_program_itself() -> None:
    assert all(row.cause is Cause.CODE for row in TABLE if row.action is Action.FAIL)


def test_whoever_is_sent_to_another_node_leaves_this_one_for_a_while() -> None:
    assert all(row.away is not None for row in TABLE if row.action is Action.OTHER_NODE)


def test_what_never_ends_a_job_is_charged_to_nobody() -> None:
    assert all(row.free for row in TABLE if row.poison is None)


def test_no_word_of_a_jobs_own_processes_reaches_beyond_the_job() -> None:
    """Nodes and devices of which the API server says so, and a machine that takes no connect."""
    trusted = {row.sign for row in TABLE if row.witness is Witness.CLUSTER}
    assert trusted == {Sign.NODE_GONE, Sign.NODE_UNREACHABLE, Sign.DEVICE_BAD}
    assert witness_of(IncidentClass.NODE_LOSS) is Witness.CLUSTER
    assert witness_of(IncidentClass.GPU_FAULT) is Witness.PROGRAM
    assert witness_of(IncidentClass.CONTAINER_LOSS) is Witness.NOBODY
    assert witness_of(IncidentClass.UNPLACEABLE) is Witness.NOBODY


def out_of_memory(before: int) -> Scene:
    """Node rank 1 is out of memory at step 40, where that happened so often before."""
    scene = after_failures(before, mark="OutOfMemory/137") if before else running().steps(40)
    scene = scene.container(1, 137, "OOMKilled")
    return scene if scene.plan().intent else scene.written().later(1)


def restarts(**status: object) -> Want:
    found = {name.replace("__", "."): value for name, value in status.items()}
    return Want("Restarting", intent=True, round=2, status=found)


ANSWERS: dict[str, tuple[Scene, Want]] = {
    "the first time out of memory the pod comes back on its node": (out_of_memory(0), restarts(excluded_nodes=())),
    "the second time at the same point it goes to another one for two minutes": (
        out_of_memory(1), restarts(excluded_nodes__0__name="n1", excluded_nodes__0__until=after(121), same_point__count=2)),
    "the third time the job fails": (out_of_memory(2), Want("RepeatedFailure", intent=True, phase="Failed", says="third time")),
    "out of memory further on is a first time": (
        out_of_memory(1).steps(60), restarts(excluded_nodes=(), same_point__count=1)),
    "a program that blames the node leaves it for half an hour": (
        failing(running(), code=81, contract=True), restarts(excluded_nodes__0__name="n0", excluded_nodes__0__until=after(1801))),
    "a watchdog's word leaves it in place": (
        failing(running(), code=84, contract=True), restarts(excluded_nodes=(), incidents__0__class_=IncidentClass.HANG)),
    "a failure in between starts the count of memory anew": (
        failing(after_failures(1, mark="OutOfMemory/137")), restarts(excluded_nodes=(), same_point__count=1)),
}  # fmt: skip


@pytest.mark.parametrize("sentence", ANSWERS)
def test_the_answer(sentence: str) -> None:
    check(*ANSWERS[sentence])


def test_the_fingerprint_of_the_table_is_the_one_that_is_counted() -> None:
    plan = out_of_memory(0).plan()
    assert plan.status is not None
    assert plan.status.same_point == SamePoint(fingerprint="OutOfMemory/137", step=40, count=1)


def test_the_page_of_failures_is_current() -> None:
    assert (Path(__file__).parents[2] / FILE).read_text() == page()

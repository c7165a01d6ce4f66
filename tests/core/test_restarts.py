"""Whether a failure is answered by a restart or by the end: rules first, then poison, then the budget."""

from datetime import timedelta

import pytest

from rerail_api.status import IncidentClass, RestartCounts, SamePoint
from rerail_operator.core.restarts import delay_before

from .builders import Scene, after, an_incident, running
from .wants import Want, check

K = IncidentClass


def rules(*written: tuple[str, str, list[int], str], **policy: object) -> dict[str, object]:
    """(name, In or NotIn, values, action) each."""
    return {
        **policy,
        "rules": [
            {"name": name, "onExitCodes": {"operator": operator, "values": values}, "action": action}
            for name, operator, values, action in written
        ],
    }


def failing(scene: Scene, **told: object) -> Scene:
    """Rank 0's node reports an exit, and nobody is waited for any more."""
    scene = scene.exits(0, **{"code": 1, **told})  # type: ignore[arg-type]
    return scene if scene.plan().intent else scene.written().later(1)


def after_failures(
    count: int, *, step: int | None = 40, mark: str = "ProcessFault/1", at_step: int | None = 40
) -> Scene:
    """The round after `count` equal failures at `step` runs and stands at `at_step`."""
    scene = running().incident(*(an_incident(n, at=-100, progress_step=step) for n in range(1, count + 1)))
    scene = scene.status(
        same_point=SamePoint(fingerprint=mark, step=step, count=count),
        restarts=RestartCounts(total=count, charged=count, since_progress=count),
        round=1,
    )
    return scene if at_step is None else scene.steps(at_step)


CHARGED = {
    "restarts.total": 1,
    "restarts.charged": 1,
    "restarts.since_progress": 1,
    "incidents.-1.charged": True,
}
FREE = {
    "restarts.total": 1,
    "restarts.charged": 0,
    "restarts.since_progress": 0,
    "incidents.-1.charged": False,
}
FAIL_64 = rules(("bad-config", "In", [64, 65], "FailJob"))


def ends(reason: str, says: str, total: int = 0, incidents: int = 1) -> Want:
    """The job fails with this incident as evidence and no further restart."""
    return Want(
        reason,
        intent=True,
        phase="Failed",
        says=says,
        round=1,
        true=("Admitted", "Failed"),
        status={"restarts.total": total, "incidents.-1.number": incidents, "ledger.stage": "stop"},
    )


def restarts(**status: object) -> Want:
    return Want(
        "Restarting",
        intent=True,
        phase="Restarting",
        round=2,
        status={name.replace("__", "."): value for name, value in status.items()},
    )


def costs(counts: dict[str, object]) -> Want:
    return Want("Restarting", intent=True, phase="Restarting", round=2, status=counts)


CASES: dict[str, tuple[Scene, Want]] = {
    # -- rules of the user
    "a rule that fails the job on a code ends it at once": (
        failing(running().policy(**FAIL_64), code=64), ends("UserRule", "rule 'bad-config' ends the job: rank 0 exited with code 64")),
    "a rule does not see other codes": (failing(running().policy(**FAIL_64), code=66), costs(CHARGED)),
    "a rule that ignores a code makes it free": (
        failing(running().policy(**rules(("flaky", "In", [3], "Ignore"))), code=3),
        costs({**FREE, "incidents.-1.rule": "flaky"})),
    "a rule that counts makes a free class charged": (
        failing(running().policy(**rules(("count", "In", [81], "Count"))), code=81, contract=True), costs(CHARGED)),
    "NotIn matches every code that is not listed": (
        failing(running().policy(**rules(("only-1", "NotIn", [1, 2], "FailJob"))), code=3), ends("UserRule", "only-1")),
    "and none that is": (failing(running().policy(**rules(("only-1", "NotIn", [1, 2], "FailJob"))), code=2), costs(CHARGED)),
    "a signal is 128 plus its number for a rule": (
        failing(running().policy(**rules(("killed", "In", [137], "FailJob"))), code=None, signal=9), ends("UserRule", "killed")),
    "the first matching rule wins": (
        failing(running().policy(**rules(("a", "In", [3], "Ignore"), ("b", "In", [3], "FailJob"))), code=3), costs(FREE)),
    "a rule overrules our own table": (
        failing(running().policy(**rules(("again", "In", [64], "Ignore"))), code=64, contract=True), costs(FREE)),
    "no rule sees an ordered stop": (
        failing(running().policy(**rules(("all", "NotIn", [255], "FailJob"))), code=75, ordered=True), costs(FREE)),
    "rules see the root, not its victims": (
        failing(running().policy(**FAIL_64).exits(1, code=64, at=0.5), code=1), costs(CHARGED)),
    # -- codes of our own table
    "bad configuration is not tried again": (failing(running(), code=64, contract=True), ends("UserError", "a restart cannot help")),
    "no readable checkpoint is not tried again": (failing(running(), code=66, contract=True), ends("UserError", "code 66")),
    "do not requeue": (failing(running(), code=93, contract=True), ends("UserError", "code 93")),
    "64 of a program without our contract is tried again": (failing(running(), code=64), costs(CHARGED)),
    # -- poison
    "the first failure restarts": (
        failing(running().steps(40)), restarts(same_point__count=1, same_point__step=40, restarts__total=1)),
    "the second at the same point too": (failing(after_failures(1)), restarts(same_point__count=2, restarts__total=2)),
    "the third ends the job": (
        failing(after_failures(2)), ends("RepeatedFailure", "the same failure at step 40 for the third time", 2, 3)),
    "another failure at that point begins anew": (failing(after_failures(2), code=7), restarts(same_point__count=1)),
    "the same failure further on begins anew": (
        failing(after_failures(2, at_step=41)), restarts(same_point__count=1, restarts__since_progress=1)),
    "the same failure before that point begins anew, yet is no progress": (
        failing(after_failures(2, at_step=39)), restarts(same_point__count=1, restarts__since_progress=3)),
    "free failures repeat no more often": (
        failing(after_failures(2, mark="GpuFault/81"), code=81, contract=True), ends("RepeatedFailure", "third time", 2, 3)),
    "a preemption in between neither counts nor wipes out": (
        failing(after_failures(2), code=75, ordered=True), restarts(same_point__count=2, restarts__total=3, restarts__charged=2)),
    "a fourth preemption at the same point is still free": (
        failing(after_failures(3, mark="Preemption"), code=None, ordered=True), restarts(restarts__total=4)),
    "before the first step, one rank alone has three tries": (
        failing(after_failures(1, step=None, at_step=None)), restarts(same_point__count=2)),
    "and then no more": (
        failing(after_failures(2, step=None, at_step=None)), ends("RepeatedFailure", "before the first step for the third time", 2, 3)),
    "before the first step, all ranks alike have two": (
        failing(after_failures(1, step=None, at_step=None).exits(1, code=1, last_line="no", same_on_all=True), last_line="no", same_on_all=True),
        ends("RepeatedFailure", "before the first step for the second time", 1, 2)),
    "all ranks alike but for their last line have three": (
        failing(after_failures(1, step=None, at_step=None).exits(1, code=1, last_line="a", same_on_all=True), last_line="b", same_on_all=True),
        restarts(same_point__count=2)),
    "all ranks of one node are not all ranks": (
        failing(after_failures(1, step=None, at_step=None).exits(1, code=1, last_line="no"), last_line="no", same_on_all=True),
        restarts(same_point__count=2)),
    "all ranks alike after a step have three": (
        failing(after_failures(1).exits(1, code=1, last_line="no", same_on_all=True), last_line="no", same_on_all=True),
        restarts(same_point__count=2)),
    # -- the budget
    "the budget counts charged failures without progress": (
        failing(after_failures(2, mark="Hang").policy(maxRestarts=2)),
        ends("RestartBudgetExhausted", "charged failure 3 without progress, maxRestarts is 2", 2, 3)),
    "progress refills it": (
        failing(after_failures(2, mark="Hang", at_step=50).policy(maxRestarts=2)), restarts(restarts__since_progress=1)),
    "free failures never exhaust it": (
        failing(after_failures(2, mark="Hang").policy(maxRestarts=2), code=75, ordered=True), restarts(restarts__since_progress=2)),
    "none at all means that the first charged failure ends": (
        failing(running().policy(maxRestarts=0)), ends("RestartBudgetExhausted", "maxRestarts is 0")),
    # -- programs that report nothing
    "half an hour of running without any report is progress": (
        failing(after_failures(2, step=None, at_step=None).later(1800).incident(
            *(an_incident(n, resolved_time=after(0)) for n in (1, 2))), at=1800), restarts(same_point__count=1)),
    "a minute less is not": (
        failing(after_failures(2, step=None, at_step=None).later(1740).incident(
            *(an_incident(n, resolved_time=after(0)) for n in (1, 2))), at=1740), ends("RepeatedFailure", "third time", 2, 3)),
    "nor is half an hour of trying to run": (
        failing(after_failures(2, step=None, at_step=None).later(1800), at=1800), ends("RepeatedFailure", "third time", 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CASES)
def test_restart_or_end(sentence: str) -> None:
    check(*CASES[sentence])


def test_back_off_doubles_from_the_second_equal_failure_up_to_five_minutes() -> None:
    def delay(count: int) -> timedelta:
        return delay_before(running().status(same_point=SamePoint(fingerprint="x", count=count)).job.status)

    seconds = [delay(count).total_seconds() for count in range(1, 11)]
    assert seconds == [0, 5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_a_job_that_fails_at_once_everywhere_is_failed_within_a_minute_and_two_tries() -> None:
    """The demo's sizes: both nodes die alike as soon as they start; a start takes ten seconds."""
    told = {"code": 1, "last_line": "ModuleNotFoundError: torch", "same_on_all": True}
    first = running().exits(0, **told).exits(1, **told).written()  # type: ignore[arg-type]
    assert (first.job.status.round, first.job.status.restarts.total) == (2, 1)
    again = first.status(released_round=2).all(round=2).later(10).written()
    assert again.job.status.finished and again.job.status.restarts.total == 1
    assert again.job.status.incidents[-1].charged

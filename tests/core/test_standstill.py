"""Hangs: when a standstill is one, who is named for it, and what it costs."""

from dataclasses import replace
from datetime import timedelta

import pytest

from rerail_api.contract import AgentState
from rerail_api.status import ConditionType, Ledger, RestartCounts, SamePoint, Stage
from rerail_operator.core.standstill import Blame, blame, limit_of, spans
from rerail_operator.core.world import Place, Progress, Stacks

from .builders import Scene, after, an_incident, running
from .wants import Want, check

RUNS = Want("AllRanksRunning", phase="Running")
WAITS_IN = "gloo:all_reduce number 41 of group 0"


def stepping(scene: Scene, **told: object) -> Scene:
    """Steps were made up to number 40, at noon; every agent is connected."""
    known: dict[str, object] = {"phase": "train", "step_seconds_p99": 1.0, "moved_at": after(0), **told}
    return scene.steps(40, **known)


def at(seconds: float, nodes: int = 2, hang_seconds: int | None = None, **told: object) -> Scene:
    """So long after step 40."""
    scene = running(nodes).later(seconds)
    return stepping(scene if hang_seconds is None else scene.policy(hangSeconds=hang_seconds), **told)


def asks(*uids: str, step: int | None = 40, within: float = 5.0) -> Want:
    """Evidence is collected: the ranks run on and nothing is written about a restart."""
    after_step = f"ask {' '.join(uids)} where they stand after step {step} of round 1"
    return Want("FaultSeen", actions=(after_step,), phase="Running", round=1, true=("Admitted", "Running"),
                within=within, status={"restarts.total": 0})  # fmt: skip


ASKS_BOTH = asks("p1-0", "p1-1")

WHEN: dict[str, tuple[Scene, Want]] = {
    "45 s without a step are a hang where steps are short": (at(45), ASKS_BOTH),
    "a moment less is not": (at(44.9), RUNS),
    "four times the slowest step is waited for": (at(79.9, step_seconds_p99=20.0), RUNS),
    "and no longer": (at(80, step_seconds_p99=20.0), ASKS_BOTH),
    "first steps, which are not timed yet, have half an hour": (at(1799, step_seconds_p99=None), RUNS),
    "and no more": (at(1800, step_seconds_p99=None), ASKS_BOTH),
    "a program that names no phases is never hung": (at(9000, phase=None), RUNS),
    "unless hangSeconds says so": (at(10, hang_seconds=10, phase=None), ASKS_BOTH),
    "and a moment earlier not": (at(9.9, hang_seconds=10, phase=None), RUNS),
    "before its first step it is not, for it may still import": (
        at(9000, hang_seconds=10, phase=None).agent(0, progress=Progress(at=after(0), moved_at=after(0))), RUNS),
    "hangSeconds may be longer than four steps": (at(500, hang_seconds=600), RUNS),
    "hangSeconds counts for first steps too": (at(10, hang_seconds=10, step_seconds_p99=None), ASKS_BOTH),
    "loading has half an hour, whatever hangSeconds says": (at(1799, hang_seconds=10, phase="init"), RUNS),
    "so have saves": (at(1799, phase="save"), RUNS),
    "and evaluations": (at(1799, phase="eval"), RUNS),
    "and compilation": (at(1799, phase="compile"), RUNS),
    "and phases that we do not know": (at(1799, phase="validate"), RUNS),
    "a save that lasts longer is a hang": (at(1800, phase="save"), ASKS_BOTH),
    "after the last step the end may take half an hour": (at(1799, total_steps=40), RUNS),
    "a phase that began later counts from then on": (at(60, moved_at=after(20)), RUNS),
    "of several that report, one that moves is enough": (
        at(45).agent(1, progress=Progress(step=39, at=after(44), moved_at=after(44))), RUNS),
    "of several that report, the longest limit counts": (
        at(45).agent(1, progress=Progress(step=40, phase="eval", at=after(0), moved_at=after(0))), RUNS),
    "an agent of before, which tells no moves, is judged by its last line": (
        at(100, moved_at=None, step_seconds_p99=None, hang_seconds=10), ASKS_BOTH),
    "an agent that is away may know better: that is no hang": (
        at(100).agent(1, connected=False, last_seen=after(98)), Want("NodesStarting")),
    "of one that is connected nobody asks when it was heard last": (at(100).agent(1, last_seen=after(3)), ASKS_BOTH),
    "a new leader does not count anew": (at(45).see(leading_since=after(44)), ASKS_BOTH),
    "nor any faster": (at(44.9).see(leading_since=after(44)), RUNS),
    "but hears every agent before it acts": (
        at(100).silent(1, forgotten=True).see(leading_since=after(99)),
        Want("AllRanksRunning", says="on their way to a new leader")),
    "a node that is through does not stand still": (
        at(45).agent(1, state=AgentState.DONE, ranks_alive=0), asks("p1-0")),
    "progress of an older round says nothing": (at(100).agent(0, round=0), Want("NodesStarting")),
    "a fault is answered, not the standstill that follows from it": (
        at(100).exits(1, code=1, at=99.5), Want("FaultSeen", phase="Restarting", within=0.5)),
}  # fmt: skip


@pytest.mark.parametrize("sentence", WHEN)
def test_when_a_standstill_is_a_hang(sentence: str) -> None:
    scene, want = WHEN[sentence]
    if want.reason == "NodesStarting":
        plan = scene.plan()
        assert plan.status is not None and plan.status.reason == "NodesStarting" and not plan.intent
    else:
        check(scene, want)


def place(*ranks: int, **fields: object) -> Place:
    return Place(ranks, **fields)  # type: ignore[arg-type]


def answered(scene: Scene, *places: tuple[int, Place], step: int = 40) -> Scene:
    """The agents of these node ranks have said where their ranks stand."""
    for rank in {node_rank for node_rank, _ in places}:
        mine = tuple(one for node_rank, one in places if node_rank == rank)
        scene = scene.agent(rank, stacks=Stacks(step, mine))
    return scene


WAITING = {"waits": WAITS_IN, "where": "loop.py:83 update", "told": True}
READING = {"where": "data/feed.py:40 take", "told": True}


def restarts(says: str, rank: int, node_rank: int, **more: object) -> Want:
    status = {"incidents.-1.class_": "Hang", "incidents.-1.rank": rank, "incidents.-1.node_rank": node_rank,
              "incidents.-1.node": f"n{node_rank}", "incidents.-1.progress_step": 40, "incidents.-1.charged": True,
              "incidents.-1.exit_code": None, "restarts.total": 1, "excluded_nodes": ()}  # fmt: skip
    found = {name.replace("__", "."): value for name, value in more.items()}
    return Want("Restarting", intent=True, phase="Restarting", round=2, says=says, status={**status, **found})


ANSWERS: dict[str, tuple[Scene, Want]] = {
    "as soon as all have answered the gang restarts in place": (
        answered(at(46), (0, place(0, 1, **WAITING)), (1, place(2, **WAITING)), (1, place(3, **READING))),
        restarts("rank 3 on n1 never entered the collective that 3 others wait in (gloo:all_reduce number 41", 3, 1,
                 incidents__0__log_lines=("rank 3: data/feed.py:40 take",
                                          f"ranks 0-2: loop.py:83 update, waits in {WAITS_IN}"))),
    "a stopped rank is named by its state": (
        answered(at(46), (0, place(0, 1, **WAITING)), (1, place(2, state="T")), (1, place(3, **WAITING))),
        restarts("rank 2 on n1 stopped by a signal or a debugger", 2, 1)),
    "who has answered is not asked again": (answered(at(46), (0, place(0, 1))), asks("p1-1")),
    "an answer about another step is none": (
        answered(at(46), (0, place(0, 1)), (1, place(2, 3)), step=39), ASKS_BOTH),
    "where nobody answers, five seconds later rank 0 is named and it is said that this is a guess": (
        stepping(at(46).written().later(5)),
        restarts("rank 0 on n0 named for want of evidence", 0, 0, incidents__0__log_lines=())),
    "and not a moment earlier": (
        stepping(at(46).written().later(4.9)), replace(ASKS_BOTH, within=0.11)),
    "a step made meanwhile calls it off": (
        stepping(at(46).written().later(5)).steps(41, phase="train", moved_at=after(50), step_seconds_p99=1.0), RUNS),
    "the node that is behind by its own account": (
        stepping(at(46).written().later(5)).agent(1, progress=Progress(step=37, at=after(0), moved_at=after(0))),
        restarts("rank 2 on n1 at step 37 where others are at 40", 2, 1)),
    "the third at the same step ends the job": (
        answered(at(46), (0, place(0, 1, **WAITING)), (1, place(2, 3, **READING)))
        .incident(*(an_incident(n, at=-100, progress_step=40) for n in (1, 2)))
        .status(same_point=SamePoint(fingerprint="Hang", step=40, count=2), restarts=RestartCounts(total=2, charged=2, since_progress=2)),
        Want("RepeatedFailure", intent=True, phase="Failed", says="third time", true=("Admitted", "Failed"))),
}  # fmt: skip


@pytest.mark.parametrize("sentence", ANSWERS)
def test_the_answer_to_a_hang(sentence: str) -> None:
    check(*ANSWERS[sentence])


BLAMES: dict[str, tuple[tuple[Place, ...], Blame]] = {
    "a rank in the kernel while others are not": (
        (place(1, state="D"), place(0, 2, 3)), Blame((1,), "waiting in the kernel, for a disk or a driver")),
    "all ranks in the kernel tell nothing": ((place(0, 1, state="D"),), Blame((), "")),
    "all ranks stopped are stopped": ((place(0, 1, state="T"),), Blame((0, 1), "stopped by a signal or a debugger")),
    "a stack inside of torch's collectives is a wait": (
        (place(0, where="distributed/distributed_c10d.py:9 barrier"), place(1, where="a.py:3 f", told=True)),
        Blame((1,), "never entered the collective that 1 others wait in (distributed/distributed_c10d.py:9 barrier)")),
    "without a word about collectives the odd one out is named": (
        (place(2, where="feed.py:3 take"), place(0, 1, 3, where="loop.py:5 wait")),
        Blame((2,), "elsewhere than the 3 others (feed.py:3 take)")),
    "half against half tells nothing": (
        (place(0, 1, where="a.py:1 f"), place(2, 3, where="b.py:1 g")), Blame((), "")),
    "ranks that all stand alike tell nothing": ((place(0, 1, 2, **WAITING),), Blame((), "")),
    "a rank behind the others in its collective stands elsewhere": (
        (place(3, **{**WAITING, "waits": "gloo:all_reduce number 40"}), place(0, 1, 2, **WAITING)),
        Blame((3,), "elsewhere than the 3 others (loop.py:83 update, waits in gloo:all_reduce number 40)")),
    "nobody has answered": ((), Blame((), "")),
}  # fmt: skip


@pytest.mark.parametrize("sentence", BLAMES)
def test_who_is_blamed(sentence: str) -> None:
    groups, found = BLAMES[sentence]
    assert blame(groups) == found


def test_the_seconds_of_a_hang_are_detection_though_they_were_booked_as_training() -> None:
    scene = at(46).status(
        ledger=Ledger(wall_seconds=40, productive_seconds=40, stage=Stage.PRODUCTIVE, stage_since=after(40))
    )
    scene = stepping(scene, moved_at=after(1)).written()
    ledger = scene.job.status.ledger
    assert (ledger.productive_seconds, ledger.lost_seconds) == (1, {Stage.DETECTION: 45})
    scene = stepping(scene.later(5), moved_at=after(1)).written()
    ledger, incident = scene.job.status.ledger, scene.job.status.incidents[-1]
    assert (ledger.productive_seconds, ledger.lost_seconds) == (1, {Stage.DETECTION: 50})
    assert (incident.start_time, incident.stage_seconds) == (after(1), {Stage.DETECTION: 50})
    assert ledger.wall_seconds == 51


def test_a_hang_that_was_seen_late_leaves_the_restart_its_whole_deadline() -> None:
    """Half an hour in a save, then a restart: startupDeadlineSeconds is 900."""
    scene = stepping(at(1800, phase="save").written().later(5), phase="save").written()
    assert scene.job.status.round == 2
    going = scene.all(state=AgentState.STOPPING).later(890).plan()
    assert going.status is not None and not going.status.finished and going.status.round == 2
    assert going.status.is_true(ConditionType.ADMITTED)


def test_limits_follow_the_pace_of_the_program() -> None:
    told = Progress(step=9, phase="train", step_seconds_p99=12.0)
    assert limit_of(told, None) == timedelta(seconds=48)
    assert limit_of(told, 20) == timedelta(seconds=20)


def test_many_ranks_are_told_in_a_line() -> None:
    assert spans((0, 1, 2, 7)) == "ranks 0-2, 7"
    assert spans(tuple(range(0, 40, 2))) == "ranks 0, 2, 4, 6, 8, 10, 12, 14, ..."

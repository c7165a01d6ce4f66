"""The ladder: in place, swap, recreate, fail; when one rung gives way to the next, and what is said of it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerail_api.contract import AgentState
from rerail_api.spec import FailurePolicy, Ladder
from rerail_api.status import IncidentClass, Rung
from rerail_operator.core.ladder import Case, Choice, Taken, rung, rungs_taken
from rerail_operator.core.world import PodPhase

from .builders import NOON, Scene, a_pod, after, an_incident, running
from .wants import Want, check

LADDER = Ladder.model_validate({"inPlace": {"limit": 2}, "swap": {"limit": 2}, "recreate": {"limit": 1}})
PLACE, SWAP, ANEW = Rung.IN_PLACE, Rung.SWAP, Rung.RECREATE
DIED = Case(3, charged=True)
LOST = Case(3, moves=True)

CHOICES: dict[str, tuple[Case, Taken, Choice]] = {
    "a rank that dies restarts in place": (DIED, Taken(), Choice(PLACE, "in place: every pod can serve again")),
    "and once more": (DIED, Taken(in_place=1), Choice(PLACE, "in place: every pod can serve again")),
    "then its pod moves to another node": (
        DIED,
        Taken(in_place=2),
        Choice(SWAP, "swap: node rank 3 failed again after 2 times in place without progress", leave=True),
    ),
    "but not where no other node has room": (
        replace(DIED, room=False),
        Taken(in_place=2),
        Choice(PLACE, "in place again, though node rank 3 has failed before: no other node has room"),
    ),
    "nor where every rank ended in the same way": (
        replace(DIED, alike=True),
        Taken(in_place=9),
        Choice(PLACE, "in place: every pod can serve again"),
    ),
    "a lost node is swapped": (LOST, Taken(), Choice(SWAP, "swap: a pod of the gang cannot serve again, first node rank 3")),
    "whatever was tried in place": (
        LOST,
        Taken(in_place=9),
        Choice(SWAP, "swap: a pod of the gang cannot serve again, first node rank 3"),
    ),
    "what was swapped too often makes the gang anew": (
        LOST,
        Taken(swaps=2),
        Choice(ANEW, "recreate: node rank 3 was swapped 2 times without progress"),
    ),
    "also when it dies in place": (
        DIED,
        Taken(in_place=2, swaps=2),
        Choice(ANEW, "recreate: node rank 3 was swapped 2 times without progress"),
    ),
    "what is charged fails at last": (
        DIED,
        Taken(in_place=2, swaps=2, recreations=1),
        Choice(None, "the gang was recreated once without progress"),
    ),
    "what is not charged is swapped on and on": (
        LOST,
        Taken(swaps=2, recreations=1),
        Choice(SWAP, "swap: a pod of the gang cannot serve again, first node rank 3"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES.values(), ids=CHOICES)
def test_the_rung(case: tuple[Case, Taken, Choice]) -> None:
    seen, taken, wanted = case
    assert rung(LADDER, seen, taken) == wanted


def test_a_limit_of_nothing_leaves_a_rung_out() -> None:
    ladder = Ladder.model_validate({"inPlace": {"limit": 0}, "swap": {"limit": 0}})
    assert rung(ladder, DIED, Taken()).rung is ANEW
    assert rung(Ladder.model_validate({"inPlace": {"limit": 0}}), DIED, Taken()).rung is SWAP


@given(
    case=st.builds(Case, st.just(0), st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    taken=st.builds(Taken, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)),
)
def test_a_rung_is_never_one_that_cannot_be_and_only_the_charged_fail(case: Case, taken: Taken) -> None:
    choice = rung(LADDER, case, taken)
    assert choice.why
    if case.moves:
        assert choice.rung is not PLACE
    elif not case.room and taken.swaps < LADDER.swap.limit:
        assert choice.rung is PLACE
    if choice.rung is None:
        assert case.charged and taken.recreations >= LADDER.recreate.limit
    # Climbing only ever goes up as more was tried.
    more = rung(LADDER, case, replace(taken, recreations=taken.recreations + 1))
    assert choice.rung is not None or more.rung is None


def tried(
    number: int, way: Rung, *, step: int | None = 5, rank: int = 3, at: float = 0, **fields: Any
) -> Any:
    return an_incident(number, rung=way, node_rank=rank, progress_step=step, at=at, **fields)


TRAILS: dict[str, tuple[tuple[Any, ...], int | None, Taken]] = {
    "nothing was tried yet": ((), 5, Taken()),
    "what was tried at this step counts": (
        (tried(1, PLACE), tried(2, PLACE), tried(3, SWAP)),
        5,
        Taken(in_place=2, swaps=1),
    ),
    "what was tried before the last progress does not": (
        (tried(1, PLACE, step=4), tried(2, PLACE)),
        5,
        Taken(in_place=1),
    ),
    "falling back to an earlier step is no progress": ((tried(1, PLACE, step=9),), 5, Taken(in_place=1)),
    "what befell another node rank is its own": (
        (tried(1, PLACE, rank=1), tried(2, SWAP, rank=1)),
        5,
        Taken(),
    ),
    "but the gang is recreated for all": ((tried(1, ANEW, rank=1),), 5, Taken(recreations=1)),
    "without any step all counts": ((tried(1, PLACE, step=None),), None, Taken(in_place=1)),
    "a first step is progress": ((tried(1, PLACE, step=None),), 0, Taken()),
    "half an hour of running is progress for who reports none": (
        (tried(1, PLACE, step=None, resolved_time=after(0)),),
        None,
        Taken(),
    ),
    "an incident of an older version says nothing": (
        (an_incident(node_rank=3, progress_step=5),),
        5,
        Taken(),
    ),
}


@pytest.mark.parametrize("case", TRAILS.values(), ids=TRAILS)
def test_what_was_tried(case: tuple[tuple[Any, ...], int | None, Taken]) -> None:
    incidents, step, wanted = case
    assert rungs_taken(incidents, step, 3, after(1800)) == wanted


# -- in the life of a gang


def with_ladder(scene: Scene, **rungs: dict[str, int]) -> Scene:
    policy = FailurePolicy(ladder=Ladder.model_validate(rungs), max_restarts=50)
    return scene.spec(failure_policy=policy)


def failing(scene: Scene, rank: int = 1) -> Scene:
    """A rank has died, and others have had their second to report."""
    return scene.exits(rank, signal=9).written().later(2)


def repaired(scene: Scene, way: Rung, *, at: float = 0, **status: Any) -> Scene:
    """Round 2 is open, by that rung, since noon."""
    incident = an_incident(class_=IncidentClass.PROCESS_FAULT, rung=way, node_rank=1, at=at)
    return scene.incident(incident).status(round=2, round_time=NOON, **status).written()


def at_barrier(scene: Scene, *ranks: int, round_: int = 2) -> Scene:
    for rank in ranks:
        scene = scene.agent(rank, state=AgentState.READY, round=round_, exit=None, release=None)
    return scene


BOTH = running(2)
ONCE = tried(1, PLACE, step=None, rank=1, resolved_time=NOON)

LIVES: dict[str, tuple[Scene, Want]] = {
    "the incident tells the rung": (
        failing(BOTH),
        Want(
            "Restarting", intent=True, round=2, says="round 2, in place", status={"incidents.-1.rung": PLACE}
        ),
    ),
    "a lost node is told as a swap": (
        running(2).node("n1", ready=None).silent(1, since=-30),
        Want(
            "Restarting", intent=True, says="swap: a pod", status={"incidents.-1.rung": SWAP, "gang_round": 0}
        ),
    ),
    "a node rank that fails again and again leaves its node": (
        failing(with_ladder(BOTH, inPlace={"limit": 1}).incident(ONCE)),
        Want(
            "Restarting",
            intent=True,
            says="swap: node rank 1 failed again after once in place without progress",
            status={"incidents.-1.rung": SWAP, "excluded_nodes.0.name": "n1"},
        ),
    ),
    "and stays where it is when there is no other": (
        failing(with_ladder(BOTH, inPlace={"limit": 1}).incident(ONCE).full("n2")),
        Want("Restarting", intent=True, status={"incidents.-1.rung": PLACE, "excluded_nodes": ()}),
    ),
    "a gang is recreated": (
        failing(with_ladder(BOTH, inPlace={"limit": 0}, swap={"limit": 0})),
        Want("Restarting", intent=True, status={"incidents.-1.rung": ANEW, "round": 2, "gang_round": 2}),
    ),
    "the job fails when even that was tried in vain": (
        failing(
            with_ladder(BOTH, inPlace={"limit": 0}, swap={"limit": 0}, recreate={"limit": 1}).incident(
                tried(1, ANEW, step=None, rank=0, resolved_time=NOON)
            )
        ),
        Want(
            "LadderExhausted",
            intent=True,
            phase="Failed",
            says="the gang was recreated once without progress",
            status={"incidents.-1.rung": None},
        ),
    ),
    "recreating takes every pod of before": (
        repaired(BOTH, ANEW, gang_round=2).all(state=AgentState.READY, round=2),
        Want("PlacingPods", ("delete p1-0", "delete p1-1"), says="2 pods of the gang have not gone yet"),
    ),
    "and makes them all anew": (
        replace(repaired(BOTH, ANEW, gang_round=2), pods=(), agents={}),
        Want("PlacingPods", ("create 0 on n0 in round 2", "create 1 on n1 in round 2")),
    ),
    "pods of the new gang stay in the rounds that follow": (
        at_barrier(
            replace(
                repaired(BOTH, ANEW, gang_round=2).status(round=3),
                pods=(a_pod(0, round_=2), a_pod(1, round_=2)),
            ),
            0,
            1,
            round_=3,
        ),
        Want("Released", intent=True),
    ),
    "an agent that is late in place is waited for": (
        at_barrier(repaired(BOTH, PLACE), 0).later(59),
        Want("AtBarrier", ("join p1-1 to round 2",)),
    ),
    "for a minute; then its pod is swapped, in an uncounted round": (
        at_barrier(repaired(BOTH, PLACE), 0).later(60),
        Want(
            "RungGivenUp",
            intent=True,
            round=3,
            says="in place, and not at the barrier 60 s after the round was opened: 1 of 2 nodes are at the barrier",
            status={"incidents.-1.rung": SWAP, "excluded_nodes.0.name": "n1", "restarts.total": 1},
        ),
    ),
    "as the policy says": (
        with_ladder(at_barrier(repaired(BOTH, PLACE), 0), inPlace={"deadlineSeconds": 7}).later(7),
        Want("RungGivenUp", intent=True, round=3),
    ),
    "the pod that was late is then replaced": (
        at_barrier(repaired(BOTH, PLACE), 0).later(60).written(),
        Want("PlacingPods", ("delete p1-1", "join p1-0 to round 3", "create 1 on n2 in round 3")),
    ),
    "nobody is swapped where nobody could take over": (
        at_barrier(repaired(BOTH.full("n2"), PLACE), 0).later(60),
        Want("AtBarrier", ("join p1-1 to round 2",)),
    ),
    "nor where many are late at once": (
        repaired(running(6), PLACE).later(60),
        Want("AtBarrier", ("join p1-0 p1-1 p1-2 p1-3 p1-4 p1-5 to round 2",)),
    ),
    "a gang that only waits out its back-off is not late": (
        at_barrier(repaired(BOTH, PLACE, at=60), 0, 1).later(60),
        Want("Released", intent=True),
    ),
    "a swap that is not there in five minutes recreates the gang": (
        at_barrier(repaired(BOTH, SWAP), 0).later(300),
        Want(
            "RungGivenUp",
            intent=True,
            round=3,
            says="recreate the gang",
            status={"incidents.-1.rung": ANEW, "gang_round": 3, "excluded_nodes.0.name": "n1"},
        ),
    ),
    "on all of its own nodes where there are no others": (
        at_barrier(repaired(BOTH.full("n2").full("n0").full("n1"), SWAP), 0).later(300),
        Want("RungGivenUp", intent=True, status={"incidents.-1.rung": ANEW, "excluded_nodes": ()}),
    ),
    "not where the cluster would not hold it": (
        at_barrier(repaired(BOTH.full("n2").gone(1).without_node("n1"), SWAP), 0).later(300),
        Want("Unplaceable"),
    ),
    "a gang that does not come back even so gives its nodes back": (
        at_barrier(repaired(BOTH, ANEW, gang_round=1), 0).later(600),
        Want("GaveBack", intent=True, phase="Queued", says="recreated, and not at the barrier 600 s"),
    ),
    "a first start has no ladder": (
        BOTH.status(released_round=0).all(state=AgentState.IDLE, round=0).written().later(700),
        Want("AtBarrier", ("join p1-0 p1-1 to round 1",)),
    ),
    "nor has a start after everything was given back": (
        at_barrier(repaired(BOTH, PLACE, at=-5), 0).later(60),
        Want("AtBarrier", ("join p1-1 to round 2",)),
    ),
    "the startup deadline stays the last word": (
        at_barrier(repaired(BOTH.full("n2"), PLACE), 0).later(900),
        Want("GaveBack", intent=True, phase="Queued"),
    ),
}


@pytest.mark.parametrize("case", LIVES.values(), ids=LIVES)
def test_the_gang_on_the_ladder(case: tuple[Scene, Want]) -> None:
    check(*case)


LATE = at_barrier(repaired(BOTH, PLACE), 0)
WAITED_FOR = Want("AtBarrier", ("join p1-1 to round 2",))
SWAPPED = Want("RungGivenUp", intent=True, round=3, says="not at the barrier 60 s after the round was opened")

HAND_OVERS: dict[str, tuple[Scene, Want]] = {
    "a new leader does not begin the clock of a rung anew": (
        LATE.later(60).see(memory={}, leading_since=after(30)), SWAPPED),
    "nor hurry it": (LATE.later(59).see(memory={}, leading_since=after(30)), WAITED_FOR),
    "agents have 20 s to find the leader and to stop their ranks, should the deadline fall into them": (
        LATE.later(69).see(memory={}, leading_since=after(50)), WAITED_FOR),
    "and no more": (LATE.later(70).see(memory={}, leading_since=after(50)), SWAPPED),
    "so that an hour without a leader swaps nobody who comes": (
        LATE.later(619).see(memory={}, leading_since=after(600)), WAITED_FOR),
    "a shorter rung stays shorter": (
        with_ladder(LATE, inPlace={"deadlineSeconds": 7}).later(27).see(memory={}, leading_since=after(20)),
        Want("RungGivenUp", intent=True, round=3)),
    "a round of an operator that did not write when it opened it counts from the leader's first look": (
        LATE.status(round_time=None).later(90).see(memory={}, leading_since=after(30)), SWAPPED),
    "and not from before": (
        LATE.status(round_time=None).later(89).see(memory={}, leading_since=after(30)), WAITED_FOR),
}  # fmt: skip


@pytest.mark.parametrize("case", HAND_OVERS.values(), ids=HAND_OVERS)
def test_the_clock_of_a_rung_when_leaders_change(case: tuple[Scene, Want]) -> None:
    check(*case)


def test_a_rung_that_is_given_up_opens_a_round_with_a_clock_of_its_own() -> None:
    scene = LATE.later(60).written()
    assert (scene.job.status.round, scene.job.status.round_time) == (3, after(60))
    assert scene.later(30).written().job.status.round_time == after(60)


def test_a_pod_that_still_starts_is_swapped_with_the_rest() -> None:
    scene = at_barrier(repaired(BOTH, SWAP), 0).pod(1, phase=PodPhase.PENDING, since_round=2, birth_round=2)
    plan = scene.later(300).plan()
    assert plan.status is not None and plan.status.gang_round == 3

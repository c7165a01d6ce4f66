"""The invariants themselves: a good account passes, and each broken promise is named."""

from typing import Any

import pytest

from .invariants import Account, Resumption, broken

REFERENCE = {1: 3.0, 2: 2.0, 3: 1.0}


def status(**changes: Any) -> dict[str, Any]:
    ledger = {"wallSeconds": 10.0, "productiveSeconds": 6.0, "lostSeconds": {"Detection": 1.0, "Load": 3.0}}
    incident = {"number": 1, "class": "ProcessFault"}
    return {
        "phase": "Complete",
        "round": 2,
        "restarts": {"total": 1},
        "ledger": ledger,
        "incidents": [incident],
    } | changes


def account(**changes: Any) -> Account:
    steps = [(1, 3.0), (2, 2.0), (2, 2.0), (3, 1.0)]
    good: dict[str, Any] = {
        "status": status(), "restarts": 1, "most_restarts": 1, "lived": 10.05, "losses": steps, "reference": REFERENCE,
        "resumptions": [Resumption(1, 0, 0), Resumption(2, 1, 1)],
    }  # fmt: skip
    return Account(**(good | changes))


def test_a_life_that_kept_all_promises_has_nothing_broken() -> None:
    assert broken(account()) == []


BROKEN = {
    "a second that is booked twice": (account(status=status(ledger={"wallSeconds": 10.0, "productiveSeconds": 10.2})), "sum to"),
    "a second that is not booked": (account(lived=11.0), "lived for 11.000 s"),
    "a restart that was not counted": (account(restarts=2), "2 restarts were caused, 1 are counted"),
    "a restart that was counted twice": (account(restarts=0), "0 restarts were caused, 1 are counted"),
    "a blow that counted twice": (account(most_restarts=0), "0 blows were dealt, 1 interruptions"),
    "a restart without an incident": (account(status=status(incidents=[])), "the newest incident is number 0"),
    "a gap in the incidents": (
        account(status=status(incidents=[{"number": 1}, {"number": 3}], restarts={"total": 3}, round=4), restarts=3, most_restarts=3),
        "numbered [1, 3]",
    ),
    "more restarts than rounds": (account(status=status(round=1)), "1 restarts in 1 rounds"),
    "another loss": (account(losses=[(1, 3.0), (2, 2.5), (3, 1.0)]), "the loss of step 2 is 2.5"),
    "a step too many": (account(losses=[*REFERENCE.items(), (4, 0.5)]), "step 4 was made"),
    "a step that is missing": (account(losses=[(1, 3.0), (3, 1.0)]), "never made: [2]"),
    "a committed step that was made again": (account(resumptions=[Resumption(2, 5, 10)]), "continued from step 5"),
    "a round that fell": (account(resumptions=[Resumption(2, 0, 0), Resumption(1, 0, 0)]), "round 1 began after round 2"),
    "a pod that is left": (account(pods=["gpt-0"]), "pods are left: gpt-0"),
    "a process that is left": (account(processes=[7]), "processes are left: 7"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named(what: str) -> None:
    told, sentence = BROKEN[what]
    problems = broken(told)
    assert len(problems) == 1 and sentence in problems[0]


def test_a_job_that_failed_has_one_incident_more_than_restarts() -> None:
    assert broken(account(status=status(phase="Failed", restarts={"total": 0}), restarts=0)) == []

"""The ledger, driven by faults at the rates of the model, comes to what the model's closed form says."""

import pytest

from bench.ettr import MEASURED, TARGET, Case, Life, StageTimes

CASES = {
    "1,875 nodes with the target's stage times": Case(1_875, 6.5, TARGET, faults=150),
    "18,750 nodes with the target's stage times": Case(18_750, 6.5, TARGET, faults=300),
    "18,750 nodes with stage times as measured": Case(18_750, 6.5, MEASURED, faults=300),
}


@pytest.mark.parametrize("sentence", CASES)
def test_the_ledger_comes_to_what_the_closed_form_says(sentence: str) -> None:
    found = Life(CASES[sentence]).live()
    assert found["ledger_ettr"] == pytest.approx(found["closed_form"], abs=0.003)
    # Only the last sixteen interruptions speak for the dead time: what it predicts is the rougher figure.
    assert found["ledger_predicts"] == pytest.approx(found["closed_form"], abs=0.02)


def test_what_is_lost_per_fault_is_what_the_stages_take() -> None:
    """Until the last agent is at the barrier, the stage is the one of the agent that is furthest behind: stop."""
    times = StageTimes(
        "plain", {"crash": 2, "hang": 2, "node": 2, "numeric": 2}, 5.0, 1.0, 0.5, 7.0, 3.0, 0.05
    )
    lost = Life(Case(1_875, 2.3, times, faults=50)).live()["lost_per_fault"]
    assert {s: round(t, 1) for s, t in lost.items() if s not in ("replay", "checkpointStall")} == {
        "detection": 2.0, "stop": 6.0, "start": 0.5, "load": 7.0, "compile": 3.0,
    }  # fmt: skip


def test_how_many_seats_are_decided_about_changes_nothing() -> None:
    few, many = (Life(Case(1_875, 6.5, TARGET, faults=20, seats=seats)).live() for seats in (2, 64))
    assert {**few, "seats": 0} == {**many, "seats": 0}

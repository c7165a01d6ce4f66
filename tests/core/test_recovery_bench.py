"""What the recovery bench reads out of a trainer's lines."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bench.recovery import Kill, interruption, settled, summary

KILLED = 100.0


def line(at: float, **told: Any) -> dict[str, Any]:
    return {"time": at, **told}


def step(at: float, number: int) -> dict[str, Any]:
    return line(at, step=number, loss=2.0)


def phase(at: float, name: str, seconds: float = 0.0) -> dict[str, Any]:
    return line(at, event="phase", phase=name, seconds=seconds)


ROUND_1 = [line(80, event="start", step=0), *(step(81 + i, i + 1) for i in range(13))]
SAVED = [line(95, event="commit", step=10), step(99, 14)]
RESTART = [
    # a survivor finishes the step that it was in
    step(100.1, 15),
    phase(102.5, "imported", 2.0),
    phase(102.6, "met"),
    phase(103, "compiled"),
    phase(103.5, "loaded"),
    line(103.5, event="start", step=10),
    step(104, 11),
    phase(104, "first_step"),
    *(step(104 + i / 10, 11 + i) for i in range(1, 5)),
    step(105, 16),
]


def written(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines) + '{"step": 1')
    return path


def test_the_seconds_of_a_restart_are_told_apart(tmp_path: Path) -> None:
    kill = interruption(written(tmp_path / "lines", [*ROUND_1, *SAVED, *RESTART]), KILLED, rank=1)
    assert kill is not None
    assert (kill.at_step, kill.resumed_at, kill.first_step, kill.new_step) == (15, 10, 4.0, 5.0)
    spans = {"to_start": 0.5, "import": 2.0, "meet": 0.1, "rehearse": 0.4, "load": 0.5, "step": 0.5}
    assert kill.spans == pytest.approx(spans)
    assert kill.own == pytest.approx(1.5)


def test_steps_that_are_made_again_are_no_progress(tmp_path: Path) -> None:
    assert interruption(written(tmp_path / "lines", [*ROUND_1, *SAVED, *RESTART[:-1]]), KILLED, 1) is None


@pytest.mark.parametrize(
    ("lines", "yes"),
    [
        ([*ROUND_1, *SAVED], True),
        (ROUND_1, False),
        ([*ROUND_1, *SAVED, *RESTART], False),
        ([*SAVED, *ROUND_1], False),
    ],
    ids=["steps and a save", "no save yet", "few steps since a restart", "the save of a round before"],
)
def test_the_next_kill_waits_for_steps_and_a_save(
    tmp_path: Path, lines: list[dict[str, Any]], yes: bool
) -> None:
    assert settled(written(tmp_path / "lines", lines)) is yes


def test_the_summary_has_median_and_worst() -> None:
    kills = [Kill(0, 20, 10, first, first + 1, {"import": 1.0, "load": 0.5}) for first in (3.0, 2.0, 7.0)]
    told = summary("Auto", kills, [{"stageSeconds": {"stop": 0.2}}, {"stageSeconds": {}}])
    assert told["first_step"] == {"median": 3.0, "worst": 7.0}
    assert told["own"] == {"median": 1.5, "worst": 5.5}
    assert told["ledger"] == {"stop": {"median": 0.1, "worst": 0.2}}

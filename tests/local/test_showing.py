"""What a run shows and what it leaves in its report."""

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from rerail_api.contract import AgentState
from rerail_api.v1alpha1 import TrainingJob, parse_job
from rerail_operator.core.world import Agent, Progress
from rerail_operator.shell.console import Console
from rerail_operator.shell.local import report
from rerail_operator.shell.local.screen import LineScreen, LiveScreen
from rerail_operator.shell.local.view import View, plain

pytestmark = pytest.mark.local

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
STATUS: dict[str, Any] = {
    "phase": "Complete",
    "reason": "Completed",
    "message": "all ranks ended with 0",
    "round": 2,
    "restarts": {"total": 1, "charged": 1, "sinceProgress": 0},
    "progress": {"step": 120, "totalSteps": 120, "loss": 1.94, "firstLoss": 6.12},
    "lastCheckpoint": {"step": 120},
    "resumedFromStep": 30,
    "incidents": [
        {
            "number": 1,
            "round": 1,
            "class": "ProcessFault",
            "charged": True,
            "rank": 3,
            "nodeRank": 1,
            "node": "local-1",
            "signal": "SIGKILL",
            "stepsLost": 10,
            "progressStep": 40,
            "logLines": ["step 40", "loss 2.4"],
            "stageSeconds": {"detection": 0.3, "load": 4.0},
        }
    ],
    "ledger": {
        "wallSeconds": 30.0,
        "productiveSeconds": 20.0,
        "lostSeconds": {"start": 1.0, "load": 9.0},
        "ettr": 0.667,
    },
}


def a_job(status: Mapping[str, Any] | None = None) -> TrainingJob:
    container = {"name": "trainer", "command": ["python", "x.py"]}
    return parse_job(
        {
            "apiVersion": "rerail.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "demo", "uid": "u-1"},
            "spec": {"numNodes": 2, "template": {"spec": {"containers": [container]}}},
            "status": dict(status or {}),
        }
    )


def an_agent(step: int | None, round_: int = 2, **more: Any) -> Agent:
    return Agent("p", AgentState.RUNNING, round_, True, NOW, progress=Progress(step=step, **more))


def test_the_report_holds_what_programs_look_for() -> None:
    found = report.as_json(report.Outcome(a_job(STATUS), {}, ["kill:rank=3,step=40"]))
    assert found["phase"] == "Complete"
    assert found["round"] == 2
    assert found["restarts"] == {"total": 1, "charged": 1, "sinceProgress": 0}
    assert found["progress"] == {"step": 120, "totalSteps": 120, "loss": 1.94}
    assert found["lastCheckpoint"] == {"step": 120}
    assert found["resumedFromStep"] == 30
    assert (found["firstLoss"], found["lastLoss"]) == (6.12, 1.94)
    assert found["incidents"][0]["signal"] == "SIGKILL"
    ledger = found["ledger"]
    assert ledger["productiveSeconds"] + sum(ledger["lostSeconds"].values()) == ledger["wallSeconds"]
    assert found["injected"] == ["kill:rank=3,step=40"]


def test_the_report_for_people_names_who_failed_and_where_the_time_went() -> None:
    text = report.as_text(report.Outcome(a_job(STATUS), {}))
    for part in (
        "default/demo: Complete (Completed)",
        "loss         6.1200 -> 1.9400",
        "resumed from step 30",
        "Incident 1: ProcessFault in round 1, charged",
        "rank 3 of node rank 1 on local-1: ended by SIGKILL",
        "steps lost   10 (last finished step 40)",
        "detection 0.3 s, load 4.0 s",
        "| loss 2.4",
        "Where 30.0 s went",
        "productive           20.0 s  66.7%",
        "ETTR 0.667",
    ):
        assert part in text


def test_a_job_without_progress_lines_is_reported_as_such() -> None:
    outcome = report.Outcome(a_job({"phase": "Complete", "reason": "Completed"}), {})
    assert "no progress lines were seen" in report.as_text(outcome)
    assert report.as_json(outcome)["firstLoss"] is None


def test_log_lines_of_an_older_incident_are_kept_though_the_status_drops_them() -> None:
    view = View(a_job(STATUS))
    view.job_changed(a_job(STATUS))
    without = {**STATUS, "incidents": [{**STATUS["incidents"][0], "logLines": []}]}
    view.job_changed(a_job(without))
    found = report.as_json(report.Outcome(view.job, view.log_lines))
    assert found["incidents"][0]["logLines"] == ["step 40", "loss 2.4"]


def test_the_view_takes_the_furthest_step_of_this_round_and_no_step_before_training() -> None:
    view = View(a_job({"round": 2}))
    view.agents_seen({"a": an_agent(7, loss=2.0), "b": an_agent(9, loss=1.5), "old": an_agent(99, 1)}, 1.0)
    assert (view.step, view.loss) == (9, 1.5)
    view.agents_seen({"a": an_agent(0, phase="init")}, 2.0)
    assert view.step == 9


def test_time_left_follows_the_pace_of_the_round() -> None:
    view = View(a_job({"round": 2}))
    view.agents_seen({"a": an_agent(10, total_steps=40)}, 100.0)
    assert view.seconds_left() is None
    view.agents_seen({"a": an_agent(20, total_steps=40)}, 105.0)
    assert view.seconds_left() == pytest.approx(10.0)


def test_elsewhere_than_on_a_terminal_a_run_is_one_line_per_change() -> None:
    out = io.StringIO()
    view = View(a_job({"phase": "Running", "reason": "AllRanksRunning", "round": 1, "message": "all run"}))
    screen = LineScreen(Console(out, out), view)
    screen.start()
    for now in (0.0, 0.1, 0.2):
        screen.refresh(now)
    view.agents_seen({"a": an_agent(5, 1, loss=2.5, total_steps=10)}, 0.3)
    screen.refresh(0.3)
    view.agents_seen({"a": an_agent(6, 1, loss=2.4, total_steps=10)}, 0.4)
    screen.refresh(0.4)  # too soon for another line
    screen.stop()  # the last step is told all the same
    assert out.getvalue().splitlines() == [
        "Running: AllRanksRunning, round 1. all run",
        "  step 5/10, loss 2.5000",
        "  step 6/10, loss 2.4000",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_run_is_a_panel() -> None:
    out = Terminal()
    view = View(a_job(STATUS))
    view.agents_seen({"a": an_agent(60, loss=2.5, total_steps=120, tokens_per_second=31000.0)}, 0.0)
    view.agents_seen({"a": an_agent(90, loss=2.2, total_steps=120, tokens_per_second=31000.0)}, 10.0)
    view.tail.append(plain("0: [rank 0] \x1b[31mred\x1b[0m [bold]not markup[/bold]"))
    screen = LiveScreen(Console(out, out), view)
    screen.start()
    screen.tell("injected kill:rank=3,step=40")
    screen.stop()
    shown = out.getvalue()
    for part in (
        "default/demo",
        "Complete",
        "step 90/120",
        "loss 2.2000",
        "31,000 tokens/s",
        "1 restart",
        "0:10 left",
    ):
        assert part in shown, part
    assert "[bold]not markup[/bold]" in shown
    assert "injected kill:rank=3,step=40" in shown


def test_a_log_line_cannot_move_the_terminal() -> None:
    assert plain("\x1b[2J\x1b[31mred\x1b[0m\ttab\rback\x07") == "red tab back "


def test_on_a_terminal_changes_stay_readable_above_the_panel() -> None:
    out = Terminal()
    view = View(a_job({"phase": "Running", "reason": "AllRanksRunning", "round": 1}))
    screen = LiveScreen(Console(out, out), view)
    screen.start()
    screen.refresh(0.0)
    screen.refresh(0.1)
    view.job_changed(
        a_job({"phase": "Restarting", "reason": "FaultSeen", "round": 1, "message": "rank 3 was killed"})
    )
    screen.refresh(0.2)
    screen.stop()
    assert out.getvalue().count("Running: AllRanksRunning, round 1") == 1
    assert out.getvalue().count("Restarting: FaultSeen, round 1. rank 3 was killed") == 1

"""Metrics as a scrape shows them."""

from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rerail_operator.core.plan import Plan
from rerail_operator.core.world import World
from rerail_operator.shell.keys import JobKey
from rerail_operator.shell.metrics import Gauge, Metrics

from .jobs import a_job

KEY = JobKey("team", "job")
RUNNING = {
    "phase": "Running",
    "round": 2,
    "nodes": {"desired": 4, "ready": 3, "spares": 2, "summary": "3/4"},
    "restarts": {"total": 1, "charged": 1, "sinceProgress": 0},
    "progress": {"step": 1200, "time": "2026-01-01T00:10:00Z"},
    "checkpointIntervalSeconds": 84,
    "stragglers": [{"rank": 3, "nodeRank": 1, "node": "n1", "ratio": 1.3}],
    "lastCheckpoint": {"step": 1150, "time": "2026-01-01T00:09:00Z"},
    "ledger": {
        "wallSeconds": 600,
        "productiveSeconds": 540,
        "lostSeconds": {"load": 50, "replay": 10},
        "ettr": 0.9,
        "lostSecondsByClass": {"NodeLoss": 45},
        "forecast": {
            "interruptionsPerThousandNodeDays": 6.5,
            "deadSeconds": 25,
            "stallSeconds": 0.5,
            "intervalSeconds": 84,
            "ettr": 0.95,
        },
    },
}


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, label values in order of label names) -> value, of our own names."""
    text = generate_latest(metrics.registry).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("rerail_") and not sample.name.endswith("_created"):
                labels = [sample.labels[name] for name in sorted(sample.labels)]
                found[(sample.name, *labels)] = sample.value
    return found


class Ground:
    def __init__(self) -> None:
        self.live = {KEY}
        self.metrics = Metrics(
            lambda key: key in self.live,
            [Gauge("rerail_leader", "1 while this process leads.", lambda: 1.0)],
        )

    def passed(self, key: JobKey = KEY, uid: str = "uid-job", **status: Any) -> None:
        self.metrics.passed(key, World(uid, a_job(key.name, uid=uid, **status)), Plan(status=None))


@pytest.fixture
def ground() -> Ground:
    return Ground()


def test_a_running_job_has_the_figures_of_its_status(ground: Ground) -> None:
    ground.passed(**RUNNING)
    found = samples(ground.metrics)
    expected = {
        ("rerail_leader",): 1.0,
        ("rerail_job_phase", "job", "team", "Running"): 1.0,
        ("rerail_job_phase", "job", "team", "Queued"): 0.0,
        ("rerail_jobs", "Running"): 1.0,
        ("rerail_job_step", "job", "team"): 1200.0,
        ("rerail_job_nodes_ready", "job", "team"): 3.0,
        ("rerail_job_lost_seconds_by_class", "NodeLoss", "job", "team"): 45.0,
        ("rerail_job_told_checkpoint_interval_seconds", "job", "team"): 84.0,
        ("rerail_job_nodes_desired", "job", "team"): 4.0,
        ("rerail_job_spares_ready", "job", "team"): 2.0,
        ("rerail_job_last_progress_timestamp_seconds", "job", "team"): 1767226200.0,
        ("rerail_job_last_checkpoint_timestamp_seconds", "job", "team"): 1767226140.0,
        ("rerail_job_stragglers", "job", "team"): 1.0,
        ("rerail_job_ettr_ratio", "job", "team"): 0.9,
        ("rerail_job_predicted_ettr_ratio", "job", "team"): 0.95,
        ("rerail_job_model_checkpoint_interval_seconds", "job", "team"): 84.0,
        ("rerail_job_dead_seconds", "job", "team"): 25.0,
        ("rerail_job_lost_seconds", "job", "team", "load"): 50.0,
        ("rerail_job_lost_seconds", "job", "team", "replay"): 10.0,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_what_a_job_has_not_reported_is_absent_and_not_zero(ground: Ground) -> None:
    ground.passed(phase="Queued")
    names = {key[0] for key in samples(ground.metrics)}
    assert "rerail_job_step" not in names
    assert "rerail_job_predicted_ettr_ratio" not in names
    assert "rerail_job_last_checkpoint_timestamp_seconds" not in names


def test_the_plans_status_is_newer_than_the_written_one(ground: Ground) -> None:
    job = a_job(**RUNNING)
    newer = job.status.model_copy(update={"progress": job.status.progress.model_copy(update={"step": 1300})})
    ground.metrics.passed(KEY, World("uid-job", job), Plan(status=newer))
    assert samples(ground.metrics)[("rerail_job_step", "job", "team")] == 1300.0


def test_a_deleted_job_leaves_only_totals(ground: Ground) -> None:
    ground.passed(**RUNNING)
    ground.passed(**{**RUNNING, "restarts": {"total": 2, "charged": 1, "sinceProgress": 0}})
    ground.live.clear()
    found = samples(ground.metrics)
    assert [key for key in found if key[0].startswith("rerail_job_")] == []
    assert found[("rerail_restarts_total", "false")] == 1.0
    assert not any("job" in key[1:] for key in found), "no job's name in what stays"


def test_totals_count_what_was_written_once_however_often_it_is_seen(ground: Ground) -> None:
    incident = {"number": 1, "round": 1, "class": "ProcessFault"}
    ground.passed(**RUNNING)
    for _ in range(3):
        ground.passed(
            **{
                **RUNNING,
                "restarts": {"total": 3, "charged": 2, "sinceProgress": 1},
                "incidents": [incident, {**incident, "number": 2, "class": "NodeLoss"}],
            }
        )
    for _ in range(2):
        ground.passed(
            phase="Complete",
            conditions=[
                {
                    "type": "Complete",
                    "status": "True",
                    "reason": "AllRanksDone",
                    "lastTransitionTime": "2026-01-01T01:00:00Z",
                }
            ],
            restarts={"total": 3, "charged": 2, "sinceProgress": 1},
        )
    found = samples(ground.metrics)
    assert found[("rerail_restarts_total", "true")] == 1.0
    assert found[("rerail_restarts_total", "false")] == 1.0
    assert found[("rerail_incidents_total", "ProcessFault")] == 1.0
    assert found[("rerail_incidents_total", "NodeLoss")] == 1.0
    assert found[("rerail_jobs_finished_total", "Complete")] == 1.0


def test_a_job_of_the_same_name_counts_anew(ground: Ground) -> None:
    ground.passed(**RUNNING)
    ground.passed(uid="uid-2", restarts={"total": 0, "charged": 0, "sinceProgress": 0})
    ground.passed(uid="uid-2", restarts={"total": 1, "charged": 1, "sinceProgress": 1})
    assert samples(ground.metrics)[("rerail_restarts_total", "true")] == 1.0

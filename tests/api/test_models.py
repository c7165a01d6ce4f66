"""Reading and writing jobs: strict in spec, tolerant in status, bounded in size."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from rerail_api.base import json_name
from rerail_api.v1alpha1 import (
    AmbiguousAccelerators,
    Condition,
    ConditionStatus,
    ConditionType,
    ExcludedNode,
    Forecast,
    Incident,
    IncidentClass,
    InvalidJob,
    Ledger,
    Phase,
    Progress,
    Stage,
    TrainingJobStatus,
    accelerators,
    parse_job,
    parse_status,
    trainer_command,
    trainer_container,
)
from tests.api.examples import a_job

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
GPUS = ("nvidia.com/gpu", "amd.com/gpu")


def test_defaults_nest() -> None:
    spec = parse_job(a_job()).spec
    assert (spec.num_nodes, spec.num_proc_per_node, spec.launcher) == (1, "auto", "PerRank")
    assert (spec.checkpoint.path, spec.checkpoint.grace_seconds) == ("/checkpoints", 120)
    assert parse_job(a_job(checkpoint={"graceSeconds": 5})).spec.checkpoint.path == "/checkpoints"
    assert spec.failure_policy.max_restarts == 10
    assert spec.startup_deadline_seconds == 900
    assert spec.active_deadline_seconds is None
    assert spec.ttl_seconds_after_finished is None


def test_an_empty_status_is_a_job_nobody_has_looked_at() -> None:
    status = parse_status({})
    assert status == TrainingJobStatus()
    assert (status.phase, status.round, status.finished, status.ledger) == (None, 0, False, Ledger())


def test_unknown_status_fields_are_ignored_at_any_depth() -> None:
    job = parse_job(a_job() | {"status": {"new": 1, "nodes": {"ready": 2, "new": 3}}})
    assert job.status.nodes.ready == 2


@pytest.mark.parametrize("missing", [None, {}])
def test_no_status_is_an_empty_status(missing: object) -> None:
    assert parse_job(a_job() | {"status": missing}).status == TrainingJobStatus()


def test_the_rest_of_metadata_is_left_aside() -> None:
    raw = a_job()
    raw["metadata"] |= {"uid": "u", "managedFields": [{"manager": "kubectl"}], "finalizers": []}
    raw["metadata"] |= {"creationTimestamp": "2026-11-23T12:00:00Z", "generation": 3, "resourceVersion": "7"}
    metadata = parse_job(raw).metadata
    assert (metadata.uid, metadata.generation, metadata.resource_version) == ("u", 3, "7")
    assert (metadata.creation_timestamp, metadata.deletion_timestamp) == (NOON, None)


def test_the_template_is_kept_word_for_word() -> None:
    raw = a_job()
    raw["spec"]["template"]["spec"] |= {
        "hostIPC": True,
        "tolerations": [{"operator": "Exists"}],
        "volumes": None,
    }
    assert parse_job(raw).spec.template == raw["spec"]["template"]


def test_status_survives_the_way_to_the_server_and_back() -> None:
    status = a_full_status("node")
    assert parse_status(json.loads(json.dumps(status.to_json()))) == status


def test_times_are_rfc3339_in_utc() -> None:
    local = datetime(2026, 11, 23, 14, 0, 0, 250_000, tzinfo=timezone(timedelta(hours=2)))
    status = TrainingJobStatus(start_time=local, admitted_time=NOON)
    assert status.start_time == local and status.start_time.tzinfo is UTC
    assert status.to_json()["startTime"] == "2026-11-23T12:00:00.250000Z"
    assert status.to_json()["admittedTime"] == "2026-11-23T12:00:00Z"


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValidationError):
        TrainingJobStatus(start_time=datetime(2026, 11, 23))


def test_status_is_frozen_and_knows_its_fields() -> None:
    with pytest.raises(ValidationError):
        TrainingJobStatus().round = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        TrainingJobStatus(rounds=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_not_measured(number: float) -> None:
    assert Progress(loss=number).loss is None


def test_foreign_texts_are_cut_not_refused() -> None:
    incident = an_incident(message="é" * 5000, exception="E" * 500)
    assert len(incident.message) == 512 and incident.message.endswith("…")
    assert len(incident.exception or "") == 128


def test_log_lines_keep_the_end() -> None:
    lines = an_incident(log_lines=[f"line {n}" for n in range(100)]).log_lines
    assert lines == tuple(f"line {n}" for n in range(80, 100))


def test_log_lines_stay_below_two_kib_whatever_they_hold() -> None:
    lines = an_incident(log_lines=["x" * 5000, "é" * 400, "y" * 600, "last"]).log_lines
    assert lines[-1] == "last" and lines[-2] == "y" * 511 + "…"
    assert sum(len(line.encode()) + 1 for line in lines) <= 2048


def test_a_full_status_fits_the_budget() -> None:
    size = len(json.dumps(a_full_status("n" * 63).to_json(), ensure_ascii=False).encode())
    assert 20 * 1024 < size <= 48 * 1024


@pytest.mark.parametrize(("kind", "finished"), [("Complete", True), ("Failed", True), ("Running", False)])
def test_finished(kind: str, finished: bool) -> None:
    ended = Condition(
        type=ConditionType(kind), status=ConditionStatus.TRUE, reason="Done", last_transition_time=NOON
    )
    status = TrainingJobStatus(conditions=(ended,), completion_time=NOON)
    assert status.finished is finished
    assert status.finished_at == (NOON if finished else None)
    assert status.condition(ConditionType(kind)) == ended
    assert status.condition(ConditionType.SUSPENDED) is None


@pytest.mark.parametrize(
    ("limits", "written", "expected"),
    [
        ({"nvidia.com/gpu": 8}, "auto", 8),
        ({"nvidia.com/gpu": "4", "cpu": "2"}, "auto", 4),
        ({"cpu": 2}, "auto", 1),
        ({}, "auto", 1),
        ({"nvidia.com/gpu": 0, "amd.com/gpu": 2}, "auto", 2),
        ({"nvidia.com/gpu": 8, "amd.com/gpu": 8}, 3, 3),
    ],
)
def test_ranks_per_node(limits: dict, written: int | str, expected: int) -> None:
    raw = a_job(numProcPerNode=written)
    raw["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": limits}
    assert parse_job(raw).spec.procs_per_node(GPUS) == expected


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"nvidia.com/gpu": 8, "amd.com/gpu": 8},
            r"several accelerators \(amd.com/gpu, nvidia.com/gpu\): set spec.numProcPerNode to a number",
        ),
        ({"nvidia.com/gpu": "half"}, "'half': write a whole number"),
    ],
)
def test_ranks_per_node_that_nobody_can_tell(limits: dict, message: str) -> None:
    raw = a_job()
    raw["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": limits}
    with pytest.raises(ValueError, match=message):
        parse_job(raw).spec.procs_per_node(GPUS)
    assert issubclass(AmbiguousAccelerators, ValueError)


def test_readers_of_the_template() -> None:
    raw = a_job()
    container = raw["spec"]["template"]["spec"]["containers"][0]
    container |= {"args": ["--lr", "1"], "resources": {"limits": {"nvidia.com/gpu": 2, "memory": "1Gi"}}}
    template = parse_job(raw).spec.template
    assert trainer_container(template)["name"] == "trainer"
    assert trainer_command(template) == ("python", "train.py", "--lr", "1")
    assert accelerators(template, GPUS) == {"nvidia.com/gpu": 2}


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("num_nodes", "numNodes"),
        ("class_", "class"),
        ("ttl_seconds_after_finished", "ttlSecondsAfterFinished"),
    ],
)
def test_json_names(field: str, name: str) -> None:
    assert json_name(field) == name


def test_a_broken_status_is_told_with_its_path() -> None:
    with pytest.raises(InvalidJob, match=r"status\.nodes\.ready: write 0 or more \(found -1\)"):
        parse_job(a_job() | {"status": {"nodes": {"ready": -1}}})


def an_incident(**fields: object) -> Incident:
    return Incident(number=1, round=1, class_=IncidentClass.PROCESS_FAULT, **fields)  # type: ignore[arg-type]


def a_full_status(node: str) -> TrainingJobStatus:
    """Every list at its bound, every text long, as a job after a bad month would have it."""
    seconds = {stage: 12345.678 for stage in Stage}
    names = {"pod": "p" * 63, "node": node, "exception": "E" * 128, "fingerprint": "f" * 128}
    numbers = {
        "rank": 14999,
        "node_rank": 1874,
        "exit_code": 137,
        "progress_step": 10**6,
        "steps_lost": 10**4,
        "gpu_seconds_lost": 12345678.9,
    }
    shared = names | numbers | {"message": "m" * 512, "signal": "SIGKILL", "stage_seconds": seconds}
    times = {"start_time": NOON, "resolved_time": NOON}
    incidents = [an_incident(**shared, **times) for _ in range(15)]
    newest = an_incident(**shared, **times, log_lines=["l" * 99] * 20)
    return TrainingJobStatus(
        phase=Phase.RESTARTING,
        reason="RankFailed",
        message="m" * 1024,
        conditions=tuple(
            Condition(
                type=kind,
                status=ConditionStatus.UNKNOWN,
                reason="SomeReason",
                message="c" * 256,
                last_transition_time=NOON,
            )
            for kind in ConditionType
        ),
        incidents=(*incidents, newest),
        excluded_nodes=tuple(
            ExcludedNode(name=f"{n:02}{node}"[:63], reason="r" * 64, until=NOON) for n in range(64)
        ),
        ledger=Ledger(
            wall_seconds=1e7,
            lost_seconds=seconds,
            stage=Stage.STOP,
            stage_since=NOON,
            checkpoints=10**6,
            forecast=Forecast(
                interruptions_per_thousand_node_days=12.345,
                dead_seconds=12345.67,
                stall_seconds=1.234,
                interval_seconds=3599.9,
                ettr=0.9876,
            ),
        ),
        progress=Progress(step=10**6, loss=1.25, tokens=10**12, time=NOON),
    )


def test_seconds_are_written_to_the_millisecond_and_kept_exactly_in_memory() -> None:
    ledger = Ledger(wall_seconds=27.906804000000005, lost_seconds={Stage.LOAD: 0.1 + 0.2})
    assert ledger.wall_seconds == 27.906804000000005
    written = ledger.to_json()
    assert (written["wallSeconds"], written["lostSeconds"]) == (27.907, {"load": 0.3})

"""What a workdir remembers: an unfinished job goes on as itself, a finished one is a new job."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rerail_operator.shell.local import state

pytestmark = pytest.mark.local

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)


def a_manifest(name: str = "demo", **pod: Any) -> dict[str, Any]:
    container = {"name": "trainer", "command": ["true"]}
    spec = {"numNodes": 1, "template": {"spec": {"containers": [container], **pod}}}
    kind = {"apiVersion": "rerail.dev/v1alpha1", "kind": "TrainingJob"}
    return {**kind, "metadata": {"name": name}, "spec": spec}


def remembered(condition: str = "", **status: Any) -> dict[str, Any]:
    job = state.job_to_store(a_manifest(), None, NOW)
    moment = {"status": "True", "reason": "X", "lastTransitionTime": "2026-11-23T10:00:00Z"}
    conditions = [{"type": condition, **moment}] if condition else []
    return {**job, "status": {"round": 3, "conditions": conditions, **status}}


def test_a_first_run_is_a_new_job_without_placement_and_ttl() -> None:
    raw = a_manifest(nodeSelector={"gpu": "yes"}, affinity={}, priorityClassName="high")
    raw["spec"]["ttlSecondsAfterFinished"] = 0
    stored = state.job_to_store(raw, None, NOW)
    assert stored["metadata"]["namespace"] == "default"
    assert stored["metadata"]["uid"]
    assert "ttlSecondsAfterFinished" not in stored["spec"]
    assert set(stored["spec"]["template"]["spec"]) == {"containers", "priorityClassName"}


def test_an_unfinished_job_goes_on_with_its_uid_round_and_birthday() -> None:
    before = remembered("Suspended", lastCheckpoint={"step": 7})
    again = state.job_to_store(a_manifest(), before, datetime(2027, 1, 1, tzinfo=UTC))
    assert again["metadata"]["uid"] == before["metadata"]["uid"]
    assert again["metadata"]["creationTimestamp"] == "2026-11-23T10:00:00Z"
    assert again["metadata"]["generation"] == 2
    assert again["status"]["round"] == 3
    assert state.can_go_on(before)


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_a_finished_job_is_not_run_again(end: str) -> None:
    before = remembered(end, lastCheckpoint={"step": 7})
    again = state.job_to_store(a_manifest(), before, NOW)
    assert again["metadata"]["uid"] != before["metadata"]["uid"]
    assert "status" not in again
    assert not state.can_go_on(before)


def test_another_job_in_the_same_workdir_is_another_job() -> None:
    before = remembered("Suspended")
    again = state.job_to_store(a_manifest("other"), before, NOW)
    assert again["metadata"]["uid"] != before["metadata"]["uid"]


def test_without_a_checkpoint_there_is_nothing_to_go_on_from() -> None:
    assert not state.can_go_on(remembered("Suspended"))
    assert not state.can_go_on(None)
    assert not state.can_go_on({"kind": "TrainingJob"})


def test_a_state_file_is_replaced_in_one_step_and_a_broken_one_is_no_state(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    assert state.load(path) is None
    state.save(path, {"a": 1})
    state.save(path, {"a": 2})
    assert state.load(path) == {"a": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["job.json"]
    path.write_text('{"a": ')
    assert state.load(path) is None

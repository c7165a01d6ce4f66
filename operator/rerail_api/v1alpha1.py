"""The door to the API: the names of v1alpha1 and `parse_job`, the one way in from raw JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from rerail_api.contract import API_VERSION, GROUP, KIND, PLURAL, VERSION
from rerail_api.job import SHORT_NAME, SINGULAR, ObjectMeta, TrainingJob
from rerail_api.messages import Problem, problems
from rerail_api.rules import check, check_change
from rerail_api.spec import (
    CheckpointSpec,
    ExitCodeMatch,
    ExitCodeOperator,
    FailurePolicy,
    FailureRule,
    Launcher,
    ResumePolicy,
    RuleAction,
    TrainingJobSpec,
)
from rerail_api.status import (
    CheckpointMark,
    Condition,
    ConditionStatus,
    ConditionType,
    ExcludedNode,
    Forecast,
    Incident,
    IncidentClass,
    Ledger,
    NodeCounts,
    Phase,
    Progress,
    RestartCounts,
    SamePoint,
    Stage,
    Straggler,
    TrainingJobStatus,
)
from rerail_api.template import (
    AmbiguousAccelerators,
    accelerator_count,
    accelerators,
    trainer_command,
    trainer_container,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "PLURAL",
    "SHORT_NAME",
    "SINGULAR",
    "VERSION",
    "AmbiguousAccelerators",
    "CheckpointMark",
    "CheckpointSpec",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "ExcludedNode",
    "ExitCodeMatch",
    "ExitCodeOperator",
    "FailurePolicy",
    "FailureRule",
    "Forecast",
    "Incident",
    "IncidentClass",
    "InvalidJob",
    "Launcher",
    "Ledger",
    "NodeCounts",
    "ObjectMeta",
    "Phase",
    "Problem",
    "Progress",
    "RestartCounts",
    "ResumePolicy",
    "RuleAction",
    "SamePoint",
    "Stage",
    "Straggler",
    "TrainingJob",
    "TrainingJobSpec",
    "TrainingJobStatus",
    "accelerator_count",
    "accelerators",
    "check_change",
    "parse_job",
    "parse_status",
    "trainer_command",
    "trainer_container",
]

Model = TypeVar("Model", bound=BaseModel)


class InvalidJob(ValueError):
    """A manifest that is no TrainingJob; `problems` says where and what to write instead."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(str(problem) for problem in problems))


def parse_job(raw: Mapping[str, Any]) -> TrainingJob:
    """Read a TrainingJob from JSON, as strictly as the API server does.

    Unknown fields are refused in spec and ignored in status (a newer operator may have written them).
    Raises `InvalidJob` with every problem found: shapes first, then rules.
    """
    body = {key: value for key, value in raw.items() if key != "status"}
    job = _read(TrainingJob, body, "")
    status = _read(TrainingJobStatus, raw.get("status") or {}, "status", extra="ignore")
    job = job.model_copy(update={"status": status})
    if broken := check(job):
        raise InvalidJob(broken)
    return job


def parse_status(raw: Mapping[str, Any]) -> TrainingJobStatus:
    """Read a status from JSON; unknown fields are ignored. Raises `InvalidJob`."""
    return _read(TrainingJobStatus, raw, "status", extra="ignore")


def _read(
    model: type[Model], raw: Mapping[str, Any], at: str, extra: Literal["ignore"] | None = None
) -> Model:
    # By way of JSON: strict mode there refuses "4" for 4, as the API server does, yet reads lists and enums.
    try:
        return model.model_validate_json(json.dumps(raw, default=str), strict=True, extra=extra)
    except ValidationError as error:
        raise InvalidJob(problems(error, model, at)) from None

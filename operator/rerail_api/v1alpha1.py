"""The door to the API: the names of v1alpha1 and `parse_job`, the one way in from raw JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rerail_api.job import (
    API_VERSION,
    GROUP,
    KIND,
    PLURAL,
    SHORT_NAME,
    SINGULAR,
    VERSION,
    ObjectMeta,
    TrainingJob,
)
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
    Incident,
    IncidentClass,
    Ledger,
    NodeCounts,
    Phase,
    Progress,
    RestartCounts,
    SamePoint,
    Stage,
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
    "TrainingJob",
    "TrainingJobSpec",
    "TrainingJobStatus",
    "accelerator_count",
    "accelerators",
    "parse_job",
    "trainer_command",
    "trainer_container",
]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a manifest: where, and what to write instead."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class InvalidJob(ValueError):
    """A manifest that is no TrainingJob; `problems` says where and what to write instead."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(str(problem) for problem in problems))


def parse_job(raw: Mapping[str, Any]) -> TrainingJob:
    """Read a TrainingJob from JSON; unknown fields are refused in spec and ignored in status.

    Raises `InvalidJob` with every problem found.
    """
    body = dict(raw)
    status = body.pop("status", None) or {}
    try:
        job = TrainingJob.model_validate(body)
        # A newer operator may have written fields that this one does not know.
        read = TrainingJobStatus.model_validate(status, extra="ignore")
    except ValidationError as error:
        raise InvalidJob(_problems(error)) from None
    return job.model_copy(update={"status": read})


def _problems(error: ValidationError) -> tuple[Problem, ...]:
    return tuple(
        Problem(".".join(str(part) for part in found["loc"]) or "manifest", found["msg"])
        for found in error.errors(include_url=False)
    )

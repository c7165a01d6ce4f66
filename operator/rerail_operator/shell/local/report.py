"""The end report of a run: as JSON for programs, as text for people. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rerail_api.base import rfc3339
from rerail_api.v1alpha1 import Incident, TrainingJob
from rerail_operator.shell.ledger.table import where_it_went


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the run left behind: the job's last state and what its status no longer holds."""

    job: TrainingJob
    log_lines: Mapping[int, Sequence[str]]  # incident number -> lines, also of older incidents
    injected: Sequence[str] = ()
    interrupted: bool = False  # Ctrl-C


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The report as plain JSON, in the names of the job's status; absent numbers are null."""
    status = outcome.job.status
    progress, checkpoint = status.progress, status.last_checkpoint
    return {
        "job": f"{outcome.job.metadata.namespace}/{outcome.job.metadata.name}",
        "uid": outcome.job.metadata.uid,
        "phase": str(status.phase or ""),
        "reason": status.reason,
        "message": status.message,
        "interrupted": outcome.interrupted,
        "round": status.round,
        "restarts": {
            "total": status.restarts.total,
            "charged": status.restarts.charged,
            "sinceProgress": status.restarts.since_progress,
        },
        "incidents": [_incident(incident, outcome.log_lines) for incident in status.incidents],
        "numNodes": outcome.job.spec.num_nodes,
        "created": _time(outcome.job.metadata.creation_timestamp),
        "checkpointInterval": outcome.job.spec.checkpoint.interval,
        "checkpointIntervalSeconds": status.checkpoint_interval_seconds,
        "ledger": status.ledger.to_json(),
        "progress": {"step": progress.step, "totalSteps": progress.total_steps, "loss": progress.loss},
        "lastCheckpoint": {"step": checkpoint.step if checkpoint else None},
        "resumedFromStep": status.resumed_from_step,
        "firstLoss": progress.first_loss,
        "lastLoss": progress.loss,
        "injected": list(outcome.injected),
    }


def as_text(outcome: Outcome) -> str:
    """The report for people."""
    status = outcome.job.status
    parts = [
        _headline(outcome),
        _training(outcome.job),
        *(_incident_text(i, outcome.log_lines.get(i.number, ())) for i in status.incidents),
        where_it_went(status.ledger),
    ]
    return "\n\n".join(part for part in parts if part)


def _time(at: datetime | None) -> str | None:
    return rfc3339(at) if at is not None else None


def _incident(incident: Incident, lines: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    kept = incident.log_lines or tuple(lines.get(incident.number, ()))
    return {**incident.to_json(), "logLines": list(kept)}


def _headline(outcome: Outcome) -> str:
    status, meta = outcome.job.status, outcome.job.metadata
    how = "stopped by Ctrl-C" if outcome.interrupted else str(status.phase or "never looked at")
    why = f" ({status.reason})" if status.reason else ""
    lines = [f"{meta.namespace}/{meta.name}: {how}{why}"]
    if status.message:
        lines.append(f"  {status.message}")
    return "\n".join(lines)


def _training(job: TrainingJob) -> str:
    status = job.status
    progress = status.progress
    if progress.step is None:
        return "Training\n  no progress lines were seen"
    total = f" of {progress.total_steps}" if progress.total_steps else ""
    lines = ["Training", f"  step         {progress.step}{total}"]
    if progress.loss is not None:
        first = f"{progress.first_loss:.4f} -> " if progress.first_loss is not None else ""
        lines.append(f"  loss         {first}{progress.loss:.4f}")
    if status.last_checkpoint is not None:
        lines.append(f"  checkpoint   step {status.last_checkpoint.step}")
    if status.resumed_from_step is not None:
        lines.append(f"  resumed from step {status.resumed_from_step}")
    lines.append(f"  restarts     {status.restarts.total}, {status.restarts.charged} charged to the job")
    return "\n".join(lines)


def _incident_text(incident: Incident, older: Sequence[str]) -> str:
    charge = "charged" if incident.charged else "free"
    lines = [f"Incident {incident.number}: {incident.class_} in round {incident.round}, {charge}"]
    lines.append(f"  {_who(incident)}: {_how(incident)}")
    if incident.message:
        lines.append(f"  {incident.message}")
    if incident.steps_lost is not None:
        at = f" (last finished step {incident.progress_step})" if incident.progress_step is not None else ""
        lines.append(f"  steps lost   {incident.steps_lost}{at}")
    if incident.stage_seconds:
        spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in incident.stage_seconds.items())
        lines.append(f"  time         {spent}")
    if incident.gpu_seconds_lost:
        lines.append(f"  cost         {incident.gpu_seconds_lost:,.0f} GPU-seconds")
    if kept := incident.log_lines or tuple(older):
        lines += ["  last lines", *(f"  | {line}" for line in kept)]
    elif incident.rank is not None:
        lines.append("  last lines   none: this rank had written nothing")
    return "\n".join(lines)


def _who(incident: Incident) -> str:
    rank = f"rank {incident.rank}" if incident.rank is not None else "no single rank"
    node_rank = f" of node rank {incident.node_rank}" if incident.node_rank is not None else ""
    node = f" on {incident.node}" if incident.node else ""
    return rank + node_rank + node


def _how(incident: Incident) -> str:
    if incident.signal:
        return f"ended by {incident.signal}"
    if incident.exit_code is not None:
        exception = f" ({incident.exception})" if incident.exception else ""
        return f"exit code {incident.exit_code}{exception}"
    return "gone without an exit code"

"""What a ledger is shown from: a job on a cluster, or a file that `rerail run` or kubectl has written."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rerail_api.contract import KIND
from rerail_api.spec import CheckpointInterval
from rerail_api.v1alpha1 import Incident, InvalidJob, Ledger, TrainingJob, parse_job
from rerail_operator.shell.asking import NoAnswer, Place, ask, namespace_of
from rerail_operator.shell.cluster import Cluster, ClusterError, Kind, NotFound, Object
from rerail_operator.shell.reading import Unreadable, tree_of


class NoAccount(Exception):
    """There is nothing to show; the text says why, and what to do instead."""


class Account(BaseModel):
    """One job's ledger, with what its reader wants to know beside it."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    job: str
    phase: str = ""
    reason: str = ""
    num_nodes: int | None = Field(default=None, alias="numNodes")
    created: datetime | None = None
    interval: CheckpointInterval | None = Field(default=None, alias="checkpointInterval")
    """What the job says of it; None: the program's own."""
    told_seconds: int | None = Field(default=None, alias="checkpointIntervalSeconds")
    """Between checkpoints, as the ranks are told."""
    ledger: Ledger
    incidents: tuple[Incident, ...] = ()


def of_job(job: TrainingJob) -> Account:
    status, meta = job.status, job.metadata
    return Account(
        job=f"{meta.namespace}/{meta.name}",
        phase=str(status.phase or ""),
        reason=status.reason,
        num_nodes=job.spec.num_nodes,
        created=meta.creation_timestamp,
        interval=job.spec.checkpoint.interval,
        told_seconds=status.checkpoint_interval_seconds,
        ledger=status.ledger,
        incidents=status.incidents,
    )


def from_file(path: Path) -> Account:
    """The account in a report of `rerail run` or in a TrainingJob of kubectl. Raises `NoAccount`."""
    try:
        found = tree_of(path, "a report of `rerail run`, or a TrainingJob as kubectl prints it")
    except Unreadable as error:
        raise NoAccount(str(error)) from None
    if not isinstance(found, Mapping):
        raise NoAccount(f"{path} holds no report of `rerail run` and no TrainingJob")
    if found.get("kind") == KIND:
        return _parsed(dict(found), str(path))
    try:
        return Account.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise NoAccount(f"{path} is no report of `rerail run`: {where}: {first['msg']}") from None


def from_cluster(name: str, place: Place) -> Account:
    """The account of a job that the API server holds. Raises `NoAccount`."""
    try:
        namespace = namespace_of(place)

        async def read(cluster: Cluster) -> Object:
            return await cluster.get(Kind.JOB, namespace, name)

        raw = ask(place, read)
    except NotFound:
        raise NoAccount(f"no TrainingJob {name} in namespace {namespace}; name another with -n") from None
    except (NoAnswer, ClusterError) as error:
        raise NoAccount(str(error)) from None
    return _parsed(raw, f"{namespace}/{name}")


def _parsed(raw: dict[str, Any], where: str) -> Account:
    try:
        return of_job(parse_job(raw))
    except InvalidJob as error:
        raise NoAccount(f"{where} cannot be read: {error}") from None

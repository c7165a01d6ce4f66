"""What a workdir remembers between runs: the job, so that a second run goes on where the first stopped.

A job that has not finished keeps its UID, round and ledger: the checkpoint folder belongs to that UID, and
rounds never fall within it. A finished job is not run again; the next run is a new job.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rerail_api.base import rfc3339
from rerail_api.v1alpha1 import InvalidJob, parse_job
from rerail_operator.shell.cluster import Object

PLACEMENT_FIELDS = ("nodeSelector", "affinity", "topologySpreadConstraints", "runtimeClassName")


class BadWorkdir(Exception):
    """This folder cannot be the workdir; the text says why."""


class Busy(BadWorkdir):
    """Another run holds it."""


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Keep other runs out of the workdir, which is made where it is missing. Raises `BadWorkdir`."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / "lock").open("a+")
    except OSError as error:
        words = f"--workdir {root}: {error.strerror or error}; name a folder that you may write to"
        raise BadWorkdir(words) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another run uses {root}; wait for it, or name another --workdir") from None
        yield


def job_to_store(raw: Object, remembered: Object | None, now: datetime) -> Object:
    """What the in-memory API server begins with: the manifest, and what is remembered of the job."""
    metadata = {**raw["metadata"], "namespace": raw["metadata"].get("namespace") or "default"}
    spec = {key: value for key, value in raw["spec"].items() if key != "ttlSecondsAfterFinished"}
    template = spec["template"]
    pod = {key: value for key, value in template["spec"].items() if key not in PLACEMENT_FIELDS}
    job = {**raw, "metadata": metadata, "spec": {**spec, "template": {**template, "spec": pod}}}
    job.pop("status", None)
    if remembered is not None and _goes_on(remembered, metadata):
        kept = remembered["metadata"]
        # The manifest may have changed; a generation of its own makes the operator look at it afresh.
        again = {"generation": int(kept.get("generation", 1)) + 1}
        metadata |= {"uid": kept["uid"], "creationTimestamp": kept["creationTimestamp"], **again}
        return {**job, "status": remembered.get("status") or {}}
    return stored(job, now)


def stored(raw: Object, now: datetime) -> Object:
    """An object as a server holds it: with a UID and the time of its creation."""
    born = {"uid": str(uuid.uuid4()), "creationTimestamp": rfc3339(now), "generation": 1}
    return {**raw, "metadata": {**raw["metadata"], **born}}


def _goes_on(remembered: Object, metadata: Any) -> bool:
    try:
        job = parse_job(remembered)
    except InvalidJob:
        return False  # written by another version: begin anew rather than guess
    same = (job.metadata.namespace, job.metadata.name) == (metadata["namespace"], metadata["name"])
    return same and not job.status.finished


def can_go_on(remembered: Object | None) -> bool:
    """Whether a next run has something to continue: a job that was suspended behind a checkpoint."""
    if remembered is None:
        return False
    try:
        status = parse_job(remembered).status
    except InvalidJob:
        return False
    return not status.finished and status.last_checkpoint is not None


def load(path: Path) -> Object | None:
    """The job as the last run left it; None where there is none or it cannot be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def save(path: Path, job: Object) -> None:
    """Replace the file in one step. Raises OSError."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(job, indent=1), encoding="utf-8")
    os.replace(fresh, path)

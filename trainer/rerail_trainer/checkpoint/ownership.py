"""Whose checkpoint folder this is. A live owner is never pushed out; a finished one hands its steps on."""

import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rerail_trainer.environment import LOCAL_JOB, JobIdentity
from rerail_trainer.failures import BadConfig, Superseded

from .layout import OWNER
from .manifest import seal, unseal
from .storage import Storage
from .tensorfile import Damaged

BEAT_SECONDS = 5.0
"""How often a living owner touches its record; the lease must be several times as long."""
_POLL_SECONDS = 0.2

RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"


@dataclass(frozen=True)
class Owner:
    """The record: who, in which round, in what state, and which process,
    so that the same host can look it up.
    """

    job: str
    uid: str
    round: int
    state: str
    process: dict[str, Any]


def read_owner(storage: Storage) -> Owner | None:
    """The owner's record; None when there is none, or none that can be trusted."""
    try:
        return Owner(**unseal(OWNER, storage.read(OWNER)))
    except (FileNotFoundError, Damaged, TypeError):
        return None


def write_owner(storage: Storage, identity: JobIdentity, round_: int, state: str) -> None:
    owner = Owner(identity.job, identity.uid, round_, state, this_process())
    storage.replace(OWNER, seal(asdict(owner)))


def refuse_unless_free(
    storage: Storage, identity: JobIdentity, take_over: str, lease_seconds: float
) -> Owner | None:
    """The owner before us, if any. Raises BadConfig that names a foreign owner, Superseded for a newer round.

    Kubernetes names are unique, so another UID under our own name is a job that has been deleted: its folder
    is ours as soon as nothing of it is alive. A local run has nobody who would resume it: the same holds.
    """
    owner = read_owner(storage)
    if owner is None:
        return None
    if owner.uid == identity.uid:
        if identity.round is not None and owner.round > identity.round:
            raise Superseded(f"round {identity.round} of {identity} is over: round {owner.round} has begun")
        if owner.uid == LOCAL_JOB and is_live(storage, owner, lease_seconds):
            raise BadConfig(
                f"{storage.root} is in use by another local run, process {owner.process.get('pid')}"
            )
        return owner
    if owner.state == FINISHED:
        return owner
    name = f"job {owner.job} (uid {owner.uid})"
    if is_live(storage, owner, lease_seconds):
        raise BadConfig(
            f"{storage.root} is in use by {name}, round {owner.round}; give this job another folder"
        )
    if owner.job in (identity.job, take_over) or owner.uid == LOCAL_JOB:
        return owner
    raise BadConfig(
        f"{storage.root} belongs to {name}, which has not finished; give this job another folder, "
        f"or continue that job's steps with --checkpoint.take_over={owner.job}"
    )


def still_ours(storage: Storage, identity: JobIdentity, round_: int) -> bool:
    """False when another job or a newer round has claimed the folder since."""
    owner = read_owner(storage)
    return owner is None or (owner.uid == identity.uid and owner.round <= round_)


def is_live(storage: Storage, owner: Owner, lease_seconds: float) -> bool:
    """Whether a process of the owner is alive: looked up on the same host, else its record is watched for a
    lease.

    Only the storage's own clock is used, and only to see it move: hosts may disagree about the time.
    """
    if owner.state != RUNNING:
        return False
    here = this_process()
    if all(owner.process.get(key) == here[key] for key in ("host", "boot", "namespace")):
        pid = int(owner.process.get("pid", 0))
        return pid != os.getpid() and _started(pid) == owner.process.get("started")
    try:
        seen = storage.last_beat(OWNER)
        deadline = time.monotonic() + lease_seconds
        while time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            if storage.last_beat(OWNER) != seen:
                return True
    except FileNotFoundError:
        return False
    return False


def this_process() -> dict[str, Any]:
    """Enough to tell this process from any other on this host, and this host from any other."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": boot,
        "namespace": namespace,
        "pid": pid,
        "started": _started(pid),
    }


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot; empty when there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]

"""Names and labels of what Rerail creates, made from the job's identity: creating twice is creating once."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from rerail_api.contract import (
    BUCKETS,
    LABEL_BIRTH_ROUND,
    LABEL_BUCKET,
    LABEL_JOB,
    LABEL_JOB_UID,
    LABEL_MANAGED,
    LABEL_NODE_RANK,
    LABEL_SINCE_ROUND,
    LABEL_SLOT,
    MANAGED_BY,
)

from .world import SPARE

UID_CHARACTERS: Final = 5
HASH_CHARACTERS: Final = 10


def pod_name(job: str, uid: str, birth_round: int, slot: int) -> str:
    """`<job>-<5 characters of the UID>-<birth round>-<slot>`.

    Never equal to the name of a pod of an earlier job called the same, nor of an earlier round that still
    hangs in Terminating.
    """
    return f"{_stem(job, uid)}-{birth_round}-{slot}"


def revision_name(job: str, uid: str, template_hash: str) -> str:
    """Name of the ControllerRevision that keeps a frozen template."""
    return f"{_stem(job, uid)}-{template_hash}"


def config_map_name(job: str, uid: str, content_hash: str) -> str:
    """Name of the immutable ConfigMap that brings the agent; other content, other name."""
    return f"{_stem(job, uid)}-agent-{content_hash}"


def _stem(job: str, uid: str) -> str:
    return f"{job}-{uid[:UID_CHARACTERS]}"


def template_hash(template: Mapping[str, Any]) -> str:
    """Hash of a template's meaning: equal for equal JSON, whatever the order of its keys."""
    canonical = json.dumps(template, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return content_hash(canonical.encode())


def content_hash(*parts: bytes) -> str:
    """Short hash of some contents in this order; a border between two parts is part of it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:HASH_CHARACTERS]


def bucket(slot: int) -> int:
    """The label bucket of a slot: a gang goes down by `BUCKETS` collection deletes."""
    return slot % BUCKETS


def job_labels(job: str, uid: str) -> dict[str, str]:
    """Labels on everything that belongs to a job."""
    return {LABEL_MANAGED: MANAGED_BY, LABEL_JOB: job, LABEL_JOB_UID: uid}


def pod_labels(job: str, uid: str, *, node_rank: int, birth_round: int, slot: int) -> dict[str, str]:
    """Labels of a new pod: it holds its node rank since the round it was born in; a spare has none."""
    return {
        **job_labels(job, uid),
        **({} if node_rank == SPARE else {LABEL_NODE_RANK: str(node_rank)}),
        LABEL_SINCE_ROUND: str(birth_round),
        LABEL_BIRTH_ROUND: str(birth_round),
        LABEL_SLOT: str(slot),
        LABEL_BUCKET: str(bucket(slot)),
    }


def promoted_labels(node_rank: int, since_round: int) -> dict[str, str]:
    """The labels that a spare gets when it takes a node rank; all others stay as they were."""
    return {LABEL_NODE_RANK: str(node_rank), LABEL_SINCE_ROUND: str(since_round)}


def bucket_labels(uid: str, number: int) -> dict[str, str]:
    """Labels that select one bucket of a job's pods."""
    return {LABEL_JOB_UID: uid, LABEL_BUCKET: str(number)}

"""The manifest: the file whose presence is the checkpoint. It lists every file,
and seals itself with a digest.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from rerail_api.contract import ExitCode
from rerail_trainer.config import canonical_json
from rerail_trainer.failures import TrainerExit

from .tensorfile import Damaged, Written

FORMAT = 2
"""Form 1 said `mode` for `layout` and knew no tokenizer; it is read as well, and never written."""


@dataclass(frozen=True)
class Author:
    """Who wrote: the job, its UID and round, and the number of the round's record in this folder."""

    job: str
    uid: str
    round: int
    sequence: int


@dataclass(frozen=True)
class Manifest:
    """One committed step.

    step: finished optimizer steps; sample_index: the next sample to take; layout: how the ranks held the
    state, in words, equal only where every rank holds the same parts; tokenizer: its digest, or how it is
    called; empty where nobody said.
    """

    step: int
    tokens: int
    sample_index: int
    identity: dict[str, Any]
    config_hash: str
    data_digest: str
    torch_version: str
    world_size: int
    layout: str
    tokenizer: str
    time: float
    author: Author
    files: tuple[Written, ...]
    format: int = FORMAT

    def encode(self) -> bytes:
        return seal(asdict(self))


def decode(path: str, data: bytes) -> Manifest:
    """Raises Damaged when `data` is not exactly what `encode` gave;
    TrainerExit for a form that is not known.
    """
    body = unseal(path, data)
    form = body.get("format")
    if form == 1:
        body = {**body, "layout": body["mode"], "tokenizer": ""}
        del body["mode"]
    elif form != FORMAT:
        message = f"{path} has form {form}, this trainer reads forms 1 to {FORMAT}"
        raise TrainerExit(ExitCode.DATA_MISMATCH, message)
    files = tuple(Written(**entry) for entry in body.pop("files"))
    return Manifest(**{**body, "files": files, "author": Author(**body["author"])})


def seal(body: dict[str, Any]) -> bytes:
    """Readable JSON with the digest of its own canonical form."""
    digest = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    return json.dumps({**body, "digest": digest}, indent=1, sort_keys=True).encode()


def unseal(path: str, data: bytes) -> dict[str, Any]:
    """The body of a sealed file. Raises Damaged when a single byte differs from what `seal` wrote."""
    try:
        body = json.loads(data)
        del body["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(path, "it is not a sealed JSON object") from error
    if not isinstance(body, dict) or seal(body) != data:
        raise Damaged(path, "its digest is wrong")
    return body

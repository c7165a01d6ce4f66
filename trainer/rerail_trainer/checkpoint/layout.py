"""Names inside a checkpoint folder; nothing else builds or parses them.

OWNER.json                       whose folder this is
.rounds/00000003.json            one record per round that began here, numbered in order of beginning
.work/<round>/                   where that round writes; gone when a newer round has begun
.work/<round>/step-00001200.ab12 a save under way
step-00001200/MANIFEST.json      a committed checkpoint
step-00001200/rank-00000.*       tensors (safetensors) and host state (JSON) of one rank
corrupt-step-00001200.ab12       found damaged at load; kept for a person
"""

import re
import secrets

MANIFEST = "MANIFEST.json"
OWNER = "OWNER.json"
ROUNDS = ".rounds"
WORK = ".work"
WORK_OWNER = "ROUND.json"

_STEP = re.compile(r"step-(\d{8,})")
_ROUND = re.compile(r"(\d{8})\.json")


def step_folder(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    match = _STEP.fullmatch(name)
    return int(match.group(1)) if match else None


def round_record(sequence: int) -> str:
    return f"{ROUNDS}/{sequence:08d}.json"


def sequence_of(name: str) -> int | None:
    match = _ROUND.fullmatch(name)
    return int(match.group(1)) if match else None


def work_folder(round_: int) -> str:
    return f"{WORK}/{round_}"


def unique(name: str) -> str:
    """`name` with a random tail: no folder is ever written twice."""
    return f"{name}.{secrets.token_hex(4)}"


def tensor_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def host_file(rank: int) -> str:
    return f"rank-{rank:05d}.json"

"""Names inside a checkpoint folder; nothing else builds or parses them.

OWNER.json                       whose folder this is
.rounds/00000003.json            one record per round that began here, numbered in order of beginning
.work/<round>.ab12cd34/          where that round writes; gone when a newer round has begun
.work/<round>.../step-00001200.3 a save under way, the third of that process
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
    """A fresh name for the place where a round writes.

    Fresh even for the same round begun once more: its former processes do not know this one.
    """
    return unique(f"{WORK}/{round_}")


def round_of(name: str) -> int | None:
    """The round whose work folder bears this name; None for one that was set aside."""
    number = name.partition(".")[0]
    return int(number) if number.isdecimal() else None


def save_folder(work: str, step: int, count: int) -> str:
    """Where save number `count` of this start writes: all ranks come to the same name, no other save does."""
    return f"{work}/{step_folder(step)}.{count}"


def unique(name: str) -> str:
    """`name` with a random tail: no folder is ever written twice."""
    return f"{name}.{secrets.token_hex(4)}"


def tensor_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def host_file(rank: int) -> str:
    return f"rank-{rank:05d}.json"

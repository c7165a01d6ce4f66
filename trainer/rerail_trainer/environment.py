"""Who this process is: its rank among the ranks, and the job and round it belongs to. Parsed once,
torch-free.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rerail_api.contract import Env

from .failures import BadConfig

LOCAL_JOB = "local"
"""Job name and UID of a run that no operator started."""


@dataclass(frozen=True)
class RankIdentity:
    """One rank; `launched` is false for a single process that was started with no rank environment at all.

    `gathering` names the job's round: only ranks that say the same meet.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    launched: bool = False
    gathering: str = ""


@dataclass(frozen=True)
class JobIdentity:
    """The job, as the operator names it, and its round; `round` is None for a run without an operator."""

    job: str = LOCAL_JOB
    uid: str = LOCAL_JOB
    round: int | None = None
    min_step: int = 0

    def __str__(self) -> str:
        return self.job if self.uid == LOCAL_JOB else f"{self.job} (uid {self.uid})"


def rank_identity(env: Mapping[str, str]) -> RankIdentity:
    """Reads RANK, WORLD_SIZE, LOCAL_RANK and MASTER_*, as a launcher or torchrun sets them.

    Raises BadConfig that names the variable when the set is incomplete or contradicts itself.
    """
    if Env.RANK not in env and Env.WORLD_SIZE not in env:
        return RankIdentity()
    rank, world = _integer(env, Env.RANK), _integer(env, Env.WORLD_SIZE)
    if not 0 <= rank < world:
        raise BadConfig(f"{Env.RANK}={rank} must lie in 0..{world - 1}, for {Env.WORLD_SIZE}={world}")
    for name in (Env.MASTER_ADDR, Env.MASTER_PORT):
        if world > 1 and not env.get(name):
            raise BadConfig(f"{name} is not set, but {Env.WORLD_SIZE}={world} ranks must meet there")
    return RankIdentity(
        rank=rank,
        world_size=world,
        local_rank=_integer(env, Env.LOCAL_RANK, default=0),
        local_world_size=_integer(env, Env.LOCAL_WORLD_SIZE, default=1),
        master_addr=env.get(Env.MASTER_ADDR, "127.0.0.1"),
        launched=bool(env.get(Env.MASTER_PORT)),
        gathering=f"{env.get(Env.JOB_UID, '')}/{env[Env.ROUND]}" if env.get(Env.ROUND) else "",
    )


def job_identity(env: Mapping[str, str]) -> JobIdentity:
    """Reads the job's name, UID, round and least step; without them this is a local run."""
    job = env.get(Env.JOB) or LOCAL_JOB
    return JobIdentity(
        job=job,
        uid=env.get(Env.JOB_UID) or (LOCAL_JOB if job == LOCAL_JOB else job),
        round=_integer(env, Env.ROUND) if env.get(Env.ROUND) else None,
        min_step=_integer(env, Env.MIN_STEP, default=0),
    )


def _integer(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise BadConfig(f"{name} must be a whole number, not {text!r}")
    return int(text)

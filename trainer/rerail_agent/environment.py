"""The environment in which a rank finds itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from rerail_agent.orders import Release
from rerail_agent.torchrun import launcher_env
from rerail_agent.workspace import Workspace
from rerail_api.contract import Env

# How the agent reaches the coordinator is no business of the ranks.
_AGENT_ONLY = (
    Env.COORDINATOR,
    Env.COORDINATOR_TLS,
    Env.COORDINATOR_NAME,
    Env.CA_FILE,
    Env.TOKEN_FILE,
    Env.TERMINATION_LOG,
    Env.LAUNCHER,
    Env.NPROC,
    Env.WARM_START,
)
_RANK_NAMES = (
    Env.RANK,
    Env.LOCAL_RANK,
    Env.WORLD_SIZE,
    Env.LOCAL_WORLD_SIZE,
    Env.GROUP_RANK,
    Env.GROUP_WORLD_SIZE,
    Env.ERROR_FILE,
    Env.CHECKPOINT_SECONDS,
)
_ROUND_NAMES = (
    Env.MASTER_ADDR,
    Env.MASTER_PORT,
    Env.ROUND,
    Env.MIN_STEP,
    Env.PROGRESS,
    Env.ADVICE,
    "TMPDIR",
)


@dataclass(frozen=True)
class Surroundings:
    """What the ranks of one round have in common."""

    inherited: Mapping[str, str]
    job_uid: str
    workspace: Workspace


def rank_env(around: Surroundings, release: Release, local_rank: int) -> dict[str, str]:
    """Launcher PerRank: one rank, ranked as under torchrun."""
    env = _common(around, release)
    env[Env.RANK] = str(release.node_rank * release.nproc + local_rank)
    env[Env.LOCAL_RANK] = str(local_rank)
    env[Env.WORLD_SIZE] = str(release.world_size)
    env[Env.LOCAL_WORLD_SIZE] = str(release.nproc)
    env[Env.GROUP_RANK] = str(release.node_rank)
    env[Env.GROUP_WORLD_SIZE] = str(release.num_nodes)
    return env


def node_env(around: Surroundings, release: Release) -> dict[str, str]:
    """Launcher PerNode: torchrun and the like, which number their ranks themselves."""
    env = _common(around, release)
    env.update(launcher_env(release, around.job_uid, str(around.workspace.error_file)))
    return env


def lasting_env(around: Surroundings, nproc: int) -> dict[str, str]:
    """What every rank finds in every round, launcher PerRank; the rest is the round's and the rank's."""
    env = {
        name: value
        for name, value in around.inherited.items()
        if name not in _AGENT_ONLY
        and name not in _RANK_NAMES
        and name not in _ROUND_NAMES
        and not name.startswith("PET_")
    }
    env.setdefault("PYTHONUNBUFFERED", "1")
    if nproc > 1:
        # as torchrun does: every rank would else start as many threads as the machine has cores
        env.setdefault("OMP_NUM_THREADS", "1")
    return env


def _common(around: Surroundings, release: Release) -> dict[str, str]:
    env = lasting_env(around, release.nproc)
    env[Env.MASTER_ADDR] = release.master_addr
    env[Env.MASTER_PORT] = str(release.master_port)
    env[Env.ROUND] = str(release.round)
    env[Env.MIN_STEP] = str(release.min_step)
    env[Env.PROGRESS] = str(around.workspace.progress)
    env[Env.ADVICE] = str(around.workspace.advice)
    if release.checkpoint_seconds:
        env[Env.CHECKPOINT_SECONDS] = str(release.checkpoint_seconds)
    env["TMPDIR"] = str(around.workspace.tmp)
    if release.master_addr == "127.0.0.1":
        # gloo would else look for the address of the host name, which a laptop off its network has not
        env.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    return env

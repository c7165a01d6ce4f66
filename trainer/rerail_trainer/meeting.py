"""Bringing the ranks together: device, backend, process groups; and taking them apart again."""

import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rerail_api.contract import ExitCode

from .config import Config, ParallelConfig
from .control import Control
from .cores import cores_per_rank
from .environment import RankIdentity
from .failures import BadConfig, TrainerExit

LOOPBACK_ADDRESSES = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Meeting:
    """The ranks, met: who this one is, its device, and the control group."""

    identity: RankIdentity
    device: torch.device
    control: Control

    @property
    def world_size(self) -> int:
        return self.identity.world_size


def meet(identity: RankIdentity, config: Config) -> Meeting:
    """Waits until all ranks are there. Raises TrainerExit RENDEZVOUS_FAILED when they do not come."""
    device = _device(identity, config.parallel)
    if "OMP_NUM_THREADS" not in os.environ:
        # Several ranks share the cores; more threads than cores would only fight.
        torch.set_num_threads(min(torch.get_num_threads(), cores_per_rank(identity.local_world_size)))
    if identity.world_size == 1:
        return Meeting(identity, device, Control(0, 1))
    if identity.master_addr in LOOPBACK_ADDRESSES:
        # Gloo looks up the host's name, which a container or laptop may not resolve; on loopback there is no
        # doubt.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    where = f"{identity.master_addr}:{os.environ.get('MASTER_PORT', '')}"
    try:
        group = _start(identity, config, device)
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainerExit(
            ExitCode.RENDEZVOUS_FAILED,
            f"rank {identity.rank} of {identity.world_size} could not meet the others at {where}: {reason}",
        ) from error
    return Meeting(identity, device, Control(identity.rank, identity.world_size, group))


def part() -> None:
    """Takes the process groups down; what goes wrong here no longer matters."""
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _start(identity: RankIdentity, config: Config, device: torch.device) -> Any:
    backend = "nccl" if device.type == "cuda" else "gloo"
    # What torch's flight recorder keeps; the watchdog's report reads it. Newer versions do so by themselves.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    patience = timedelta(seconds=config.parallel.init_seconds)
    if identity.launched:
        store = _store_of(identity, patience)
        dist.init_process_group(
            backend, store=store, rank=identity.rank, world_size=identity.world_size, timeout=patience
        )
    else:
        dist.init_process_group(backend, store=_store_of_one(), rank=0, world_size=1, timeout=patience)
    limit = timedelta(seconds=config.collective_seconds)
    group: Any = dist.new_group(backend="gloo", timeout=limit)
    dist.monitored_barrier(group=group, timeout=patience)
    # The ranks are together: from here on one collective may take as long as a step, not as long as a start.
    _set_timeout(limit)
    return group


def _set_timeout(limit: timedelta) -> None:
    public: Any = getattr(dist, "set_timeout", None)  # from 2.14 on; before that it was private
    if public is not None:
        public(limit)
    else:
        dist.distributed_c10d._set_pg_timeout(limit)


def _store_of(identity: RankIdentity, patience: timedelta) -> Any:
    """The store at MASTER_ADDR, of which this round sees its own keys only. Ports are used again: a rank of
    an older round may find this door, and must find nobody behind it.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined] # as in `_store_of_one`
    from torch.distributed.rendezvous import rendezvous

    meeting: Any = rendezvous("env://", identity.rank, identity.world_size, timeout=patience)
    store, _, _ = next(meeting)
    store.set_timeout(patience)
    return PrefixStore(identity.gathering, store) if identity.gathering else store


def _store_of_one() -> Any:
    from torch.distributed import HashStore  # type: ignore[attr-defined] # there, but missing in __all__

    return HashStore()


def _device(identity: RankIdentity, config: ParallelConfig) -> torch.device:
    wanted = config.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if identity.local_rank >= count:
        raise BadConfig(
            f"local rank {identity.local_rank} finds {count} CUDA devices; start at most {count} per node"
        )
    device = torch.device("cuda", identity.local_rank)
    torch.cuda.set_device(device)
    return device

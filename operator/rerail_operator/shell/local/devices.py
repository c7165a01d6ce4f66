"""Shares this machine's GPUs and cores between pods that believe they have a node each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rerail_operator.shell.local.inject import Gang

VISIBLE = "CUDA_VISIBLE_DEVICES"
OMP = "OMP_NUM_THREADS"
DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Devices:
    """GPUs by the names that CUDA_VISIBLE_DEVICES takes; none where nothing is to be shared."""

    names: tuple[str, ...]

    def enough_for(self, gang: Gang) -> bool:
        """Whether each rank can have one of its own: NCCL refuses two ranks on one GPU."""
        return len(self.names) >= gang.world_size

    def environment(self, node_rank: int, gang: Gang) -> dict[str, str]:
        """What the pod of a node rank is given: its slice, or no GPU at all where they do not suffice."""
        if not self.names:
            return {}
        if not self.enough_for(gang):
            return {VISIBLE: ""}
        first = node_rank * gang.nproc
        return {VISIBLE: ",".join(self.names[first : first + gang.nproc])}


def threads(environment: Mapping[str, str], gang: Gang, cores: int) -> dict[str, str]:
    """OMP_NUM_THREADS, unless the user has set it: ranks that all take every core wait for each other."""
    return {} if OMP in environment else {OMP: str(max(1, cores // gang.world_size))}


def of_this_machine(environment: Mapping[str, str], driver: Path = DRIVER) -> Devices:
    """The GPUs that the user lets us see."""
    if VISIBLE in environment:
        return Devices(tuple(filter(None, (name.strip() for name in environment[VISIBLE].split(",")))))
    count = len(list(driver.iterdir())) if driver.is_dir() else 0
    return Devices(tuple(map(str, range(count))))

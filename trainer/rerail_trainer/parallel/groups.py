"""Process groups of ranks, made once for each set; every rank asks for its sets in the same order."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from .mesh import Ranks


class Groups:
    """Groups by their ranks. The whole world is the default group, which needs no other."""

    def __init__(self, seconds: int) -> None:
        self._patience = timedelta(seconds=seconds)
        self._made: dict[Ranks, Any] = {}

    def of(self, ranks: Ranks) -> Any:
        """The group of `ranks`, which all of them ask for; sets asked for in one go never overlap."""
        if not dist.is_initialized():
            return None
        if ranks not in self._made:
            whole = len(ranks) == dist.get_world_size()
            # Only members take part: on thousands of ranks nobody waits for the groups of others.
            self._made[ranks] = (
                dist.group.WORLD
                if whole
                else dist.new_group(list(ranks), timeout=self._patience, use_local_synchronization=True)
            )
        return self._made[ranks]

    def sum(self, tensor: Tensor, ranks: Ranks) -> None:
        """Adds `tensor` up over `ranks`, in place."""
        if len(ranks) > 1:
            dist.all_reduce(tensor, group=self.of(ranks))


def exchanged(rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    """[sum(sent), ...], `sent[r]` rows for member r -> [sum(received), ...], `received[r]` from member r."""
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived

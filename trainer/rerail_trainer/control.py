"""How ranks agree on host values: a few collectives over a gloo group of their own."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rerail_api.contract import ExitCode

from .failures import TrainerExit

T = TypeVar("T")


class Control:
    """Collectives on small host values; the group is separate, so they never queue behind a gradient.

    base: the rank among all ranks of this group's rank 0; the others follow it.
    """

    def __init__(self, rank: int, world_size: int, group: Any = None, base: int = 0) -> None:
        self.rank, self.world_size, self.group, self.base = rank, world_size, group, base

    @property
    def first(self) -> bool:
        return self.rank == 0

    def collect(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on rank 0; nothing on the others."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.first else None
        dist.gather_object(value, values, dst=self.base, group=self.group)
        return values or []

    def most(self, *values: int) -> list[int]:
        """The largest of all ranks' values, one by one."""
        if self.world_size == 1:
            return list(values)
        box = torch.tensor(values, dtype=torch.int32)
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self.group)
        return box.tolist()

    def share(self, value: T) -> T:
        """Rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=self.base, group=self.group)
        return box[0]  # type: ignore[no-any-return]

    def broadcast(self, tensor: torch.Tensor, rank: int) -> None:
        """Fills `tensor`, on the CPU, with that of `rank`."""
        if self.world_size > 1:
            dist.broadcast(tensor, src=self.base + rank, group=self.group)

    def part_of(self, rank: int, size: int) -> "Control":
        """The group of `size` ranks of which this one is number `rank`, for ranks that follow each other.

        A rank whose group the others see otherwise is alone. All ranks call it together.
        """
        begin = self.rank - rank
        claims = self.collect((begin, size))
        members = [other for other, claim in enumerate(claims) if claim == (begin, size)]
        if len(members) == 1 or members != list(range(begin, begin + size)):
            return Control(0, 1, base=self.base + self.rank)
        if size == self.world_size:
            return self
        group = dist.new_group(members, backend="gloo", use_local_synchronization=True)
        return Control(rank, size, group, self.base + begin)

    def first_rank_does(self, work: Callable[[], T]) -> T:
        """Runs `work` on rank 0 and gives its result to all; what it refuses is refused on all ranks."""
        result: T | None = None
        refusal: tuple[int, str] | None = None
        failure: tuple[int, str, str] | None = None
        if self.first:
            try:
                result = work()
            except TrainerExit as error:
                refusal = (int(error.code), error.message)
            except OSError as error:
                failure = (error.errno or 0, error.strerror or str(error), str(error.filename or ""))
        result, refusal, failure = self.share((result, refusal, failure))
        if refusal is not None or failure is not None:
            # Rank 0 must not be gone before the others have read why.
            with suppress(RuntimeError):
                self.barrier()
        if refusal is not None:
            raise TrainerExit(ExitCode(refusal[0]), refusal[1])
        if failure is not None:
            raise OSError(*failure)
        return result  # type: ignore[return-value]

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        self.collect(None)


@dataclass(frozen=True)
class Wishes:
    """What any rank wants the whole gang to do at a step boundary, and how far the save under way is."""

    stop: bool = False
    save: bool = False
    saving: bool = False
    """Some rank's part of the save is not done yet."""
    save_failed: bool = False
    by_clock: bool = False
    """Rank 0 was told how many seconds to train between saves: the number of the step says nothing then."""


class Agreement:
    """The wishes of all ranks, put together one step late so that no step waits for them."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._values = _numbers(Wishes())
        self._under_way: Any = None

    def exchange(self, own: Wishes) -> Wishes:
        """Gives the agreed wishes of the call before, and sends `own`;
        every rank calls it at every boundary.
        """
        agreed = self.finish()
        self._values = _numbers(own)
        if self._control.world_size > 1:
            self._under_way = dist.all_reduce(
                self._values, op=dist.ReduceOp.MAX, group=self._control.group, async_op=True
            )
        return agreed

    def finish(self) -> Wishes:
        """Waits for what is under way; afterwards nothing is."""
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None
        agreed = Wishes(*map(bool, self._values.tolist()))
        self._values = _numbers(Wishes())
        return agreed


def _numbers(wishes: Wishes) -> torch.Tensor:
    return torch.tensor(astuple(wishes), dtype=torch.int32)

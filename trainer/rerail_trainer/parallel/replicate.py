"""Data parallelism with whole replicas: gradients summed over ranks in fixed buckets, while backward still
runs. Tensor and expert ranks hold other parameters, so each bucket is summed over those that hold the same.

Not torch's DistributedDataParallel, for two reasons: constructing that one imports the compiler, which
doubles the start-up time of every rank, and it cuts its buckets anew after the first pass, so that the order
of sums, and with it the last bits, would differ between a run that was resumed and one that was not.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 1024 * 1024


class Bucket:
    """Gradients of some parameters in one flat tensor; each parameter's `.grad` is a view of its part."""

    def __init__(self, parameters: list[nn.Parameter], group: Any) -> None:
        self.parameters, self.group = parameters, group
        first = parameters[0]
        self.flat = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
        self.waiting = 0
        self.work: Any = None

    def attach(self) -> None:
        """Points every `.grad` at its part of the flat tensor."""
        begin = 0
        for parameter in self.parameters:
            parameter.grad = self.flat[begin : begin + parameter.numel()].view_as(parameter)
            begin += parameter.numel()


class ReplicatedGradients:
    """Sums gradients over ranks. Buckets start in the same order on every rank, whichever is ready first."""

    def __init__(self, model: nn.Module, groups: Mapping[str, Any]) -> None:
        """groups: by parameter name, the ranks over which its gradient is summed."""
        named = [(p, groups[name]) for name, p in model.named_parameters() if p.requires_grad]
        self._buckets = _cut(list(reversed(named)))
        self._next = len(self._buckets)
        for bucket in self._buckets:
            bucket.attach()
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._hook(bucket))  # type: ignore[no-untyped-call]

    @contextmanager
    def summed(self) -> Iterator[None]:
        """The backward pass within is the last of its step: on leaving,
        every `.grad` is the sum over its ranks.
        """
        self._next = 0
        for bucket in self._buckets:
            bucket.waiting = len(bucket.parameters)
        yield
        for bucket in self._buckets:
            bucket.waiting = 0  # a parameter without a gradient in this pass holds nothing up
        self._start_ready()
        for bucket in self._buckets:
            if bucket.work is not None:
                bucket.work.wait()
            bucket.work = None

    def zero(self) -> None:
        """Makes every gradient zero; `.grad` stays in place."""
        torch._foreach_zero_([bucket.flat for bucket in self._buckets])

    def _hook(self, bucket: Bucket) -> Any:
        def accumulated(_: Tensor) -> None:
            if self._next < len(self._buckets):
                bucket.waiting -= 1
                self._start_ready()

        return accumulated

    def _start_ready(self) -> None:
        while self._next < len(self._buckets) and self._buckets[self._next].waiting <= 0:
            bucket = self._buckets[self._next]
            if dist.get_world_size(bucket.group) > 1:
                bucket.work = dist.all_reduce(bucket.flat, group=bucket.group, async_op=True)
            self._next += 1


def _cut(named: list[tuple[nn.Parameter, Any]]) -> list[Bucket]:
    """Buckets of parameters with one dtype and group, in the order in which their last gradient is due."""
    open_buckets: dict[tuple[torch.dtype, int], list[nn.Parameter]] = {}
    buckets = []
    for parameter, group in named:
        key = (parameter.dtype, id(group))
        members = open_buckets.setdefault(key, [])
        if members and sum(p.nbytes for p in members) + parameter.nbytes > BUCKET_BYTES:
            buckets.append(Bucket(members, group))
            members = open_buckets[key] = []
        members.append(parameter)
    of = {id(group): group for _, group in named}
    return buckets + [Bucket(members, of[key[1]]) for key, members in open_buckets.items() if members]

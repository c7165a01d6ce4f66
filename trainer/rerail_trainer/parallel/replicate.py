"""Data parallelism with whole replicas: gradients summed over ranks in fixed buckets, while backward still
runs.

Not torch's DistributedDataParallel, for two reasons: constructing that one imports the compiler, which
doubles the start-up time of every rank, and it cuts its buckets anew after the first pass, so that the order
of sums, and with it the last bits, would differ between a run that was resumed and one that was not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 1024 * 1024


class Bucket:
    """Gradients of some parameters in one flat tensor; each parameter's `.grad` is a view of its part."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
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
    """Sums gradients over all ranks. Buckets start in the same order on every rank,
    whichever is ready first.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buckets = _cut([p for p in reversed(list(model.parameters())) if p.requires_grad])
        self._next = len(self._buckets)
        for bucket in self._buckets:
            bucket.attach()
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._hook(bucket))  # type: ignore[no-untyped-call]

    @contextmanager
    def summed(self) -> Iterator[None]:
        """The backward pass within is the last of its step: on leaving,
        every `.grad` is the sum over all ranks.
        """
        self._next = 0
        for bucket in self._buckets:
            bucket.waiting = len(bucket.parameters)
        yield
        for bucket in self._buckets:
            bucket.waiting = 0  # a parameter without a gradient in this pass holds nothing up
        self._start_ready()
        for bucket in self._buckets:
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
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
            self._next += 1


def _cut(parameters: list[nn.Parameter]) -> list[Bucket]:
    groups: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        if not groups or size + parameter.nbytes > BUCKET_BYTES or groups[-1][0].dtype != parameter.dtype:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.nbytes
    return [Bucket(group) for group in groups]

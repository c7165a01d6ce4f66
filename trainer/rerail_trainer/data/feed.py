"""From a step number to this rank's micro-batches: a pure function, prefetched a few steps ahead."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rerail_trainer.config import Config
from rerail_trainer.data.windows import Arrangement, Source
from rerail_trainer.failures import BadConfig

STEPS_AHEAD = 3
"""Deep enough that a slow read of one step hides behind the others."""


@dataclass(frozen=True)
class Share:
    """What one rank takes of every step: `micro_batches` times `micro_batch` sequences,
    beginning at `first`.
    """

    first: int
    micro_batch: int
    micro_batches: int

    @property
    def sequences(self) -> int:
        return self.micro_batch * self.micro_batches


def share_of(config: Config, rank: int, world_size: int) -> Share:
    """Cuts the fixed global batch evenly; raises BadConfig that names sizes that fit."""
    total = config.sequences_per_step
    if total % world_size:
        fitting = [size for size in range(1, total + 1) if total % size == 0]
        raise BadConfig(
            f"{total} sequences per step (batch.tokens_per_step / model.seq_len) cannot be cut "
            f"over {world_size} "
            f"ranks evenly; {world_size} ranks need a multiple, or use one of {fitting[-8:]} ranks"
        )
    own = total // world_size
    micro_batch = min(config.batch.micro_batch, own)
    if own % micro_batch:
        raise BadConfig(f"batch.micro_batch={micro_batch} must divide the {own} sequences of a rank")
    return Share(rank * own, micro_batch, own // micro_batch)


class MicroBatch(NamedTuple):
    """int64 [micro_batch, seq_len] each. A target of -100 counts for nothing; `documents` numbers the
    documents of a row, None where attention may cross them.
    """

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None


class Batch(NamedTuple):
    """All sequences of one rank and step, on the CPU: int64 tokens [sequences, seq_len + 1], and targets and
    documents [sequences, seq_len] where they are not plain.
    """

    tokens: Tensor
    targets: Tensor | None
    documents: Tensor | None


class Feed:
    """Micro-batches of any step, for one rank. Holds no position: the step alone decides."""

    def __init__(self, config: Config, source: Source, share: Share, device: torch.device) -> None:
        self._windows = source.windows(Arrangement.of(config))
        self._per_step = config.sequences_per_step
        self._share, self._device = share, device
        self.windows = self._windows.count
        """Windows of one epoch."""
        self.notes = self._windows.notes
        self.every_target_counts = self._windows.every_target_counts
        self.wait_seconds = 0.0
        """How long steps have waited for their data, in all."""
        self._pool = ThreadPoolExecutor(1, "feed", initializer=_use, initargs=(device,))
        self._ahead: deque[tuple[int, Future[Batch]]] = deque()

    def take(self, step: int) -> list[MicroBatch]:
        """The micro-batches of step index `step` (from 0), on the device."""
        while self._ahead and self._ahead[0][0] != step:
            self._ahead.popleft()[1].cancel()
        following = self._ahead[-1][0] + 1 if self._ahead else step
        for index in range(following, step + STEPS_AHEAD + 1):
            self._ahead.append((index, self._pool.submit(self.batch, index)))
        began = time.perf_counter()
        batch = self._ahead.popleft()[1].result()
        self.wait_seconds += time.perf_counter() - began
        return self._cut(batch)

    def batch(self, step: int) -> Batch:
        """This rank's sequences of step index `step`, in pinned memory for a GPU."""
        first = step * self._per_step + self._share.first
        rows = self._windows.rows(np.arange(first, first + self._share.sequences, dtype=np.int64))
        arrays = (rows.tokens.astype(np.int64), rows.targets, rows.documents)
        tensors = [None if array is None else torch.from_numpy(array) for array in arrays]
        if self._device.type == "cuda":
            tensors = [None if tensor is None else tensor.pin_memory() for tensor in tensors]
        return Batch(*tensors)  # type: ignore[arg-type]

    def _cut(self, batch: Batch) -> list[MicroBatch]:
        size = self._share.micro_batch
        tokens, targets, documents = (
            None if tensor is None else tensor.to(self._device, non_blocking=True) for tensor in batch
        )
        assert tokens is not None  # noqa: S101
        targets = tokens[:, 1:] if targets is None else targets
        return [
            MicroBatch(
                tokens[begin : begin + size, :-1],
                targets[begin : begin + size],
                None if documents is None else documents[begin : begin + size],
            )
            for begin in range(0, len(tokens), size)
        ]


def _use(device: torch.device) -> None:
    """In the feed's thread: pinning memory would otherwise open a context on GPU 0, not on the rank's own."""
    if device.type == "cuda":
        torch.cuda.set_device(device)

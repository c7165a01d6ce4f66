"""From a step number to this rank's micro-batches: a pure function, prefetched one step ahead."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rerail_trainer.config import Config
from rerail_trainer.data.corpus import Corpus
from rerail_trainer.data.order import window_of
from rerail_trainer.failures import BadConfig


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


class Feed:
    """Micro-batches of any step, for one rank. Holds no position: the step alone decides."""

    def __init__(self, config: Config, corpus: Corpus, share: Share, device: torch.device) -> None:
        self._seq_len, self._seed, self._shuffle = config.model.seq_len, config.run.seed, config.data.shuffle
        self._per_step = config.sequences_per_step
        self._corpus, self._share, self._device = corpus, share, device
        # Windows share no target, and the last target of one is the first input of the next.
        self.windows = (corpus.tokens - 1) // self._seq_len
        if self.windows < 1:
            raise BadConfig(f"the corpus has {corpus.tokens} tokens, one window needs {self._seq_len + 1}")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: tuple[int, Future[Tensor]] | None = None

    def take(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """(inputs, targets) of each micro-batch of step index `step` (from 0): int64 [micro_batch,
        seq_len].
        """
        if self._ahead is not None and self._ahead[0] == step:
            rows = self._ahead[1].result()
        else:
            rows = self.rows(step)
        self._ahead = (step + 1, self._pool.submit(self.rows, step + 1))
        rows = rows.to(self._device, non_blocking=True)
        return [(part[:, :-1], part[:, 1:]) for part in torch.split(rows, self._share.micro_batch)]

    def rows(self, step: int) -> Tensor:
        """This rank's sequences of step index `step`: int64 [sequences, seq_len + 1] on the CPU."""
        first = step * self._per_step + self._share.first
        samples = np.arange(first, first + self._share.sequences, dtype=np.int64)
        windows = window_of(samples, self.windows, self._seed, self._shuffle)
        rows = np.stack([self._corpus.slice(int(w) * self._seq_len, self._seq_len + 1) for w in windows])
        tensor = torch.from_numpy(rows)
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

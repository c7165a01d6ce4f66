"""The yardstick: a plain training loop around the same model, as one would write it well in PyTorch alone.

No checkpoints, no signals, no reports; data by index from one array, torch.optim's fused AdamW, torch's
clipping. The loss is read every `_LOG_EVERY` steps, as loops do that print now and then.
"""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from rerail_trainer.config import Config
from rerail_trainer.data.source import open_source
from rerail_trainer.data.windows import Arrangement
from rerail_trainer.model import Transformer, fill
from rerail_trainer.optim import learning_rate

from .training import Tick

_LOG_EVERY = 10
_ROWS = 4096


class PlainTraining:
    """Ready for its first step; `more` makes steps."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = torch.device(config.parallel.device)
        self.low = torch.bfloat16 if config.parallel.compute_dtype == "bfloat16" else None
        with self.device:
            self.model = Transformer(config.model)
        fill(self.model, config.run.seed)
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        optim = config.optim
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": optim.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            fused=True,
        )
        self.rows = self._rows()
        self.generator = np.random.default_rng(config.run.seed)
        self.step = 0
        self.losses: list[float] = []

    def _rows(self) -> np.ndarray:
        """Some windows of the corpus, uint16 or uint32 [windows, seq_len + 1]."""
        windows = open_source(self.config).windows(Arrangement.of(self.config))
        return windows.rows(np.arange(min(_ROWS, windows.count), dtype=np.int64)).tokens

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, targets) of the micro-batches of one step."""
        size = self.config.batch.micro_batch
        for _ in range(self.config.sequences_per_step // size):
            chosen = self.rows[self.generator.integers(0, len(self.rows), size)]
            tokens = torch.from_numpy(chosen.astype(np.int64))
            if self.device.type == "cuda":
                tokens = tokens.pin_memory().to(self.device, non_blocking=True)
            yield tokens[:, :-1], tokens[:, 1:]

    def more(self, steps: int) -> list[Tick]:
        """Makes `steps` steps; when each was issued."""
        ticks = []
        parameters: list[nn.Parameter] = list(self.model.parameters())
        for _ in range(steps):
            loss = torch.zeros((), device=self.device)
            for inputs, targets in self.batches():
                with torch.autocast(self.device.type, dtype=self.low, enabled=self.low is not None):
                    part = self.model(inputs, targets) / self.config.batch.tokens_per_step
                part.backward()
                loss += part.detach()
            torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.clip)
            rate = learning_rate(self.step, self.config.optim, self.config.horizon_steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            if self.step % _LOG_EVERY == 0:
                self.losses.append(loss.item())
            ticks.append(Tick(time.perf_counter(), time.process_time()))
        return ticks

"""Keys and values of positions that a model has seen already, so that sampling computes new ones only."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rerail_trainer.config import ModelConfig


@dataclass
class CachedBlock:
    """One block's. Both: [batch, capacity, kv_heads, head_dim]."""

    keys: Tensor
    values: Tensor

    def extended(self, key: Tensor, value: Tensor, before: int) -> tuple[Tensor, Tensor]:
        """Puts [batch, time, ...] behind the `before` positions that are filled; all of them up to here."""
        end = before + key.shape[1]
        self.keys[:, before:end] = key
        self.values[:, before:end] = value
        return self.keys[:, :end], self.values[:, :end]


@dataclass
class Cache:
    """A whole model's. Goes with no gradients; every row of the batch stands at the same position."""

    blocks: list[CachedBlock]
    length: int = 0
    """Positions that are filled; setting it back forgets those behind."""

    @property
    def capacity(self) -> int:
        """How many there may be."""
        return self.blocks[0].keys.shape[1]


def new_cache(config: ModelConfig, batch: int, like: Tensor, capacity: int = 0) -> Cache:
    """Room for `capacity` positions (0: seq_len) on the device and in the dtype of `like`.

    batch x capacity x layers x 2 x kv_heads x head_dim values.
    """
    shape = (batch, capacity or config.seq_len, config.kv_heads, config.head_dim)
    empty = [torch.empty(shape, dtype=like.dtype, device=like.device) for _ in range(2 * config.layers)]
    return Cache([CachedBlock(*pair) for pair in zip(empty[::2], empty[1::2], strict=True)])

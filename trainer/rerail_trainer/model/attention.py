"""Causal self-attention with shared key heads, masks and a cache."""

from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rerail_trainer.config import ModelConfig

from .cache import CachedBlock
from .layers import Matrix, Norm
from .rope import rotate
from .window import Window

# Those that take a mask, the faster one first.
_MASKED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# On Hopper, cuDNN's backward pass is 1.6 times as fast as FlashAttention 2's at head_dim 128.
_UNMASKED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, *_MASKED]


class Attention(nn.Module):
    """`kv_heads` key and value heads serve `heads` query heads.

    How many heads there are is read off the projections' outputs, so a rank may hold some of them only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.query = Matrix(config.dim, config.heads * config.head_dim)
        self.key = Matrix(config.dim, config.kv_heads * config.head_dim)
        self.value = Matrix(config.dim, config.kv_heads * config.head_dim)
        self.out = Matrix(config.heads * config.head_dim, config.dim)
        self.query_norm, self.key_norm = _norms(config)
        self.norm_whole = config.qk_norm == "full"

    def forward(self, x: Tensor, window: Window, cached: CachedBlock | None = None) -> Tensor:
        """x: [batch, time, dim] -> the same shape."""
        query, key, value = self.query(x), self.key(x), self._heads(self.value(x))
        if self.norm_whole:
            query, key = self._heads(self.query_norm(query)), self._heads(self.key_norm(key))
        else:
            query, key = self.query_norm(self._heads(query)), self.key_norm(self._heads(key))
        query, key = (rotate(turned, window.cosine, window.sine) for turned in (query, key))
        if cached is not None:
            key, value = cached.extended(key, value, window.before)
        mixed = attend(query, key, value, window)
        return self.out(mixed.flatten(2))  # type: ignore[no-any-return]

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:-1], -1, self.head_dim)


def attend(query: Tensor, key: Tensor, value: Tensor, window: Window) -> Tensor:
    """Scaled dot-product attention. All: [batch, time, heads, head_dim], fewer heads for key and value."""
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    order = _UNMASKED if window.mask is None else _MASKED
    with sdpa_kernel(order, set_priority=True) if query.is_cuda else nullcontext():
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=window.mask,
            is_causal=window.causal,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return mixed.transpose(1, 2)


def _norms(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    if config.qk_norm == "none":
        return nn.Identity(), nn.Identity()
    whole = config.qk_norm == "full"
    return tuple(  # type: ignore[return-value]
        Norm(config.head_dim * (heads if whole else 1), config.norm_eps)
        for heads in (config.heads, config.kv_heads)
    )

"""Rotary position embedding (Su et al., 2021), halves form, and Llama 3.1's stretch of it."""

import math

import torch
from torch import Tensor

from rerail_trainer.architecture import rope_scaling_of
from rerail_trainer.config import ModelConfig


def rope_table(config: ModelConfig) -> Tensor:
    """float32 [2, seq_len, head_dim / 2]: cosines, then sines, of position x frequency."""
    angles = torch.outer(torch.arange(config.seq_len, dtype=torch.float32), frequencies(config))
    return torch.stack((angles.cos(), angles.sin()))


def frequencies(config: ModelConfig) -> Tensor:
    """float32 [head_dim / 2]: theta^(-2i / head_dim), long wavelengths stretched as `rope_scaling` says.

    Stretched in full where a wavelength exceeds ORIGINAL / LOW positions, not at all below ORIGINAL / HIGH,
    in between by linear interpolation in ORIGINAL / wavelength (Llama 3.1 reference).
    """
    index = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    plain = 1.0 / config.rope_theta**index
    scaling = rope_scaling_of(config)
    if scaling is None:
        return plain
    turns = scaling.original * plain / (2 * math.pi)
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0.0, 1.0)
    return plain * (kept + (1.0 - kept) / scaling.factor)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns pairs (i, i + head_dim / 2). x: [batch, time, heads, head_dim]; angles: [(batch,) time, half]."""
    first, second = x.float().chunk(2, dim=-1)
    cosine, sine = cosine[..., None, :], sine[..., None, :]
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x.dtype)

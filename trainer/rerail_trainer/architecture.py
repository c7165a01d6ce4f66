"""What a model's settings must fulfil, and the one setting that is a small language. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .failures import BadConfig

if TYPE_CHECKING:  # config.py checks itself with this module
    from .config import ModelConfig


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretch of long wavelengths; `original` is the sequence length of the first training."""

    factor: float
    low: float
    high: float
    original: float


def rope_scaling_of(model: ModelConfig) -> RopeScaling | None:
    """Raises BadConfig if model.rope_scaling is neither empty nor llama3:FACTOR:LOW:HIGH:ORIGINAL."""
    if not model.rope_scaling:
        return None
    name, *numbers = model.rope_scaling.split(":")
    try:
        scaling = RopeScaling(*(float(number) for number in numbers))
    except (TypeError, ValueError):
        scaling = RopeScaling(0.0, 0.0, 0.0, 0.0)
    if name != "llama3" or not 0 < scaling.low < scaling.high or scaling.factor <= 0 or scaling.original <= 0:
        raise BadConfig(
            f"model.rope_scaling={model.rope_scaling} must be llama3:FACTOR:LOW:HIGH:ORIGINAL with "
            "LOW < HIGH, as in llama3:8:1:4:8192"
        )
    return scaling


def check_model(model: ModelConfig) -> None:
    """Raises BadConfig with what to write instead."""
    rope_scaling_of(model)
    for holds, message in _rules(model):
        if not holds:
            raise BadConfig(message)


def _rules(model: ModelConfig) -> Iterator[tuple[bool, str]]:
    yield (
        model.heads % model.kv_heads == 0,
        f"model.kv_heads={model.kv_heads} must divide model.heads={model.heads}",
    )
    yield model.head_dim % 2 == 0, f"model.head_dim={model.head_dim} must be even: RoPE turns pairs"
    yield 0 <= model.dropout < 1, f"model.dropout={model.dropout} must be at least 0 and below 1"
    for name in ("experts", "expert_ffn", "shared_ffn", "balance_loss", "balance_bias", "z_loss"):
        value = getattr(model, name)
        yield value >= 0, f"model.{name}={value} must not be negative"
    if not model.experts:
        yield (
            model.shared_ffn == 0,
            f"model.shared_ffn={model.shared_ffn} stands beside experts: set model.experts too",
        )
        return
    yield (
        1 <= model.experts_per_token <= model.experts,
        f"model.experts_per_token={model.experts_per_token} must be 1 to model.experts={model.experts}",
    )
    yield (
        0 <= model.dense_layers < model.layers,
        f"model.dense_layers={model.dense_layers} must be 0 to {model.layers - 1}: "
        "a model with experts has them in some block",
    )
    for name, width in (("dim", model.dim), ("expert_ffn", model.expert_ffn or model.ffn)):
        yield (
            width % 8 == 0,
            f"model.{name}={width} must be a multiple of 8: products of experts want rows of whole 16 bytes",
        )
    yield model.mlp == "swiglu", "model.mlp=gelu has no experts: use model.mlp=swiglu with model.experts"

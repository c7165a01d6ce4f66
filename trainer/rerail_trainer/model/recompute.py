"""What the backward pass computes again instead of keeping it."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "block"]

_KEPT = {
    operator
    for name in (
        "mm",
        "bmm",
        "addmm",
        "_grouped_mm",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if (operator := getattr(getattr(torch.ops.aten, name, None), "default", None)) is not None
}
"""What costs most to compute: matrix products and attention."""


def again(kind: Recompute, random: bool, body: Callable[..., Any], *inputs: Any) -> Any:
    """body(*inputs), with less kept for its backward pass. random: whether body draws random numbers."""
    if kind == "none" or not torch.is_grad_enabled():
        return body(*inputs)
    wishes: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": random}
    if kind == "selective":
        wishes["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(body, *inputs, **wishes)


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE

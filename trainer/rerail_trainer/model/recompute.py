"""What the backward pass computes again instead of keeping it."""

from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
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
        # The compiler knows torch's own way only.
        compiled = partial(create_selective_checkpoint_contexts, _policy)
        wishes["context_fn"] = compiled if torch.compiler.is_compiling() else keep_products
    return checkpoint(body, *inputs, **wishes)


def keep_products() -> tuple["_Keeping", "_Reusing"]:
    """Contexts for the forward pass and its repetition, which takes products and attention from the first.

    Not torch's, which want to see the very same operations twice: experts that FSDP shards by themselves are
    gathered within a block, and not by the same operations the second time.
    """
    kept: dict[Any, deque[Any]] = defaultdict(deque)
    return _Keeping(kept), _Reusing(kept)


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation. kept: results of each kept operation, in the order of the calls."""

    def __init__(self, kept: dict[Any, deque[Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = kept

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled parts of a block run as compiled, and are recomputed as a whole."""
        return True


class _Keeping(_Products):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _KEPT:
            # Detached: the result itself is about to become part of the graph.
            self.kept[func].append(tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, result))
        return result


class _Reusing(_Products):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KEPT:
            return self.kept[func].popleft()
        return func(*args, **(kwargs or {}))


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE

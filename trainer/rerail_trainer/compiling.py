"""Compiled blocks: one block is compiled and serves all that are alike, so the time does not grow with depth.

Compiling the whole model would take minutes more for little: blocks are where the time goes.
"""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .failures import BadConfig
from .model import Transformer
from .model.loss import softmax_loss
from .model.moe import MixtureOfExperts

_COMPILERS = {
    # What the generated code is compiled with: C++ for a CPU; for a GPU a little C around Triton's kernels.
    "cpu": ("CXX", ("g++", "clang++"), "a C++ compiler (g++)"),
    "cuda": ("CC", ("gcc", "clang", "cc"), "a C compiler (gcc)"),
}

_REASON_LENGTH = 400


def compile_blocks(model: Transformer, device: torch.device, own_collectives: bool) -> None:
    """Lets every block, and the softmax of the loss, be compiled at its first pass.

    own_collectives: whether blocks hold collectives of this package (tensor or expert ranks). These stay
    outside of what is compiled: attention and the dense feed-forwards, each between its collectives.
    Raises BadConfig where this image lacks what compiling needs.
    """
    _require_tools(device.type)
    if device.type == "cpu":
        _keep_headers()
    blocks: Any = model.blocks
    for block in blocks:
        if not own_collectives:
            block.compile(dynamic=False)
            continue
        mixed = isinstance(block.feed_forward, MixtureOfExperts)
        feed_forward = block.feed_forward.shared if mixed else block.feed_forward
        for part in (block.attention, feed_forward):
            if part is not None:
                # Not part.compile(): that would take the hooks in, and in them are the collectives.
                part.forward = torch.compile(part.forward, dynamic=False)
    model.head.softmax = torch.compile(softmax_loss, dynamic=False)


@contextmanager
def compiling() -> Iterator[None]:
    """Around the first pass: what the compiler cannot do becomes one line that says what helps."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # The first says which part failed, the second why.
        reason = " ".join(lines[:2])[:_REASON_LENGTH]
        raise BadConfig(
            f"parallel.compile=true does not work here: {type(error).__name__}: {reason}; "
            "set parallel.compile=false (with experts, parallel.compute_dtype=bfloat16 may help as well)"
        ) from error


def _keep_headers() -> None:
    """What kernels for a CPU include is compiled first, for seconds, into the folder for temporary files, and
    that ends with the container: here it goes beside the kernels. Torch has no setting for it.
    """
    from torch._inductor import codecache

    kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if kept and hasattr(codecache, "_HEADER_DIR"):
        codecache._HEADER_DIR = os.path.join(kept, "precompiled_headers")
        codecache._HEADER_LOCK_DIR = os.path.join(codecache._HEADER_DIR, "locks")


def _require_tools(device_type: str) -> None:
    variable, names, spoken = _COMPILERS[device_type]
    named = os.environ.get(variable, "")
    if not any(shutil.which(name) for name in ([named] if named else names)):
        raise BadConfig(
            f"parallel.compile=true needs {spoken} in this image"
            + (f"; {variable}={named} is not found" if named else "")
            + "; install it, or set parallel.compile=false"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        raise BadConfig(
            f"parallel.compile=true needs Python's C headers, and {header} is not there; "
            "install them (python3-dev), or set parallel.compile=false"
        )

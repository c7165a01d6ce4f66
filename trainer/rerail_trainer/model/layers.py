"""The small parts that blocks are made of: linear maps, tables, norms and the dense feed-forward.

Their first values come from `fill`: torch's own would only cost time.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from rerail_trainer.config import ModelConfig


class Matrix(nn.Linear):
    """A linear map without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Left to `fill`."""


class Table(nn.Embedding):
    """An embedding."""

    def reset_parameters(self) -> None:
        """Left to `fill`."""


class Norm(nn.RMSNorm):
    """RMSNorm (Zhang and Sennrich, 2019) over the last dimension, in the dtype of its input."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        # The fused kernel wants one dtype; it computes in float32 inside, whatever that is.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020), down(silu(gate(x)) * up(x)), or down(gelu(up(x)))."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.gate = Matrix(config.dim, width) if config.mlp == "swiglu" else None
        self.up = Matrix(config.dim, width)
        self.down = Matrix(width, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim] -> the same shape."""
        up = self.up(x)
        # GELU in the form of GPT-2, which approximates by tanh.
        inner = F.gelu(up, approximate="tanh") if self.gate is None else F.silu(self.gate(x)) * up
        return self.down(inner)  # type: ignore[no-any-return]

"""The model: from a configuration to a module, its first values, and its counts."""

from .transformer import Transformer, fill, flops_per_token, param_counts

__all__ = ["Transformer", "fill", "flops_per_token", "param_counts"]

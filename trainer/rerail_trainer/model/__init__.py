"""The model: from a configuration to a module, its first values, and its counts."""

from .cache import Cache, new_cache
from .counts import flops_per_token, param_counts
from .initial import fill, fill_roughly
from .loss import IGNORED
from .moe import balance, forget_load
from .transformer import Transformer

__all__ = [
    "IGNORED",
    "Cache",
    "Transformer",
    "balance",
    "fill",
    "fill_roughly",
    "flops_per_token",
    "forget_load",
    "new_cache",
    "param_counts",
]

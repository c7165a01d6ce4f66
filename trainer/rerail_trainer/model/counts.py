"""How many parameters a model has, and how much it computes per token. Torch-free."""

from rerail_trainer.config import ModelConfig
from rerail_trainer.planning.parts import flops_per_token, parts_of

__all__ = ["flops_per_token", "param_counts"]


def param_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters: total; active, which one token meets; matmul, the active ones in matrix products.

    matmul counts the output head and leaves the input embedding out; a tied matrix counts as the head.
    """
    parts = parts_of(config)
    return {
        "total": sum(part.total for part in parts),
        "active": sum(part.active for part in parts),
        "matmul": sum(part.matmul for part in parts),
    }

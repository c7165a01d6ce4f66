"""How many parameters a model has and how much it computes per token. Torch-free."""

from rerail_trainer.config import ModelConfig


def param_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters: total; active, which one token meets; matmul, the active ones in matrix products.

    matmul counts the output head and leaves the input embedding out; a tied matrix counts as the head.
    """
    attention = config.dim * config.head_dim * 2 * (config.heads + config.kv_heads)
    whole, per_token = _feed_forwards(config)
    head = config.vocab * config.dim
    embedding = 0 if config.tie else head
    rest = config.layers * attention + head
    return {
        "total": rest + whole + _norms(config) + embedding,
        "active": rest + per_token + _norms(config) + embedding,
        "matmul": rest + per_token,
    }


def _feed_forwards(config: ModelConfig) -> tuple[int, int]:
    """Parameters of all feed-forwards of all blocks: all of them, and those that one token meets."""
    matrices = 3 if config.mlp == "swiglu" else 2
    dense = matrices * config.dim * config.ffn
    if not config.experts:
        return config.layers * dense, config.layers * dense
    expert = 3 * config.dim * (config.expert_ffn or config.ffn)
    always = config.dim * config.experts + matrices * config.dim * config.shared_ffn
    mixed = config.layers - config.dense_layers
    return tuple(  # type: ignore[return-value]
        config.dense_layers * dense + mixed * (always + count * expert)
        for count in (config.experts, config.experts_per_token)
    )


def _norms(config: ModelConfig) -> int:
    heads = {"none": 0, "head": 2, "full": config.heads + config.kv_heads}[config.qk_norm]
    return (2 * config.layers + 1) * config.dim + config.layers * heads * config.head_dim


def flops_per_token(config: ModelConfig) -> int:
    """Training FLOP per token: 6 x matmul parameters + 12 x layers x heads x head_dim x seq_len.

    The attention term is not halved for the causal mask; recomputation is never counted.
    """
    attention = 12 * config.layers * config.heads * config.head_dim * config.seq_len
    return 6 * param_counts(config)["matmul"] + attention

"""A dense decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU. Built on the meta device,
filled by name.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerail_trainer.config import ModelConfig
from rerail_trainer.parallel.shards import local_shard


class Matrix(nn.Linear):
    """A linear map without bias, whose values `fill` gives: torch's own first values would only cost time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Left to `fill`."""


class Table(nn.Embedding):
    """An embedding whose values `fill` gives."""

    def reset_parameters(self) -> None:
        """Left to `fill`."""


class Attention(nn.Module):
    """Causal self-attention; `kv_heads` key and value heads serve `heads` query heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.query = Matrix(config.dim, config.heads * config.head_dim)
        self.key = Matrix(config.dim, config.kv_heads * config.head_dim)
        self.value = Matrix(config.dim, config.kv_heads * config.head_dim)
        self.out = Matrix(config.heads * config.head_dim, config.dim)
        normed = config.qk_norm != "none"
        self.query_norm, self.key_norm = (
            nn.RMSNorm(config.head_dim, eps=config.norm_eps) if normed else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """x: [batch, time, dim] -> the same shape."""
        batch, length, _ = x.shape
        query = self.query(x).view(batch, length, self.heads, self.head_dim)
        key = self.key(x).view(batch, length, self.kv_heads, self.head_dim)
        value = self.value(x).view(batch, length, self.kv_heads, self.head_dim)
        query = rotate(self.query_norm(query), cosine, sine)
        key = rotate(self.key_norm(key), cosine, sine)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            enable_gqa=self.heads != self.kv_heads,
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Matrix(config.dim, config.ffn)
        self.up = Matrix(config.dim, config.ffn)
        self.down = Matrix(config.ffn, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        return x + self.feed_forward(self.feed_forward_norm(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Tokens in, summed cross-entropy out, so that the caller normalises over all ranks and micro-batches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # No buffer: it follows from the configuration, and DDP would send buffers around before every pass.
        self.rope = torch.empty(0)
        self.embedding = Table(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.head = Matrix(config.dim, config.vocab)
        if config.tie:
            self.head.weight = self.embedding.weight

    def logits(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [batch, time] -> [batch, time, vocab] in the compute dtype."""
        x = self.embedding(tokens)
        cosine, sine = self.rope[0, : tokens.shape[1]], self.rope[1, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, cosine, sine)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """tokens, targets: int64 [batch, time] -> float32 scalar, the sum of the losses of all tokens."""
        logits = self.logits(tokens).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum")


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., 2021), halves form. x: [batch, time, heads, head_dim]."""
    first, second = x.float().chunk(2, dim=-1)
    cosine, sine = cosine[:, None, :], sine[:, None, :]
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x.dtype)


def rope_table(config: ModelConfig) -> Tensor:
    """float32 [2, seq_len, head_dim / 2]: cosines, then sines, of position x theta^(-2i / head_dim)."""
    index = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(config.seq_len, dtype=torch.float32), config.rope_theta**-index)
    return torch.stack((angles.cos(), angles.sin()))


@torch.no_grad()
def fill(model: Transformer, seed: int) -> None:
    """Gives every parameter its first value: a function of (seed, name), so the same on any number of ranks.

    Normal with deviation 1/sqrt(inputs); residual outputs divided by sqrt(2 layers) besides; norms are 1.
    """
    for name, parameter in model.named_parameters():
        shard = local_shard(parameter)
        if parameter.dim() < 2:
            shard.tensor.fill_(1.0)
            continue
        deviation = 1.0 / math.sqrt(parameter.shape[-1])
        if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
            deviation /= math.sqrt(2 * model.config.layers)
        generator = torch.Generator().manual_seed(_seed_of(seed, name))
        whole = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, deviation, generator=generator)
        shard.tensor.copy_(whole[shard.region])
    model.rope = rope_table(model.config).to(local_shard(model.norm.weight).tensor.device)


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def param_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters: total, and in matrix products per token (output head in, input embedding out)."""
    attention = config.dim * config.head_dim * 2 * (config.heads + config.kv_heads)
    feed_forward = 3 * config.dim * config.ffn
    norms = (2 * config.layers + 1) * config.dim + (
        2 * config.head_dim * config.layers if config.qk_norm != "none" else 0
    )
    matmul = config.layers * (attention + feed_forward) + config.vocab * config.dim
    embedding = 0 if config.tie else config.vocab * config.dim
    return {"total": matmul + norms + embedding, "matmul": matmul}


def flops_per_token(config: ModelConfig) -> int:
    """Training FLOP per token: 6 x matmul parameters + 12 x layers x heads x head_dim x seq_len.

    The attention term is not halved for the causal mask; recomputation is never counted.
    """
    attention = 12 * config.layers * config.heads * config.head_dim * config.seq_len
    return 6 * param_counts(config)["matmul"] + attention

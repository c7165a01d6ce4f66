"""A model's parameters by part, and which of them tensor and expert ranks cut. Torch-free."""

from dataclasses import dataclass
from typing import Literal

from rerail_trainer.config import ModelConfig
from rerail_trainer.parallel.mesh import Mesh

Where = Literal["outside", "block", "experts"]


@dataclass(frozen=True)
class Part:
    """Parameters of one kind, over all blocks.

    total: all of them; active: those that one token meets; matmul: active ones in matrix products.
    where: outside the blocks, in them, or in their experts. by_tensor: whether tensor ranks cut them.
    """

    name: str
    total: int
    active: int
    matmul: int
    where: Where
    by_tensor: bool

    def on_rank(self, mesh: Mesh) -> float:
        """Parameters of this part that one rank computes with, before FSDP cuts them further."""
        cut = self.total / mesh.tensor if self.by_tensor else float(self.total)
        return cut / mesh.expert if self.where == "experts" else cut

    def kept_on_rank(self, mesh: Mesh) -> float:
        """Parameters of this part that one rank keeps, with their gradients and moments."""
        if mesh.shard == 1:
            return self.on_rank(mesh)
        ways = {
            "outside": mesh.shard * mesh.tensor,
            "block": mesh.shard,
            "experts": mesh.expert_shard,
        }
        return self.on_rank(mesh) / ways[self.where]


def parts_of(model: ModelConfig) -> tuple[Part, ...]:
    """All parts that the model has; their totals sum to its parameters.

    A matrix that serves as embedding and head counts as the head.
    """
    mixed = model.layers - model.dense_layers if model.experts else 0
    dense = model.layers - mixed
    matrices = 3 if model.mlp == "swiglu" else 2
    table = model.vocab * model.dim
    attention = model.layers * 2 * model.dim * model.head_dim * (model.heads + model.kv_heads)
    expert = mixed * 3 * model.dim * (model.expert_ffn or model.ffn)
    parts = [
        _part("embedding", 0 if model.tie else table, "outside", matmul=False),
        _part("attention", attention, "block", by_tensor=True),
        _part("norms", _norms(model), "block", matmul=False),
        _part("feed-forward", dense * matrices * model.dim * model.ffn, "block", by_tensor=True),
        _part("router", mixed * model.dim * model.experts, "block"),
        _part("shared expert", mixed * matrices * model.dim * model.shared_ffn, "block", by_tensor=True),
        Part(
            "experts",
            expert * model.experts,
            expert * model.experts_per_token,
            expert * model.experts_per_token,
            "experts",
            by_tensor=True,
        ),
        _part("head", table, "outside"),
    ]
    return tuple(part for part in parts if part.total)


def total_of(model: ModelConfig) -> int:
    return sum(part.total for part in parts_of(model))


def active_of(model: ModelConfig) -> int:
    """Parameters that one token meets, the input embedding among them."""
    return sum(part.active for part in parts_of(model))


def flops_per_token(model: ModelConfig) -> int:
    """Training FLOP per token: 6 x active matmul parameters + 12 x layers x heads x head_dim x seq_len.

    The attention term is not halved for the causal mask; recomputation is never counted.
    """
    products = sum(part.matmul for part in parts_of(model))
    return 6 * products + 12 * model.layers * model.heads * model.head_dim * model.seq_len


def _part(name: str, count: int, where: Where, by_tensor: bool = False, matmul: bool = True) -> Part:
    return Part(name, count, count, count if matmul else 0, where, by_tensor)


def _norms(model: ModelConfig) -> int:
    heads = {"none": 0, "head": 2, "full": model.heads + model.kv_heads}[model.qk_norm]
    return (2 * model.layers + 1) * model.dim + model.layers * heads * model.head_dim

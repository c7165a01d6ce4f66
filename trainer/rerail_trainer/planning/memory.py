"""Memory of one rank, by part, at the fullest moment of a step. Torch-free.

Counted from what the model's code keeps: tensors saved for the backward pass, buffers of FSDP, the chunked
loss. What the allocator and CUDA take besides is a reserve that a plan leaves free.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

from rerail_trainer.config import Config, ModelConfig
from rerail_trainer.parallel.mesh import WHOLE_GRADIENT_BYTES, Mesh

from .parts import parts_of, total_of

Recompute = Literal["none", "selective", "block"]

LOGITS_AT_ONCE, LOSS_ROWS = 1 << 27, 256
"""How the loss cuts its chunks; as in model.loss."""
EXPERT_SKEW = 1.25
"""Tokens of the fullest expert rank over the mean. Assumed: what balancing leaves."""


@dataclass(frozen=True)
class Setup:
    """What a plan may choose: where ranks stand, what is recomputed, how much goes through at once."""

    mesh: Mesh
    recompute: Recompute
    micro_batch: int
    micro_batches: int
    """Passes per step."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: int = 0
    """Master weights, float32."""
    gradients: int = 0
    moments: int = 0
    gathered: int = 0
    """Weights in the compute dtype: two blocks and the head under FSDP, else all of autocast's copies."""
    traffic: int = 0
    """What FSDP gathers into and reduces from."""
    activations: int = 0
    """Kept from the forward for the backward pass, of all blocks."""
    working: int = 0
    """The larger of the loss's chunk and one block's backward pass."""
    dispatch: int = 0
    """Tokens on their way to experts on other ranks and back."""

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


def memory_of(config: Config, setup: Setup, fused_norms: bool = True) -> Memory:
    """At the fuller of two moments: in the loss, and in the backward pass of the last block.

    fused_norms: a norm keeps its input alone, as on a GPU; on a CPU it keeps two float32 copies.
    """
    model, mesh = config.model, setup.mesh
    compute = 2 if config.parallel.compute_dtype == "bfloat16" else 4
    tokens = setup.micro_batch * model.seq_len
    kept = sum(part.kept_on_rank(mesh) for part in parts_of(model))
    shapes = Shapes(model, mesh, compute, fused_norms)
    base = Memory(
        weights=round(4 * kept),
        gradients=round(4 * kept),
        moments=round(_moment_bytes(config, mesh)),
        activations=round(tokens * shapes.kept(setup.recompute)),
    )
    copies = _sharded(model, setup, compute) if mesh.shard > 1 else _whole(model, setup, compute)
    at_loss = replace(
        base,
        activations=base.activations + round(tokens * shapes.ends()),
        working=round(_loss_bytes(model, tokens // mesh.tensor, compute)),
        **copies["loss"],
    )
    in_block = replace(
        base,
        working=round(tokens * shapes.backward(setup.recompute)),
        dispatch=round(tokens * shapes.dispatch()),
        **copies["block"],
    )
    return max(at_loss, in_block, key=lambda memory: memory.total)


def _whole(model: ModelConfig, setup: Setup, compute: int) -> dict[str, dict[str, int]]:
    """Autocast's copies of the weights: of all until the loss is known, afterwards of what is saved."""
    if compute == 4:
        return {"loss": {}, "block": {}}
    # It knows nothing of the copies that experts make for themselves.
    passing = {"embedding", "norms", "router"} | ({"experts"} if setup.recompute != "none" else set())
    whole = sum(part.on_rank(setup.mesh) for part in parts_of(model) if part.name not in passing)
    saved = whole if setup.recompute == "none" else _largest_block(model, setup.mesh)
    return {"loss": {"gathered": round(compute * whole)}, "block": {"gathered": round(compute * saved)}}


def _sharded(model: ModelConfig, setup: Setup, compute: int) -> dict[str, dict[str, int]]:
    """What FSDP gathers: the last block and the head stay, the block before arrives; and what it reduces."""
    block, table = _largest_block(model, setup.mesh), model.vocab * model.dim
    whole = sum(part.on_rank(setup.mesh) for part in parts_of(model))
    held_back = 4 * whole if setup.micro_batches > 1 and 4 * whole <= WHOLE_GRADIENT_BYTES else 0
    return {
        "loss": {"gathered": round(compute * (block + table)), "traffic": round(held_back)},
        "block": {
            "gathered": round(compute * (2 * block + table)),
            # One block arriving; gradients of one as computed and as sent, in float32; those of the head.
            "traffic": round(compute * block + (4 + compute) * block + compute * table + held_back),
        },
    }


def state_bytes(config: Config) -> int:
    """Bytes of a checkpoint: weights in float32 and the optimizer's moments."""
    return round(4 * total_of(config.model) + _moment_bytes(config, Mesh()))


def _moment_bytes(config: Config, mesh: Mesh) -> float:
    size = 2 if config.optim.moment_dtype == "bfloat16" else 4
    return sum(
        part.kept_on_rank(mesh) * (4 if _is_muons(config, part.name) else 2 * size)
        for part in parts_of(config.model)
    )


def _is_muons(config: Config, name: str) -> bool:
    """Muon keeps one float32 momentum of the matrices in blocks; all else has AdamW's two moments."""
    return config.optim.name == "muon" and name not in ("embedding", "head", "norms", "router")


def _largest_block(model: ModelConfig, mesh: Mesh) -> float:
    """Parameters of the largest block on a rank; FSDP gathers it at once."""
    inside = [part for part in parts_of(model) if part.where != "outside"]
    mixed = model.layers - model.dense_layers if model.experts else 0
    blocks = {"experts": mixed, "router": mixed, "shared expert": mixed}
    dense = sum(part.on_rank(mesh) / model.layers for part in inside if part.name in ("attention", "norms"))
    feed_forwards = [
        sum(part.on_rank(mesh) / mixed for part in inside if part.name in blocks) if mixed else 0.0,
        sum(
            part.on_rank(mesh) / (model.dense_layers if mixed else model.layers)
            for part in inside
            if part.name == "feed-forward"
        ),
    ]
    return dense + max(feed_forwards)


def _loss_bytes(model: ModelConfig, tokens: int, compute: int) -> float:
    """Of the chunked loss: the head's float32 gradient and a chunk of logits; later it, cast down."""
    table = model.vocab * model.dim
    rows = min(tokens, max(LOSS_ROWS, LOGITS_AT_ONCE // model.vocab // LOSS_ROWS * LOSS_ROWS))
    low = compute if compute < 4 else 0
    forward = 4 * table + max(rows * model.vocab * (8 + low), compute * table)
    backward = table * (4 + low)
    return max(forward, backward) + tokens * model.dim * compute


class Shapes:
    """Bytes per token of a micro-batch that one rank keeps or works with."""

    def __init__(self, model: ModelConfig, mesh: Mesh, compute: int, fused_norms: bool) -> None:
        self._model, self._mesh, self._compute = model, mesh, compute
        self._fused_norms = fused_norms
        self._mixed = model.layers - model.dense_layers if model.experts else 0
        self._query = model.heads * model.head_dim / mesh.tensor
        self._key = model.kv_heads * model.head_dim / mesh.tensor
        # Between a block's two halves a tensor rank has its part of the sequence only.
        self._stream = model.dim / mesh.tensor

    def kept(self, recompute: Recompute) -> float:
        """By all blocks together for the backward pass."""
        model = self._model
        dense, mixed = model.layers - self._mixed, self._mixed
        if recompute == "block":
            return model.layers * self._stream * self._compute
        attention = self._attention(recompute)
        total = model.layers * attention + dense * self._dense(recompute, model.ffn)
        return total + (mixed * self._experts(recompute) if mixed else 0.0)

    def ends(self) -> float:
        """Outside the blocks: the last norm and its output, and the tokens themselves."""
        return self._norm() + self._compute * self._stream + 3 * 8

    def backward(self, recompute: Recompute) -> float:
        """Of the last block's backward pass: gradients on their way, and what is computed again."""
        model, mesh = self._model, self._mesh
        shared = model.shared_ffn / mesh.tensor
        if self._mixed:
            wide = self._expert_rows() * (model.expert_ffn or model.ffn) / mesh.tensor
            # The shared expert's turn comes first, and what it kept is gone when the experts' comes.
            gradients = max(2 * shared, 2 * wide - 4 * shared)
        else:
            gradients = 2 * model.ffn / mesh.tensor
        gradients = self._compute * (gradients + self._stream + (model.dim if mesh.tensor > 1 else 0))
        return gradients + (self._block("none") - self._block(recompute) if recompute != "none" else 0.0)

    def _block(self, recompute: Recompute) -> float:
        """What one block, the largest kind, keeps."""
        if recompute == "block":
            return self._stream * self._compute if self._fused_norms or self._compute == 4 else 0.0
        mixed = self._experts(recompute) if self._mixed else self._dense(recompute, self._model.ffn)
        return self._attention(recompute) + mixed

    def dispatch(self) -> float:
        if self._mesh.expert == 1 or not self._mixed:
            return 0.0
        return 4 * self._expert_rows() * self._model.dim * self._compute

    def _norm(self, width: float | None = None) -> float:
        """What a norm keeps of its input; on a CPU besides that input, divided."""
        width = self._stream if width is None else width
        return width * self._compute if self._fused_norms else width * 8

    def _attention(self, recompute: Recompute) -> float:
        """Norm, its output, query, key, value, mixed heads and their log-sums."""
        model, mesh, compute = self._model, self._mesh, self._compute
        logs = 4 * model.heads / mesh.tensor
        products = compute * 2 * (self._query + self._key) + logs
        if recompute == "selective":
            # The block's input, and the output of the last product.
            return products + compute * (self._stream + model.dim)
        normed = self._query + self._key if model.qk_norm != "none" else 0.0
        return products + self._norm() + self._norm(normed) + compute * model.dim

    def _dense(self, recompute: Recompute, width: int) -> float:
        """A feed-forward: norm, its output, and what lies between its products."""
        model, compute = self._model, self._compute
        gated = model.mlp == "swiglu"
        inner = width / self._mesh.tensor
        if recompute == "selective":
            return compute * ((2 if gated else 1) * inner + model.dim)
        return self._norm() + compute * model.dim + compute * (4 if gated else 2) * inner

    def _experts(self, recompute: Recompute) -> float:
        """A mixture: the router's float32 view, copies of tokens in order, and what lies between products."""
        model, compute, mesh = self._model, self._compute, self._mesh
        rows, width = self._expert_rows(), (model.expert_ffn or model.ffn) / mesh.tensor
        shared = model.shared_ffn / mesh.tensor
        routing = 2 * 4 * model.experts + 28 * model.experts_per_token
        if recompute == "selective":
            products = compute * (rows * (2 * width + model.dim) + 2 * shared + (model.dim if shared else 0))
            return products + 4 * model.experts
        # The router sees a float32 copy of what the experts see.
        own = self._norm() + compute * model.dim + (4 * model.dim if compute < 4 else 0) + routing
        return own + compute * (rows * (2 * model.dim + 4 * width) + 4 * shared)

    def _expert_rows(self) -> float:
        skew = EXPERT_SKEW if self._mesh.expert > 1 else 1.0
        return self._model.experts_per_token * skew

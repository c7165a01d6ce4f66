"""A mixture of experts without dropped tokens: a router sends every token to a few of many feed-forwards.

Routing (which expert, with what weight) is kept apart from running the experts (`Experts`, which sees tokens
sorted by expert and how many there are for each), so that experts may live on other ranks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerail_trainer.config import ModelConfig

from .layers import FeedForward, Matrix


class Routed(NamedTuple):
    """What a pass leaves behind besides its output."""

    penalty: Tensor
    """float32 [batch]: balance and router losses of each sequence, per token."""
    load: Tensor
    """int64 [experts]: how many tokens each expert got."""


class Router(Matrix):
    """One logit per expert, in float32 whatever the model computes in: rounding must not decide near ties."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., dim] -> float32 [..., experts]."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


class Experts(nn.Module):
    """SwiGLU feed-forwards side by side; knows nothing of routing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.expert_ffn or config.ffn
        self.gate = nn.Parameter(torch.empty(config.experts, width, config.dim))
        self.up = nn.Parameter(torch.empty(config.experts, width, config.dim))
        self.down = nn.Parameter(torch.empty(config.experts, config.dim, width))

    def forward(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """tokens: [n, dim], those of the first expert first; counts: int [experts], summing to n -> [n, dim].

        All experts in three matrix products over groups of rows; where the groups end stays on the device.
        """
        ends = counts.cumsum(0, dtype=torch.int32)
        gate = _grouped(tokens, self.gate, ends)
        up = _grouped(tokens, self.up, ends)
        return _grouped(F.silu(gate) * up, self.down, ends)


Dispatch = Callable[[Experts, Tensor, Tensor], Tensor]


def dispatch_here(experts: Experts, tokens: Tensor, counts: Tensor) -> Tensor:
    """Sorted tokens through experts that all live on this rank; expert parallelism dispatches otherwise."""
    return experts(tokens, counts)  # type: ignore[no-any-return]


class MixtureOfExperts(nn.Module):
    """Top-k routing over `experts` feed-forwards, plus a shared one that every token passes.

    Scores, weights and bias follow DeepSeek-V3 (2024, section 2.1.2); softmax scores give Mixtral's and
    Qwen 3's routing.
    """

    balance: Tensor
    load: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Router(config.dim, config.experts)
        self.experts = Experts(config)
        self.shared = FeedForward(config, config.shared_ffn) if config.shared_ffn else None
        self.dispatch: Dispatch = dispatch_here
        # Added to the scores when experts are chosen, never to their weights; part of checkpoints.
        self.register_buffer("balance", torch.zeros(config.experts, dtype=torch.float32))
        # Tokens per expert since the last call of `balance`.
        self.register_buffer("load", torch.zeros(config.experts, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Routed]:
        """x: [batch, time, dim] -> the same shape."""
        logits = self.router(x)
        scores = logits.softmax(-1) if self.config.router_score == "softmax" else logits.sigmoid()
        chosen, weights = self._choose(scores)
        loads = _loads(chosen, self.config.experts)
        mixed = self._mix(x.flatten(0, 1), chosen, weights, loads.sum(0)).view_as(x)
        if self.shared is not None:
            mixed = mixed + self.shared(x)
        return mixed, Routed(self._penalty(scores, logits, loads), loads.sum(0))

    def _choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Experts of each token, int64 [batch, time, k], and the float32 weights of their outputs."""
        chosen = (scores.detach() + self.balance).topk(self.config.experts_per_token, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.config.router_norm:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * self.config.router_scale

    def _mix(self, tokens: Tensor, chosen: Tensor, weights: Tensor, load: Tensor) -> Tensor:
        """Each token [n, dim] through its experts, their outputs weighted and summed."""
        copies = self.config.experts_per_token
        # Narrow keys: a radix sort costs by the byte.
        order = chosen.flatten().to(torch.int16).argsort(stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        sorted_tokens = Moved.apply(tokens, order // copies, place, copies)
        outputs = Moved.apply(self.dispatch(self.experts, sorted_tokens, load), place, order, 1)
        weighted = outputs.view(-1, copies, tokens.shape[-1]) * weights.view(-1, copies, 1)
        mixed: Tensor = weighted.sum(1).to(tokens.dtype)
        return mixed

    def _penalty(self, scores: Tensor, logits: Tensor, loads: Tensor) -> Tensor:
        """Losses of each sequence per token, [batch]; the other sequences of the batch make no difference.

        Balance: experts x sum over experts of (share of choices x mean score), DeepSeek-V3 (2024),
        equations 17 to 20.
        z: mean squared log-sum-exp of the logits (Zoph et al., 2022).
        """
        config = self.config
        penalty = logits.new_zeros(len(logits))
        if config.balance_loss:
            shares = loads * (config.experts / (config.experts_per_token * logits.shape[1]))
            means = (scores / scores.sum(-1, keepdim=True)).mean(1)
            penalty = penalty + config.balance_loss * (shares * means).sum(-1)
        if config.z_loss:
            penalty = penalty + config.z_loss * logits.logsumexp(-1).square().mean(1)
        return penalty


class Moved(torch.autograd.Function):
    """Rows of `source` at `take`. Its gradient gathers too: at `back`, and sums every `copies` rows.

    Plain indexing scatters its gradient with atomic additions: slower, and not the same twice on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, source: Tensor, take: Tensor, back: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.copies = copies
        return source.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        gradient = gradients[0].index_select(0, back)
        if ctx.copies > 1:
            gradient = gradient.view(-1, ctx.copies, gradient.shape[-1]).sum(1)
        return gradient, None, None, None


def _grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows up to ends[e] times the transpose of weight[e] [outputs, inputs]; in the dtype of `rows`."""
    # A weight that is cut over ranks of experts: the rows here are already those of the local ones.
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    return F.grouped_mm(rows, local.to(rows.dtype).transpose(-2, -1), offs=ends)


def _loads(chosen: Tensor, experts: int) -> Tensor:
    """int64 [batch, experts]: choices per sequence and expert. chosen: [batch, time, k]."""
    flat = chosen.flatten(1)
    return flat.new_zeros(len(flat), experts).scatter_add_(1, flat, torch.ones_like(flat))


def mixtures(model: nn.Module) -> list[MixtureOfExperts]:
    """The mixtures of experts of a model, first block first."""
    return [module for module in model.modules() if isinstance(module, MixtureOfExperts)]


def forget_load(model: nn.Module) -> None:
    """Drops the counts of passes that were no training: a rehearsal, a pass that failed."""
    for mixture in mixtures(model):
        mixture.load.zero_()


@torch.no_grad()
def balance(model: nn.Module, add_up: Callable[[Tensor], object], unless: Tensor) -> Tensor | None:
    """After a step: moves each expert's bias against its load, and starts counting anew.

    By `balance_bias` up where an expert got less than the mean, down where more (Wang et al., 2024,
    auxiliary-loss-free balancing). add_up: sums an int64 tensor over all ranks that saw other tokens, in
    place. unless: no bias moves if this scalar is not 0. Gives float32 [mixtures], largest load over mean
    load, on the device; None for a dense model.
    """
    layers = mixtures(model)
    if not layers:
        return None
    load = torch.stack([mixture.load for mixture in layers])
    add_up(load)
    total = load.sum(1, keepdim=True)
    rate = layers[0].config.balance_bias
    moves = torch.sign(total - load * load.shape[1]).float() * rate
    moves = torch.where(unless != 0, torch.zeros_like(moves), moves)
    for mixture, move in zip(layers, moves, strict=True):
        mixture.balance.add_(move)
        mixture.load.zero_()
    return load.amax(1) * (load.shape[1] / total[:, 0].clamp(min=1).float())

"""The model: a decoder, dense or with a mixture of experts, from tokens to a loss or to logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rerail_trainer.config import ModelConfig

from .attention import Attention
from .cache import Cache, CachedBlock
from .layers import FeedForward, Matrix, Norm, Table
from .loss import IGNORED, Softmax, softmax_loss, summed_loss
from .moe import MixtureOfExperts, Routed
from .recompute import Recompute, again
from .rope import rope_table
from .window import Window, document_window, plain_window


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream; norms before them or on their output."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        mixed = config.experts > 0 and index >= config.dense_layers
        self.attention_norm = Norm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = Norm(config.dim, config.norm_eps)
        self.feed_forward = MixtureOfExperts(config) if mixed else FeedForward(config, config.ffn)
        self.post, self.dropout = config.norm == "post", config.dropout
        self.recompute: Recompute = "none"

    def forward(
        self, x: Tensor, window: Window, cached: CachedBlock | None = None
    ) -> tuple[Tensor, Routed | None]:
        """x: [batch, time, dim] -> the same shape, and what routing left behind."""
        # In here and not around the block, so that compiling the block compiles the recomputation too.
        return again(self.recompute, self.dropout > 0, self._pass, x, window, cached)  # type: ignore[no-any-return]

    def _pass(self, x: Tensor, window: Window, cached: CachedBlock | None) -> tuple[Tensor, Routed | None]:
        if self.post:
            x = x + self._drop(self.attention_norm(self.attention(x, window, cached)))
            change, routed = self._feed(x)
            return x + self._drop(self.feed_forward_norm(change)), routed
        x = x + self._drop(self.attention(self.attention_norm(x), window, cached))
        change, routed = self._feed(self.feed_forward_norm(x))
        return x + self._drop(change), routed

    def _feed(self, x: Tensor) -> tuple[Tensor, Routed | None]:
        if isinstance(self.feed_forward, MixtureOfExperts):
            return self.feed_forward(x)  # type: ignore[no-any-return]
        return self.feed_forward(x), None

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Head(Matrix):
    """Hidden states to logits; with targets, to their summed loss, and the logits never exist whole."""

    softmax: Softmax = staticmethod(softmax_loss)
    """What turns a chunk of logits into a loss and its slope; a compiled one may stand here."""

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """x: [batch, time, dim]; targets: int64 [batch, time], IGNORED has no loss."""
        return super().forward(x) if targets is None else summed_loss(x, self.weight, targets, self.softmax)


class Transformer(nn.Module):
    """Tokens in, summed loss out, so that the caller normalises over all ranks and micro-batches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Table(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        self.norm = Norm(config.dim, config.norm_eps)
        self.head = Head(config.dim, config.vocab)
        if config.tie:
            self.head.weight = self.embedding.weight
        # No buffer: it follows from the configuration alone.
        self._angles: Tensor | None = None

    def forward(self, tokens: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Sum of the losses at all targets that are not IGNORED; float32 scalar.

        tokens, targets: int64 [batch, time]. documents: int64 [batch, time], the number of each position's
        document; attention stays inside it. In training mode the experts' balance and router losses come in,
        each sequence's by the number of its targets.
        """
        hidden, routings = self._hidden(tokens, documents, None)
        loss: Tensor = self.head(hidden, targets)
        if routings and self.training:
            counted = (targets != IGNORED).sum(1)
            for routed in routings:
                loss = loss + (routed.penalty * counted).sum()
        return loss

    def recompute(self, kind: Recompute) -> None:
        """What every block computes again in its backward pass instead of keeping it; changes no value."""
        for block in self.blocks:
            block.recompute = kind  # type: ignore[assignment]

    def logits(self, tokens: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """[batch, time, vocab] in the compute dtype. tokens follow on what `cache` holds."""
        return self.head(self._hidden(tokens, documents, cache)[0])  # type: ignore[no-any-return]

    def _hidden(
        self, tokens: Tensor, documents: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, list[Routed]]:
        window = self._window(tokens, documents, cache)
        x = in_compute_dtype(self.embedding(tokens))
        x = F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
        routings = []
        for index, block in enumerate(self.blocks):
            x, routed = block(x, window, cache.blocks[index] if cache else None)
            if routed is not None:
                routings.append(routed)
                # Out here: what a block does may be done twice.
                if self.training and torch.is_grad_enabled():
                    block.feed_forward.load += routed.load  # type: ignore[union-attr]
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.norm(x), routings

    def _window(self, tokens: Tensor, documents: Tensor | None, cache: Cache | None) -> Window:
        angles, before, time = self._rope(tokens.device), cache.length if cache else 0, tokens.shape[1]
        if before + time > angles.shape[1]:
            raise ValueError(f"{before + time} positions are more than model.seq_len={angles.shape[1]}")
        if cache is not None and before + time > cache.capacity:
            raise ValueError(f"{before + time} positions are more than the cache's {cache.capacity}")
        if documents is None:
            return plain_window(angles, time, before)
        if cache is not None:
            raise ValueError("a cache holds one document per sequence: give no documents")
        return document_window(angles, documents)

    def _rope(self, device: torch.device) -> Tensor:
        if self._angles is None or self._angles.device != device:
            self._angles = rope_table(self.config).to(device)
        return self._angles


def in_compute_dtype(x: Tensor) -> Tensor:
    """`x` in the dtype of autocast, if it is on: else the residual stream would stay float32."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x

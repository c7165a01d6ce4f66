"""Where the positions of one pass stand, and which of them may look at which."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """The same for all blocks of a pass. An object, because sharding casts tensor arguments of a block down.

    cosine, sine: float32 [(batch,) time, head_dim / 2]. mask: bool [(batch, 1,) time, keys], true where a
    position may look, or None. causal: no mask, but no position sees a later one. before: positions that are
    in the cache already.
    """

    cosine: Tensor
    sine: Tensor
    mask: Tensor | None = None
    causal: bool = True
    before: int = 0


def plain_window(angles: Tensor, time: int, before: int = 0) -> Window:
    """`time` positions after `before` cached ones. angles: float32 [2, seq_len, head_dim / 2]."""
    cosine, sine = angles[:, before : before + time].unbind(0)
    if before == 0:
        return Window(cosine, sine)
    mask = None
    if time > 1:
        mask = torch.ones(time, before + time, dtype=torch.bool, device=angles.device).tril(before)
    return Window(cosine, sine, mask, causal=False, before=before)


def document_window(angles: Tensor, documents: Tensor) -> Window:
    """Several documents in a row of the batch, each as if it were alone. documents: int [batch, time]."""
    cosine, sine = angles[:, document_positions(documents)].unbind(0)
    return Window(cosine, sine, document_mask(documents), causal=False)


def document_mask(documents: Tensor) -> Tensor:
    """bool [batch, 1, time, time]: itself and earlier positions of the same document."""
    time = documents.shape[1]
    same = documents[:, :, None] == documents[:, None, :]
    causal = torch.ones(time, time, dtype=torch.bool, device=documents.device).tril()
    return (same & causal)[:, None]


def document_positions(documents: Tensor) -> Tensor:
    """int64 [batch, time]: the position of each token within its document."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    return index - torch.where(begins, index, 0).cummax(1).values

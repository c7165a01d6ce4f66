"""Text from a model, token by token, many prompts at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rerail_trainer.failures import BadConfig
from rerail_trainer.model import Transformer, new_cache

from .head import head_sees


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature 0 takes the likeliest; top_k 0 and top_p 1 leave all in.

    top_p: the smallest set of likeliest tokens whose probabilities reach it (Holtzman et al., 2020).
    vocab: ids from here on are padding of the model's head and never drawn; ends: tokens that end a text.
    batch: prompts of like length that run together; cached: keep keys and values of what was read. Without,
    all is read again for each token: the same text, only slower.
    """

    ends: tuple[int, ...]
    vocab: int
    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    batch: int = 16
    cached: bool = True


@dataclass(frozen=True)
class Continuation:
    """What followed a prompt, without the end token; why it ended: end token, stop text, or length."""

    tokens: list[int]
    why: Literal["end", "stop", "length"]


Stops = Callable[[list[int]], bool]
"""Whether the tokens so far hold a text at which to stop."""


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stops: Stops | None = None,
) -> list[Continuation]:
    """A continuation of each prompt, in their order.

    It follows from (seed, place of the prompt) and the logits alone, whatever runs beside it.
    BadConfig for an empty prompt or one that leaves no room in the model's window.
    """
    longest = model.config.seq_len - 1
    for number, prompt in enumerate(prompts, start=1):
        if not 1 <= len(prompt) <= longest:
            raise BadConfig(f"prompt {number} has {len(prompt)} tokens; this model takes 1 to {longest}")
    model.eval()
    by_length = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: dict[int, Continuation] = {}
    for begin in range(0, len(by_length), sampling.batch):
        places = by_length[begin : begin + sampling.batch]
        together = _Together(model, [prompts[place] for place in places], places, sampling, stops)
        with head_sees(model, lambda hidden: hidden[:, -1:]):
            found.update(zip(places, together.run(), strict=True))
    return [found[place] for place in range(len(prompts))]


class _Together:
    """Rows that advance in lock step from the end of the shortest prompt: a row still inside its prompt takes
    the prompt's token, the others the one drawn. So no row is padded on the left and one cache fits all.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        places: Sequence[int],
        sampling: Sampling,
        stops: Stops | None,
    ) -> None:
        self._model, self._sampling, self._stops = model, sampling, stops
        self._device = model.norm.weight.device
        self._lengths = [len(prompt) for prompt in prompts]
        self._ends = [min(length + sampling.max_tokens, model.config.seq_len) for length in self._lengths]
        self._rows = [list(prompt) for prompt in prompts]
        self._why: list[Literal["end", "stop", "length"] | None] = [None] * len(prompts)
        generators = [np.random.default_rng([sampling.seed, place]) for place in places]
        self._most = min(sampling.max_tokens, model.config.seq_len)
        self._draws = np.stack([generator.random(self._most) for generator in generators])

    def run(self) -> list[Continuation]:
        position, read = min(self._lengths), 0
        rows, room = len(self._rows), max(self._ends)
        like = self._model.norm.weight
        cache = new_cache(self._model.config, rows, like, room) if self._sampling.cached else None
        while None in self._why:
            # Rows that are done go along on any token; what they yield is not looked at.
            filler = [0] * (position - read)
            new = [(row[read:position] + filler)[: len(filler)] for row in self._rows]
            logits = self._model.logits(torch.tensor(new, device=self._device), cache=cache)[:, -1].float()
            self._take(position, logits)
            read = position if cache else 0
            position += 1
        ended = zip(self._rows, self._lengths, self._why, strict=True)
        return [Continuation(row[length:], why or "length") for row, length, why in ended]

    def _take(self, position: int, logits: Tensor) -> None:
        """Gives each row that waits for it the token at `position`."""
        # Of rows that are not to be looked at any number will do.
        at = [min(max(position - length, 0), self._most - 1) for length in self._lengths]
        uniform = torch.from_numpy(self._draws[np.arange(len(at)), at]).to(logits.device)
        for index, token in enumerate(draw(logits, uniform, self._sampling).tolist()):
            if self._why[index] is not None or position < self._lengths[index]:
                continue
            row, length = self._rows[index], self._lengths[index]
            if token in self._sampling.ends:
                self._why[index] = "end"
                continue
            row.append(token)
            if self._stops is not None and self._stops(row[length:]):
                self._why[index] = "stop"
            elif len(row) == self._ends[index]:
                self._why[index] = "length"


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """One token per row by inverting the distribution function over tokens sorted from the likeliest.

    logits: float32 [rows, model vocabulary]; uniform: float64 [rows] in [0, 1) -> int64 [rows].
    """
    logits = logits[:, : sampling.vocab]
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    # Stable, so that equal logits keep their order on every run.
    ordered, tokens = torch.sort(logits / sampling.temperature, dim=-1, descending=True, stable=True)
    if sampling.top_k:
        ordered, tokens = ordered[:, : sampling.top_k], tokens[:, : sampling.top_k]
    probability = torch.softmax(ordered.double(), dim=-1)
    reached = probability.cumsum(dim=-1)
    kept = probability.masked_fill(reached - probability >= sampling.top_p, 0.0)
    edges = kept.cumsum(dim=-1)
    chosen = torch.searchsorted(edges, uniform[:, None] * edges[:, -1:], right=True)
    # Rounding may put a draw just below 1 past the last edge.
    last = (kept > 0).sum(dim=-1, keepdim=True) - 1
    return tokens.gather(1, torch.minimum(chosen, last))[:, 0]

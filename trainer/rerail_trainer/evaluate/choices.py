"""Multiple choice by log-likelihood: a model answers with the choice it finds likeliest after the question.

Context and choice are joined as lm-eval 0.4 joins them: one space between, which belongs to the choice,
and both encoded as one text, so that a choice is scored in the tokens it really has.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rerail_trainer.failures import BadConfig

from .asked import Asked
from .items import Item, Shots, answers_of, joined, prompt_of
from .scoring import Passage, log_likelihoods

_ITEMS_AT_ONCE = 256
"""Enough to fill batches with passages of like length."""

Told = Callable[[int], None]


@dataclass(frozen=True)
class Verdict:
    """What the model made of one item: nats per answer, summed over its tokens.

    cut: the beginning was left out, because question and answer are longer than the model's window.
    """

    item: Item
    answers: tuple[str, ...]
    log_likelihoods: tuple[float, ...]
    cut: bool

    @property
    def chosen(self) -> int:
        return _largest(self.log_likelihoods)

    @property
    def chosen_by_byte(self) -> int:
        """By nats per byte of the answer, so that length is not held against it."""
        sizes = [len(answer.encode()) for answer in self.answers]
        return _largest([nats / size for nats, size in zip(self.log_likelihoods, sizes, strict=True)])


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers and its standard error, sqrt(p (1 - p) / (n - 1)); None for one item."""

    share: float
    standard_error: float | None
    items: int


def judge(
    asked: Asked, items: Sequence[Item], shots: Shots, batch_tokens: int, told: Told | None = None
) -> list[Verdict]:
    """The model's verdict on every item, in their order; `told` hears of every so many items."""
    verdicts: list[Verdict] = []
    for begin in range(0, len(items), _ITEMS_AT_ONCE):
        some = items[begin : begin + _ITEMS_AT_ONCE]
        rows = [passages_of(asked, prompt_of(item, shots), answers_of(item, shots)) for item in some]
        passages = [passage for own, _ in rows for passage in own]
        scores = iter(log_likelihoods(asked.model, passages, batch_tokens))
        verdicts += [
            Verdict(item, answers_of(item, shots), tuple(next(scores) for _ in item.choices), cut)
            for item, (_, cut) in zip(some, rows, strict=True)
        ]
        if told is not None:
            told(len(some))
    return verdicts


def passages_of(asked: Asked, context: str, answers: Sequence[str]) -> tuple[list[Passage], bool]:
    """One passage per answer, all scored from the same token on: the first in which any of them differs from
    the context alone. So no answer gains by a token that swallowed a piece of the context.
    Besides, whether the beginning was cut off.
    """
    alone = asked.start(context.rstrip(" "))
    rows = [asked.start(joined(context, answer)) for answer in answers]
    split = max(1, min(_shared(alone, row) for row in rows))
    if not context.strip(" ") and not asked.begin:
        # Nothing to continue but the end of a document before.
        rows, split = [[asked.tokenizer.end, *row] for row in rows], 1
    window = asked.model.config.seq_len
    for row, answer in zip(rows, answers, strict=True):
        if len(row) - split > window:
            raise BadConfig(f"the choice {answer[:40]!r} alone is longer than the model's {window} tokens")
    # Cut from the left, as lm-eval does: the end of the question matters most.
    passages = [Passage(row[-window - 1 :], len(row) - split) for row in rows]
    return passages, any(len(row) > window + 1 for row in rows)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def _largest(values: Sequence[float]) -> int:
    """The first of the largest."""
    return max(range(len(values)), key=lambda index: values[index])


def accuracy(right: Sequence[bool]) -> Accuracy:
    """The share of True; standard error of a mean of 0s and 1s, with n - 1 as lm-eval takes it."""
    count = len(right)
    share = sum(right) / count
    error = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None
    return Accuracy(share, error, count)

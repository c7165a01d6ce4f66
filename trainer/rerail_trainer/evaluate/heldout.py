"""Held-out loss: nats per token, perplexity, and bits per byte, which compares models of any tokenizer.

Bits per byte = summed loss in nats / (ln 2 x bytes of UTF-8 text): Gao et al., "The Pile", 2020, section 3.1.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rerail_trainer.failures import BadConfig

from .asked import Asked
from .documents import Document
from .scoring import Passage, log_likelihoods

_BATCHES_AT_ONCE = 16

Told = Callable[[int], None]
_Owned = tuple[int, Passage]
"""Which document a passage is of."""


@dataclass(frozen=True)
class Reach:
    """How documents are read. stride: how far the window moves on; each token but those of the first window
    then has seq_len - stride or more tokens of context. max_tokens: stop after so many; 0 reads all.
    """

    stride: int
    batch_tokens: int
    max_tokens: int = 0


@dataclass(frozen=True)
class HeldOutLoss:
    """loss: nats per token; the standard errors are over documents, None for a single one."""

    documents: int
    tokens: int
    bytes: int
    loss: float
    loss_standard_error: float | None
    perplexity: float
    bits_per_byte: float
    bits_per_byte_standard_error: float | None


def measure(
    asked: Asked, documents: Iterable[Document], reach: Reach, told: Told | None = None
) -> HeldOutLoss:
    """Every token of every document is scored once, and each document begins behind an end token (or what the
    model wants before every text). End tokens themselves are not scored: they are no text.

    `told` hears of every so many scored tokens.
    """
    measured: list[Document] = []
    nats: list[float] = []

    def owned() -> Iterator[tuple[int, Passage]]:
        for document in _within(documents, reach.max_tokens):
            measured.append(document)
            nats.append(0.0)
            for passage in passages_of(asked, document, reach.stride):
                yield len(nats) - 1, passage

    for some in _portions(owned(), reach.batch_tokens * _BATCHES_AT_ONCE):
        scores = log_likelihoods(asked.model, [passage for _, passage in some], reach.batch_tokens)
        for (owner, _), value in zip(some, scores, strict=True):
            nats[owner] -= value
        if told is not None:
            told(sum(passage.scored for _, passage in some))
    if not measured:
        raise BadConfig("there is no held-out text to measure by")
    return _summary(nats, [len(one.tokens) for one in measured], [one.size for one in measured])


def passages_of(asked: Asked, document: Document, stride: int) -> Iterator[Passage]:
    """The windows that together score each token of `document` once, with as much context as fits."""
    before = asked.begin or (asked.tokenizer.end,)
    row = np.concatenate((np.array(before, dtype=np.int64), document.tokens.astype(np.int64)))
    window, scored = asked.model.config.seq_len, len(before)
    while scored < len(row):
        # The first window is new from end to end; each later one moves on by a stride.
        upto = min(window + 1 if scored == len(before) else scored + stride, len(row))
        yield Passage(row[max(0, upto - window - 1) : upto], upto - scored)
        scored = upto


def _within(documents: Iterable[Document], max_tokens: int) -> Iterator[Document]:
    """Documents with text, whole ones, until `max_tokens` are reached."""
    taken = 0
    for document in documents:
        if not len(document.tokens):
            continue
        yield document
        taken += len(document.tokens)
        if 0 < max_tokens <= taken:
            return


def _portions(passages: Iterable[_Owned], tokens: int) -> Iterator[list[_Owned]]:
    """So many at a time that they fill batches well and memory stays bounded."""
    some: list[_Owned] = []
    held = 0
    for owner, passage in passages:
        some.append((owner, passage))
        held += len(passage.tokens)
        if held >= tokens:
            yield some
            some, held = [], 0
    if some:
        yield some


def _summary(nats: list[float], tokens: list[int], sizes: list[int]) -> HeldOutLoss:
    loss, loss_error = ratio(nats, tokens)
    if not sum(sizes):
        raise BadConfig("the held-out tokens stand for no text: is this their tokenizer?")
    per_byte, per_byte_error = ratio(nats, sizes)
    bits = math.log(2)
    return HeldOutLoss(
        documents=len(nats),
        tokens=sum(tokens),
        bytes=sum(sizes),
        loss=loss,
        loss_standard_error=loss_error,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_byte=per_byte / bits,
        bits_per_byte_standard_error=None if per_byte_error is None else per_byte_error / bits,
    )


def ratio(values: list[float], weights: list[int]) -> tuple[float, float | None]:
    """Sum of values over sum of weights, and its standard error for documents drawn independently: the ratio
    estimator of Cochran, "Sampling Techniques", 3rd ed. 1977, section 2.11, for an unlimited population.
    """
    whole, count = sum(weights), len(values)
    share = math.fsum(values) / whole
    if count < 2:
        return share, None
    squares = math.fsum((value - share * weight) ** 2 for value, weight in zip(values, weights, strict=True))
    return share, math.sqrt(count / (count - 1) * squares) / whole

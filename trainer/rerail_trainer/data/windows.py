"""From sample indices to rows of tokens: which window a sample is, and where its documents end."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rerail_api.contract import ExitCode
from rerail_trainer.config import Config
from rerail_trainer.failures import BadConfig, TrainerExit

from .order import window_of
from .shards import Tokens

if TYPE_CHECKING:
    from .corpus import Corpus


@dataclass(frozen=True)
class Arrangement:
    """How windows are cut and ordered."""

    seq_len: int
    seed: int
    shuffle: bool
    document_mask: bool
    vocab: int
    """Of the model: a token beyond it is a damaged or foreign shard."""

    @classmethod
    def of(cls, config: Config) -> "Arrangement":
        data, model = config.data, config.model
        return cls(model.seq_len, config.run.seed, data.shuffle, data.document_mask, model.vocab)


IGNORED = -100
"""The target of a position that no loss counts."""


class Rows(NamedTuple):
    """What the model sees of some samples. `tokens` [rows, seq_len + 1]; `targets` int64 [rows, seq_len],
    None where they are the tokens one on; `documents` int64 [rows, seq_len]: number of the document of each
    position, None where attention may cross documents.
    """

    tokens: Tokens
    targets: NDArray[np.int64] | None = None
    documents: NDArray[np.int64] | None = None


class Windows(Protocol):
    """Rows of any sample. Holds no position: the sample index alone decides."""

    count: int
    """Windows of one epoch."""
    notes: tuple[str, ...]
    """What people should know of them, a line each."""
    every_target_counts: bool
    """Whether no target is ever IGNORED."""

    def rows(self, samples: NDArray[np.int64]) -> Rows: ...


class Source(Protocol):
    """A corpus, a mixture of corpora, or conversations."""

    @property
    def vocab(self) -> int: ...

    @property
    def digest(self) -> str: ...

    @property
    def tokenizer(self) -> str: ...

    @property
    def end(self) -> int: ...

    def windows(self, arrangement: Arrangement) -> Windows: ...


class CorpusWindows:
    """The non-overlapping windows of one corpus, each epoch in an order of its own."""

    notes: tuple[str, ...] = ()
    every_target_counts = True

    def __init__(self, corpus: "Corpus", arrangement: Arrangement) -> None:
        self._corpus, self._arrangement = corpus, arrangement
        # Windows share no target, and the last target of one is the first input of the next.
        self.count = (corpus.tokens - 1) // arrangement.seq_len
        if self.count < 1:
            raise BadConfig(
                f"the corpus has {corpus.tokens} tokens, one window needs {arrangement.seq_len + 1}"
            )
        if arrangement.document_mask and corpus.end < 0:
            raise BadConfig(
                "data.document_mask needs to know the end-of-document token, which plain shards do not tell: "
                "make them with `prepare`"
            )

    def rows(self, samples: NDArray[np.int64]) -> Rows:
        order = self._arrangement
        begins = window_of(samples, self.count, order.seed, order.shuffle) * order.seq_len
        tokens = self._corpus.gather(begins, order.seq_len + 1)
        if int(tokens.max(initial=0)) >= order.vocab:
            self._refuse(begins, tokens)
        if not order.document_mask:
            return Rows(tokens)
        return Rows(tokens, documents=document_numbers(tokens[:, :-1], self._corpus.end))

    def _refuse(self, begins: NDArray[np.int64], tokens: Tokens) -> None:
        row, column = np.argwhere(tokens >= self._arrangement.vocab)[0]
        place = np.array([begins[row] + column])
        part = int(self._corpus.part_of(place)[0])
        name = self._corpus.names[part] if self._corpus.names else "the corpus"
        at = int(place[0] - self._corpus.starts[part])
        raise TrainerExit(
            ExitCode.BAD_DATA_SHARD,
            f"{name} holds token {int(tokens[row, column])} at place {at}, model.vocab is "
            f"{self._arrangement.vocab}: another tokenizer's shard, or a damaged one",
        )


def document_numbers(tokens: Tokens, end: int) -> NDArray[np.int64]:
    """Number of each position's document within its row, from 0; an `end` token belongs to the document
    that it ends. int64, the shape of `tokens`.
    """
    numbers = np.zeros(tokens.shape, dtype=np.int64)
    np.cumsum(tokens[:, :-1] == end, axis=1, out=numbers[:, 1:])
    return numbers

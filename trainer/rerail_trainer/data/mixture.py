"""Several corpora in fixed proportions: which of them a sample comes from follows from its index alone."""

import hashlib
from dataclasses import dataclass, field, replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

from rerail_trainer.failures import BadConfig

from .corpus import Corpus
from .windows import Arrangement, CorpusWindows, Rows

FINEST = 100_000
"""Weights count in parts of this: the schedule repeats after at most so many samples."""
_SEED_STRIDE = 0x9E3779B97F4A7C15


def parse_mixture(path: str) -> list[tuple[str, float]]:
    """PATH=WEIGHT,PATH=WEIGHT as a list; empty for a path without weights. BadConfig for half of one."""
    parts = [part.rpartition("=") for part in path.split(",")]
    weighted = [(name.strip(), weight) for name, equals, weight in parts if equals and _number(weight)]
    if not weighted:
        return []
    if len(weighted) != len(parts):
        raise BadConfig(f"data.path={path}: every part of a mixture is PATH=WEIGHT")
    pairs = [(name, float(weight)) for name, weight in weighted]
    if len({name for name, _ in pairs}) != len(pairs) or not all(0 < weight < 1e30 for _, weight in pairs):
        raise BadConfig(f"data.path={path}: weights must be positive, and each path must stand there once")
    return pairs


@dataclass(frozen=True)
class Mixture:
    """Corpora with the share that each has of the samples."""

    corpora: tuple[Corpus, ...]
    names: tuple[str, ...]
    parts: tuple[int, ...]
    """Of each corpus, out of their sum; coprime."""
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        tokenizers = {corpus.tokenizer_digest for corpus in self.corpora}
        if len(tokenizers) > 1:
            raise BadConfig(f"the corpora {', '.join(self.names)} were made with different tokenizers")
        lines = [f"{part} {corpus.digest}\n" for part, corpus in zip(self.parts, self.corpora, strict=True)]
        object.__setattr__(
            self, "digest", hashlib.sha256("".join(["mixture/1\n", *lines]).encode()).hexdigest()
        )

    @property
    def vocab(self) -> int:
        return max(corpus.vocab for corpus in self.corpora)

    @property
    def tokenizer(self) -> str:
        return self.corpora[0].tokenizer

    @property
    def end(self) -> int:
        return self.corpora[0].end

    def windows(self, arrangement: Arrangement) -> "MixedWindows":
        """The windows of all corpora, in one order."""
        return MixedWindows(self, arrangement)


class MixedWindows:
    """Sample i belongs to the corpus at place i of a repeating schedule, and is there the next sample.

    Within every stretch of samples each corpus has its share to within one sample or two, and exactly in a
    whole period. Each corpus has its own epochs.
    """

    every_target_counts = True

    def __init__(self, mixture: Mixture, arrangement: Arrangement) -> None:
        self._arrangement = arrangement
        self._dtype = np.result_type(*(corpus.dtype for corpus in mixture.corpora))
        self._corpora = [
            CorpusWindows(corpus, replace(arrangement, seed=_own_seed(arrangement.seed, index)))
            for index, corpus in enumerate(mixture.corpora)
        ]
        self._parts = np.array(mixture.parts, dtype=np.int64)
        self._owner, self._place = schedule(mixture.parts)
        period = len(self._owner)
        # An epoch of a mixture: as many samples as it takes for every corpus to have come once.
        self.count = max(
            -(-windows.count * period // part)
            for windows, part in zip(self._corpora, mixture.parts, strict=True)
        )
        self.notes = tuple(
            f"{name}: {part / period:.2%} of the samples, {windows.count:,} windows"
            for name, part, windows in zip(mixture.names, mixture.parts, self._corpora, strict=True)
        )

    def rows(self, samples: NDArray[np.int64]) -> Rows:
        owners, places = self.places(samples)
        length = self._arrangement.seq_len
        tokens = np.empty((len(samples), length + 1), dtype=self._dtype)
        documents = np.empty((len(samples), length), np.int64) if self._arrangement.document_mask else None
        for index in np.unique(owners):
            chosen = np.flatnonzero(owners == index)
            rows = self._corpora[index].rows(places[chosen])
            tokens[chosen] = rows.tokens
            if documents is not None and rows.documents is not None:
                documents[chosen] = rows.documents
        return Rows(tokens, documents=documents)

    def places(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(corpus, its own sample index) of each sample."""
        rounds, slots = np.divmod(samples, len(self._owner))
        owners = self._owner[slots]
        return owners, rounds * self._parts[owners] + self._place[slots]


def shares(weights: list[float]) -> tuple[int, ...]:
    """Weights as the smallest whole numbers in their ratio, to 1 part in FINEST (largest remainders)."""
    exact = np.array(weights) / sum(weights) * FINEST
    parts = np.floor(exact + 1e-6).astype(np.int64)
    for index in np.argsort(parts - exact, kind="stable")[: FINEST - int(parts.sum())]:
        parts[index] += 1
    if not parts.all():
        raise BadConfig(f"a mixture cannot hold less than 1/{FINEST} of a corpus: {weights}")
    divisor = gcd(*parts.tolist())
    return tuple((parts // divisor).tolist())


def schedule(parts: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(corpus of each slot of a period, how many slots it had before): each corpus's slots spread evenly."""
    owners = np.repeat(np.arange(len(parts)), parts)
    places = np.concatenate([np.arange(part) for part in parts])
    ideal = (places + 0.5) / np.array(parts)[owners]
    order = np.argsort(ideal, kind="stable")
    return owners[order].astype(np.int64), places[order].astype(np.int64)


def _own_seed(seed: int, index: int) -> int:
    """Another for each corpus: with one for all, corpora of equal size would come in equal orders."""
    return (seed + (index + 1) * _SEED_STRIDE) % 2**64


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

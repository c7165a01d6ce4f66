"""Data order is a pure function of the sample index: every window once per epoch, on any number of ranks."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerail_trainer.config import BatchConfig, Config, DataConfig, ModelConfig
from rerail_trainer.data.corpus import Corpus, encode, open_corpus
from rerail_trainer.data.feed import Feed, share_of
from rerail_trainer.data.order import window_of
from rerail_trainer.data.shards import header
from rerail_trainer.data.tokenizer import END_OF_DOCUMENT

SIZES = st.integers(1, 3000)
SEEDS = st.integers(0, 2**63)


@given(windows=SIZES, seed=SEEDS, epoch=st.integers(0, 10**6))
@settings(max_examples=60)
def test_every_window_comes_once_per_epoch(windows: int, seed: int, epoch: int) -> None:
    samples = np.arange(epoch * windows, (epoch + 1) * windows)
    assert sorted(window_of(samples, windows, seed)) == list(range(windows))


@given(windows=SIZES, seed=SEEDS, samples=st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
@settings(max_examples=60)
def test_a_sample_has_the_same_window_in_whatever_company_it_is_asked_for(
    windows: int, seed: int, samples: list[int]
) -> None:
    together = window_of(np.array(samples), windows, seed)
    alone = [int(window_of(np.array([sample]), windows, seed)[0]) for sample in samples]
    assert together.tolist() == alone


def test_order_differs_between_epochs_and_seeds_and_is_no_run() -> None:
    first = window_of(np.arange(1000), 1000, seed=1).tolist()
    assert first != window_of(np.arange(1000, 2000), 1000, seed=1).tolist()
    assert first != window_of(np.arange(1000), 1000, seed=2).tolist()
    assert sum(abs(a - b) == 1 for a, b in itertools.pairwise(first)) < 20


def test_without_shuffling_windows_come_as_they_lie() -> None:
    assert window_of(np.arange(5), 3, seed=1, shuffle=False).tolist() == [0, 1, 2, 0, 1]


CONFIG = Config(model=ModelConfig(seq_len=16), batch=BatchConfig(tokens_per_step=256, micro_batch=4))


def rows(step: int, world_size: int) -> torch.Tensor:
    corpus = open_corpus(DataConfig())
    feeds = [
        Feed(CONFIG, corpus, share_of(CONFIG, rank, world_size), torch.device("cpu"))
        for rank in range(world_size)
    ]
    return torch.cat([feed.batch(step).tokens for feed in feeds])


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
def test_ranks_together_take_the_same_sequences_whatever_their_number(world_size: int) -> None:
    for step in (0, 7, 10_000):
        assert torch.equal(rows(step, world_size), rows(step, 1))


def test_taking_steps_in_any_order_gives_the_same_micro_batches() -> None:
    feed = Feed(CONFIG, open_corpus(DataConfig()), share_of(CONFIG, 0, 2), torch.device("cpu"))
    straight = [feed.take(step) for step in range(4)]
    again = [feed.take(step) for step in (3, 1, 0, 2)]
    for step, got in zip((3, 1, 0, 2), again, strict=True):
        for (inputs, targets, _), (wanted_inputs, wanted_targets, _) in zip(got, straight[step], strict=True):
            assert inputs.shape == (4, 16)
            assert torch.equal(inputs, wanted_inputs)
            assert torch.equal(targets, wanted_targets)


def test_targets_are_the_inputs_one_token_on() -> None:
    feed = Feed(CONFIG, open_corpus(DataConfig()), share_of(CONFIG, 0, 1), torch.device("cpu"))
    inputs, targets, _ = feed.take(0)[0]
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_documents_end_with_their_own_token() -> None:
    assert encode([b"ab", b"c"]).tolist() == [97, 98, END_OF_DOCUMENT, 99, END_OF_DOCUMENT]


def test_shards_give_their_tokens_across_borders(tmp_path: Path) -> None:
    tokens = np.arange(100, dtype="<u2")
    for index, part in enumerate((tokens[:37], tokens[37:])):
        ints = np.zeros(256, dtype="<i4")
        ints[:3] = (20240520, 1, len(part))
        (tmp_path / f"{index}.bin").write_bytes(ints.tobytes() + part.tobytes())
    corpus = open_corpus(DataConfig(source="shards", path=str(tmp_path)))
    assert corpus.tokens == 100
    assert corpus.slice(30, 20).tolist() == list(range(30, 50))
    assert corpus.slice(99, 1).tolist() == [99]


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 12),
    places=st.lists(st.integers(0, 10**6), min_size=1, max_size=12),
    length=st.integers(1, 12),
)
@settings(max_examples=100)
def test_rows_are_gathered_across_any_number_of_borders(
    sizes: list[int], places: list[int], length: int
) -> None:
    tokens = np.arange(sum(sizes), dtype=np.uint16)
    corpus = Corpus(tuple(np.split(tokens, np.cumsum(sizes)[:-1])), 10_000, "d")
    begins = np.array([place % (len(tokens) - length + 1) for place in places])
    wanted = [tokens[begin : begin + length].tolist() for begin in begins]
    assert corpus.gather(begins, length).tolist() == wanted


@pytest.mark.parametrize("shuffle", [True, False])
def test_long_rows_of_mapped_shards_are_what_lies_on_disk(tmp_path: Path, shuffle: bool) -> None:
    random = np.random.default_rng(5)
    whole = random.integers(0, 250, 40_000).astype("<u2")
    for index, part in enumerate(np.split(whole, [0, 9_999, 10_000, 33_333])):
        (tmp_path / f"{index}.bin").write_bytes(header(len(part), part.dtype) + part.tobytes())
    config = Config(
        model=ModelConfig(seq_len=1000, vocab=257),
        data=DataConfig(source="shards", path=str(tmp_path), shuffle=shuffle),
        batch=BatchConfig(tokens_per_step=13_000, micro_batch=13),
    )
    feed = Feed(config, open_corpus(config.data), share_of(config, 0, 1), torch.device("cpu"))
    assert feed.windows == 39
    # Three steps of 13 windows are one epoch.
    rows = torch.cat([feed.batch(step).tokens for step in range(3)])
    starts = [window * 1000 for window in range(39)]
    wanted = {tuple(whole[start : start + 1001].tolist()) for start in starts}
    assert {tuple(row) for row in rows.tolist()} == wanted
    if not shuffle:
        assert rows[:, 0].tolist() == whole[starts].tolist()

"""Mixtures: which corpus and which window a sample is follows from its index alone, in exact proportions."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerail_trainer.__main__ import main
from rerail_trainer.config import BatchConfig, Config, DataConfig, ModelConfig
from rerail_trainer.configure import read_command_line
from rerail_trainer.data.corpus import Corpus, encode
from rerail_trainer.data.feed import Feed, share_of
from rerail_trainer.data.mixture import Mixture, parse_mixture, schedule, shares
from rerail_trainer.data.source import open_source
from rerail_trainer.data.windows import Arrangement, document_numbers
from rerail_trainer.failures import BadConfig

from .gang import Yard

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)
SEQ_LEN = 16


def corpus(letter: str, windows: int) -> Corpus:
    """Windows that tell who they are: token = 1000 x corpus + window."""
    base = 1000 * (ord(letter) - ord("a"))
    tokens = np.repeat(np.arange(base, base + windows, dtype=np.uint16), SEQ_LEN)
    return Corpus((np.append(tokens, np.uint16(base)),), 10_000, letter, (), "", 9_999, "t")


def mixture(**weights: float) -> Mixture:
    sizes = {"a": 40, "b": 7, "c": 13}
    return Mixture(
        tuple(corpus(name, sizes[name]) for name in weights), tuple(weights), shares(list(weights.values()))
    )


ARRANGEMENT = Arrangement(SEQ_LEN, 5, True, False, 10_000)


@given(weights=WEIGHTS)
@settings(max_examples=60)
def test_every_stretch_of_samples_holds_each_corpus_in_its_share(weights: list[float]) -> None:
    parts = shares(weights)
    owners, places = schedule(parts)
    assert np.bincount(owners).tolist() == list(parts)
    exact = np.array(weights) / sum(weights)
    assert np.abs(np.array(parts) / sum(parts) - exact).max() < 1.1e-5
    for index, part in enumerate(parts):
        own = owners == index
        assert places[own].tolist() == list(range(part))
        drift = np.cumsum(own) - np.arange(1, len(owners) + 1) * part / len(owners)
        assert np.abs(drift).max() <= 1.0 + len(parts) / 2


def test_shares_are_exact_where_weights_are_round() -> None:
    assert shares([0.7, 0.3]) == (7, 3)
    assert shares([2, 1, 1]) == (2, 1, 1)
    assert shares([1.0]) == (1,)
    assert sum(shares([1, 1, 1])) == 100_000


def test_each_corpus_goes_through_its_own_epochs_in_orders_of_their_own() -> None:
    windows = mixture(a=0.5, b=0.25, c=0.25).windows(ARRANGEMENT)
    first = windows.rows(np.arange(4 * 7 * 13)).tokens[:, 0].astype(int)
    for base, size in ((0, 40), (1000, 7), (2000, 13)):
        own = first[(first >= base) & (first < base + 1000)] - base
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert own[:size].tolist() != own[size : 2 * size].tolist()
    twins = Mixture((corpus("a", 40), corpus("b", 40)), ("a", "b"), (1, 1)).windows(ARRANGEMENT)
    both = twins.rows(np.arange(80)).tokens[:, 0].astype(int)
    assert both[both < 1000].tolist() != (both[both >= 1000] - 1000).tolist()


@given(samples=st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
@settings(max_examples=60)
def test_a_sample_is_the_same_in_whatever_company_it_is_asked_for(samples: list[int]) -> None:
    windows = mixture(a=0.6, b=0.3, c=0.1).windows(ARRANGEMENT)
    together = windows.rows(np.array(samples)).tokens
    for sample, row in zip(samples, together, strict=True):
        assert windows.rows(np.array([sample])).tokens[0].tolist() == row.tolist()


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_together_take_the_same_sequences_whatever_their_number(world_size: int) -> None:
    config = Config(
        model=ModelConfig(seq_len=SEQ_LEN, vocab=10_000),
        batch=BatchConfig(tokens_per_step=256, micro_batch=4),
    )

    def rows(step: int, ranks: int) -> torch.Tensor:
        feeds = [
            Feed(config, mixture(a=0.6, b=0.4), share_of(config, rank, ranks), torch.device("cpu"))
            for rank in range(ranks)
        ]
        return torch.cat([feed.batch(step).tokens for feed in feeds])

    for step in (0, 3, 1000):
        assert torch.equal(rows(step, world_size), rows(step, 1))


def test_weights_are_read_from_words_and_from_toml(tmp_path: Path) -> None:
    assert parse_mixture("web=0.7,code=0.3") == [("web", 0.7), ("code", 0.3)]
    assert parse_mixture("/data/lang=en=2, b=1") == [("/data/lang=en", 2.0), ("b", 1.0)]
    assert parse_mixture("/data/plain") == parse_mixture("/data/a,b") == parse_mixture("/data/lang=en") == []
    file = tmp_path / "mixed.toml"
    file.write_text('[data]\nsource = "shards"\n[data.path]\n"web" = 0.7\ncode = 3\n')
    assert read_command_line(["--config", str(file)]).config.data.path == "web=0.7,code=3"


REFUSED = {
    "half of a mixture": ("a=1,b", "every part of a mixture is PATH=WEIGHT"),
    "nothing of one": ("a=1,b=0", "weights must be positive"),
    "no number": ("a=1,b=nan", "weights must be positive"),
    "one path twice": ("a=1,a=2", "each path must stand there once"),
    "less than the schedule can hold": ("a=1,b=0.000001", "cannot hold less than 1/100000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    path, message = REFUSED[case]
    with pytest.raises(BadConfig, match=message):
        shares([weight for _, weight in parse_mixture(path)])


def prepared(folder: Path, name: str, letters: str) -> Path:
    lines = [
        json.dumps({"text": f"{letter} " * (20 + index % 9)}) for index, letter in enumerate(letters * 30)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    words = ["prepare", str(folder / f"{name}.jsonl"), "--out", str(folder / name), "--workers", "1"]
    assert main(words) == 0
    return folder / name


def test_corpora_of_different_tokenizers_do_not_mix() -> None:
    first = corpus("a", 40)
    second = Corpus(first.parts, 10_000, "b", (), "", 9_999, "another")
    with pytest.raises(BadConfig, match="corpora a, b were made with different tokenizers"):
        Mixture((first, second), ("a", "b"), (1, 1))


def test_a_mixture_resumes_bit_for_bit_on_two_ranks_and_at_the_next_sample_on_four(
    yard: Yard, tmp_path: Path
) -> None:
    web, code = prepared(tmp_path, "web", "abcdef"), prepared(tmp_path, "code", "uvwxyz")
    words = ("--data.source=shards", f"--data.path={web}=0.7,{code}=0.3")
    straight = yard.run(*words, f"--checkpoint.dir={tmp_path}/straight", ranks=2)
    assert f"{web}: 70.00% of the samples" in straight.output()
    gang = yard.start(*words, ranks=2, at={"rank": 1, "point": "due", "step": 6, "signal": "SIGKILL"})
    assert gang.end_of(1) == -signal.SIGKILL
    rest = yard.run(*words, "--train.steps=6", "--optim.horizon_steps=8", ranks=2)
    assert rest.losses() == {step: straight.losses()[step] for step in (5, 6)}
    last = yard.run(*words, ranks=4)
    assert last.losses() == pytest.approx({step: straight.losses()[step] for step in (7, 8)}, abs=2e-5)
    other = yard.start("--data.source=shards", f"--data.path={web}=0.3,{code}=0.7")
    assert other.wait() == [65]
    assert "was trained on other data" in other.output()


# Documents inside a window.


def test_documents_are_numbered_and_end_with_their_end_token() -> None:
    tokens = np.array([[5, 6, 9, 7, 9, 9, 8], [9, 1, 2, 3, 4, 5, 9], [1, 2, 3, 4, 5, 6, 7]], dtype=np.uint16)
    assert document_numbers(tokens, 9).tolist() == [
        [0, 0, 0, 1, 1, 2, 3],
        [0, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_the_feed_numbers_documents_where_attention_must_stay_inside() -> None:
    config = Config(
        model=ModelConfig(seq_len=1024, vocab=257),
        data=DataConfig(document_mask=True),
        batch=BatchConfig(tokens_per_step=16_384, micro_batch=4),
    )
    feed = Feed(config, open_source(config), share_of(config, 0, 1), torch.device("cpu"))
    crossed = 0
    for inputs, targets, documents in feed.take(3):
        assert documents is not None
        assert documents.shape == inputs.shape == targets.shape == (4, 1024)
        steps = documents.diff(dim=1)
        assert torch.equal(steps == 1, inputs[:, :-1] == 256)
        assert set(steps.unique().tolist()) <= {0, 1}
        crossed += int(steps.sum())
    assert crossed
    plain = Config(model=config.model, batch=config.batch)
    assert (
        Feed(plain, open_source(plain), share_of(plain, 0, 1), torch.device("cpu")).take(3)[0].documents
        is None
    )


def test_plain_shards_do_not_tell_where_documents_end() -> None:
    tokens = encode([b"x" * 100])
    with pytest.raises(BadConfig, match=r"data\.document_mask needs to know the end-of-document token"):
        Corpus((tokens,), 257, "d").windows(Arrangement(16, 1, True, True, 257))


def test_attention_inside_documents_is_another_training_the_same_in_every_layout(yard: Yard) -> None:
    words = (
        "--model.seq_len=512",
        "--batch.tokens_per_step=4096",
        "--batch.micro_batch=2",
        "--train.steps=3",
    )
    plain = yard.run(*words, f"--checkpoint.dir={yard.folder}/plain").losses()
    masked = yard.run(*words, "--data.document_mask=true", f"--checkpoint.dir={yard.folder}/masked").losses()
    assert all(masked[step] != plain[step] for step in masked)
    cut = yard.run(*words, "--data.document_mask=true", "--parallel.shard=2", ranks=2).losses()
    assert cut == pytest.approx(masked, abs=5e-5)
    other = yard.start(*words, f"--checkpoint.dir={yard.folder}/masked")
    assert other.wait() == [65]
    assert "data.document_mask was True, is False" in other.output()

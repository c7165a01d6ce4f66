"""What `eval` measures is what a plain sum over single tokens gives."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rerail_trainer.data.corpus import Corpus
from rerail_trainer.data.tokenizer import Tokenizer, open_tokenizer
from rerail_trainer.evaluate.choices import accuracy, judge, passages_of
from rerail_trainer.evaluate.documents import Document, documents_of, split_at_ends
from rerail_trainer.evaluate.heldout import HeldOutLoss, Reach, measure, ratio
from rerail_trainer.evaluate.heldout import passages_of as windows_of
from rerail_trainer.evaluate.items import Item, Shots, joined, prompt_of, read_items
from rerail_trainer.evaluate.scoring import Passage, log_likelihoods, token_losses
from rerail_trainer.failures import BadConfig

from .models import QUESTION, TEXTS, a_model, asked_of, single_threaded


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


def nats_of(model: torch.nn.Module, row: list[int], scored: int) -> float:
    """Loss of the last tokens of `row`, one plain pass without batching."""
    logs = model.logits(torch.tensor([row[:-1]])).log_softmax(-1)[0]
    return -sum(float(logs[place - 1, row[place]]) for place in range(len(row) - scored, len(row)))


def documents(*texts: str) -> list[Document]:
    return [Document(np.frombuffer(text.encode(), np.uint8), len(text.encode())) for text in texts]


# Scoring


def test_a_passage_scores_the_same_alone_and_beside_longer_ones() -> None:
    model = a_model()
    passages = [
        Passage(list(text.encode())[:33], scored) for text, scored in zip(TEXTS, (3, 18, 32, 1), strict=True)
    ]
    expected = [-nats_of(model, list(passage.tokens), passage.scored) for passage in passages]
    for batch_tokens in (1, 40, 10_000):
        assert log_likelihoods(model, passages, batch_tokens) == pytest.approx(expected, rel=1e-6)


def test_token_losses_add_up_to_the_loss_of_training() -> None:
    model = a_model().float()
    rows = torch.randint(0, 257, (3, 21), generator=torch.Generator().manual_seed(1))
    targets = rows[:, 1:].clone()
    targets[1, :7] = -100
    losses = token_losses(model, rows[:, :-1], targets)
    assert float(losses.sum()) == pytest.approx(float(model(rows[:, :-1], targets)), rel=1e-5)
    assert not losses[1, :7].any()


# Held-out text


@pytest.mark.parametrize("stride", [1, 7, 16, 32])
def test_every_token_is_scored_once_and_with_the_context_promised(stride: int) -> None:
    asked, document = asked_of(a_model()), documents(TEXTS[2])[0]
    row, place = [256, *document.tokens.tolist()], 1
    for passage in windows_of(asked, document, stride):
        assert (
            list(passage.tokens) == row[place + passage.scored - len(passage.tokens) : place + passage.scored]
        )
        context = len(passage.tokens) - passage.scored
        # The least context is that of the first scored token.
        assert context >= min(place, 32 - stride + 1)
        place += passage.scored
    assert place == len(row)


def test_bits_per_byte_are_all_nats_over_all_bytes() -> None:
    asked = asked_of(a_model())
    measured = measure(asked, documents(*TEXTS[:2]), Reach(stride=1, batch_tokens=64))
    nats = sum(
        nats_of(asked.model, [256, *text.encode()][max(0, place - 32) : place + 1], 1)
        for text in TEXTS[:2]
        for place in range(1, len(text) + 1)
    )
    count = len("".join(TEXTS[:2]))
    assert (measured.documents, measured.tokens, measured.bytes) == (2, count, count)
    assert measured.loss == pytest.approx(nats / count, rel=1e-6)
    assert measured.bits_per_byte == pytest.approx(nats / count / math.log(2), rel=1e-6)
    assert measured.perplexity == pytest.approx(math.exp(nats / count), rel=1e-6)


def test_the_size_of_a_batch_makes_no_difference() -> None:
    asked = asked_of(a_model())
    one, many = (measure(asked, documents(*TEXTS), Reach(8, batch_tokens)) for batch_tokens in (1, 4096))
    assert close(one, many)


def close(one: HeldOutLoss, other: HeldOutLoss) -> bool:
    left, right = vars(one), vars(other)
    return left == {name: value and pytest.approx(value, rel=1e-9) for name, value in right.items()}


def test_the_standard_error_is_that_of_a_ratio_over_documents() -> None:
    # Documents of one size: the ratio's error is the plain standard error of a mean.
    values, size = [3.0, 5.0, 4.0, 8.0], 2
    share, error = ratio(values, [size] * 4)
    assert share == pytest.approx(2.5)
    assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(4) / size)
    assert ratio([3.0], [2]) == (1.5, None)


def test_the_standard_error_of_a_ratio_is_the_spread_over_samples() -> None:
    draw = np.random.default_rng(2)

    def sample() -> tuple[float, float | None]:
        sizes = draw.integers(5, 50, 200)
        return ratio((sizes * draw.normal(2.0, 0.3, 200)).tolist(), sizes.tolist())

    shares, errors = zip(*(sample() for _ in range(400)), strict=True)
    assert np.std(shares) == pytest.approx(np.mean(errors), rel=0.1)


def test_measuring_stops_after_so_many_tokens_at_the_end_of_a_document() -> None:
    asked = asked_of(a_model())
    measured = measure(asked, documents(*TEXTS), Reach(8, 64, max_tokens=50))
    assert measured.documents == 2


def test_a_long_document_is_scored_in_portions_and_each_is_told() -> None:
    asked, told = asked_of(a_model()), list[int]()
    text = documents("To be or not to be. " * 200)
    measured = measure(asked, text, Reach(16, 64), told.append)
    assert len(told) > 3
    assert sum(told) == measured.tokens == 4000
    assert close(measured, measure(asked, text, Reach(16, 100_000)))


def test_no_text_is_no_measurement() -> None:
    with pytest.raises(BadConfig, match="no held-out text"):
        measure(asked_of(a_model()), documents(""), Reach(8, 64))


def test_documents_are_found_between_end_tokens_even_across_shards() -> None:
    parts = (
        np.array([1, 2, 9, 3], np.uint16),
        np.array([4], np.uint16),
        np.array([9, 9, 5, 9, 6], np.uint16),
    )
    found = [tokens.tolist() for tokens in split_at_ends(Corpus(parts, 10, "", end=9))]
    assert found == [[1, 2], [3, 4], [], [5], [6]]


def test_texts_and_json_lines_give_documents_with_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("naïve")
    (tmp_path / "b.jsonl").write_text('{"body": "one"}\n\n{"body": "\\u00e9"}\n')
    found = list(documents_of(str(tmp_path), "body", open_tokenizer("bytes")))
    assert [(bytes(d.tokens.tolist()).decode(), d.size) for d in found] == [
        ("naïve", 6),
        ("one", 3),
        ("é", 2),
    ]
    with pytest.raises(BadConfig, match=r"b.jsonl line 1: 'text' must be text, not None"):
        list(documents_of(str(tmp_path), "text", open_tokenizer("bytes")))


# Multiple choice


def test_the_likeliest_choice_is_the_verdict_by_sum_and_by_byte() -> None:
    asked = asked_of(a_model(seq_len=64))
    verdict = judge(asked, [QUESTION], Shots(), batch_tokens=100)[0]
    context = "Question: Which one?\nAnswer:"
    nats = [
        -nats_of(asked.model, list(f"{context} {choice}".encode()), len(choice) + 1)
        for choice in QUESTION.choices
    ]
    assert verdict.log_likelihoods == pytest.approx(nats, rel=1e-6)
    assert verdict.chosen == int(np.argmax(nats))
    assert verdict.chosen_by_byte == int(
        np.argmax([n / len(c) for n, c in zip(nats, QUESTION.choices, strict=True)])
    )


JOINS = {
    ("Answer:", "yes"): "Answer: yes",
    ("Answer: ", "yes"): "Answer: yes",
    ("Answer:", " yes"): "Answer: yes",
    ("Answer:  ", "  yes"): "Answer: yes",
    ("Answer:\n", "yes"): "Answer:\nyes",
    ("", "yes"): "yes",
}


@pytest.mark.parametrize("parts", JOINS)
def test_context_and_choice_are_joined_by_one_space(parts: tuple[str, str]) -> None:
    assert joined(*parts) == JOINS[parts]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE that merges across the border of context and choice: it splits no words."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(["is: no", "is: now", "is: not at all", "is: yes"] * 50, trainer)
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    inner.save(str(file))
    return open_tokenizer(str(file))


def test_choices_are_scored_from_one_token_even_where_tokens_cross_the_border(bpe: Tokenizer) -> None:
    asked = asked_of(a_model(vocab=300), bpe)
    answers = ("no", "not at all", "yes")
    whole = [bpe.encode(f"is: {answer}") for answer in answers]
    alone = bpe.encode("is:")
    assert any(row[: len(alone)] != alone for row in whole), "the tokenizer crosses the border"
    passages, cut = passages_of(asked, "is:", answers)
    assert [list(passage.tokens) for passage in passages] == whole
    starts = {len(passage.tokens) - passage.scored for passage in passages}
    assert len(starts) == 1
    assert not cut


def test_bytes_of_tokens_are_counted_right_for_a_bpe(bpe: Tokenizer) -> None:
    asked = asked_of(a_model(vocab=300), bpe)
    text = "is: not at all, is: naïve"
    document = Document(np.array(bpe.encode(text)), len(text.encode()))
    assert int(bpe.byte_lengths()[document.tokens].sum()) == len(text.encode())
    measured = measure(asked, [document], Reach(16, 64))
    assert measured.bytes == len(text.encode())
    assert measured.tokens < measured.bytes
    assert measured.bits_per_byte * measured.bytes == pytest.approx(
        measured.loss * measured.tokens / math.log(2)
    )


def test_a_question_without_words_is_scored_from_the_beginning_of_a_document() -> None:
    passages, _ = passages_of(asked_of(a_model()), "", ("ab", "c"))
    assert [(list(passage.tokens), passage.scored) for passage in passages] == [
        ([256, *b"ab"], 2),
        ([256, *b"c"], 1),
    ]


def test_what_is_longer_than_the_window_loses_its_beginning_and_it_is_said() -> None:
    asked = asked_of(a_model())
    passages, cut = passages_of(asked, "x" * 50 + ":", ("ab", "cde"))
    assert cut
    assert [len(passage.tokens) for passage in passages] == [33, 33]
    assert bytes(passages[0].tokens[-4:]) == b": ab"
    with pytest.raises(BadConfig, match="alone is longer than the model's 32 tokens"):
        passages_of(asked, "q:", ("a" * 33, "b"))


def test_solved_examples_come_first_of_the_same_category_and_never_the_item_itself() -> None:
    items = [
        Item(f"{category}{number}", ("no", "yes"), number % 2, category=category)
        for category in "ab"
        for number in range(4)
    ]
    prompt = prompt_of(items[4], Shots(count=2, examples=items))
    assert prompt == ("Question: b1\nAnswer: yes\n\nQuestion: b2\nAnswer: no\n\nQuestion: b0\nAnswer:")
    with pytest.raises(BadConfig, match="only 3 examples"):
        prompt_of(items[4], Shots(count=4, examples=items))


def test_letters_stand_for_the_choices() -> None:
    shots = Shots(template="{question}\nAnswer:", letters=True)
    assert prompt_of(QUESTION, shots) == (
        "Which one?\nA. the first of them\nB. none\nC. all that there are\nAnswer:"
    )
    asked = asked_of(a_model(seq_len=96))
    assert judge(asked, [QUESTION], shots, 64)[0].answers == ("A", "B", "C")


def test_what_a_line_brings_along_stands_before_its_question() -> None:
    assert prompt_of(replace(QUESTION, before="Some facts."), Shots()) == (
        "Some facts.\nQuestion: Which one?\nAnswer:"
    )


GOOD_LINES: dict[str, tuple[dict[str, Any], Item]] = {
    "an index": ({"choices": ["x", "y"], "answer": 1}, Item("q", ("x", "y"), 1)),
    "a letter": ({"choices": ["x", "y"], "answer": "b"}, Item("q", ("x", "y"), 1)),
    "an index as text": ({"choices": ["x", "y"], "answer": "0"}, Item("q", ("x", "y"), 0)),
    "labels": (
        {"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        Item("q", ("x", "y", "z"), 2),
    ),
    "with context": (
        {"choices": ["x", "y"], "answer": 0, "context": "c", "few_shot": "f", "subject": "s"},
        Item("q", ("x", "y"), 0, "f\nc", "s"),
    ),
}


@pytest.mark.parametrize("case", GOOD_LINES)
def test_usual_forms_of_questions_are_read(case: str, tmp_path: Path) -> None:
    line, item = GOOD_LINES[case]
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps({"question": "q", **line}) + "\n")
    assert read_items(str(file)) == [item]


BAD_LINES: dict[str, tuple[dict[str, Any], str]] = {
    "no question": ({"choices": ["x", "y"], "answer": 0}, "'question' must be text, not None"),
    "one choice": ({"question": "q", "choices": ["x"], "answer": 0}, "1 choices; there must be 2 to 26"),
    "an empty choice": ({"question": "q", "choices": ["x", ""], "answer": 0}, "must be a list of texts"),
    "answer beyond": ({"question": "q", "choices": ["x", "y"], "answer": 2}, "'answer' is 2; it must be"),
    "no answer": ({"question": "q", "choices": ["x", "y"]}, "'answer' is None"),
    "a false letter": ({"question": "q", "choices": ["x", "y"], "answer": "C"}, "'answer' is 'C'"),
    "true": ({"question": "q", "choices": ["x", "y"], "answer": True}, "'answer' is True"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_question_that_cannot_be_put_is_named_by_its_line(case: str, tmp_path: Path) -> None:
    line, complaint = BAD_LINES[case]
    file = tmp_path / "items.jsonl"
    file.write_text(
        json.dumps({"question": "q", "choices": ["x", "y"], "answer": 0}) + "\n" + json.dumps(line)
    )
    with pytest.raises(BadConfig, match="line 2: ") as refusal:
        read_items(str(file))
    assert complaint in refusal.value.message


def test_accuracy_has_the_standard_error_of_a_mean() -> None:
    right = [True, False, True, True, False]
    told = accuracy(right)
    assert told.share == pytest.approx(0.6)
    assert told.standard_error == pytest.approx(np.std(right, ddof=1) / math.sqrt(5))
    assert accuracy([True]).standard_error is None


# The command

"""Tokenizers: text comes back as it was, forges no special token, and its bytes are counted."""

import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rerail_trainer.data.tokenizer import END_OF_DOCUMENT, ByteTokenizer, Tokenizer, open_tokenizer
from rerail_trainer.failures import BadConfig

from . import vocabularies

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
CHECKED = settings(max_examples=80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture(scope="module", params=["bytes", "byte-level BPE"])
def exact(request: pytest.FixtureRequest, folder: Path) -> Tokenizer:
    """Tokenizers that change no byte."""
    if request.param == "bytes":
        return open_tokenizer("bytes")
    return open_tokenizer(str(vocabularies.byte_level(folder / "exact")))


@given(text=TEXTS)
@CHECKED
def test_text_comes_back_as_it_was(exact: Tokenizer, text: str) -> None:
    ids = exact.encode(text)
    assert exact.decode(ids) == text
    assert all(0 <= token < exact.vocab for token in ids)


@given(text=TEXTS)
@CHECKED
def test_byte_lengths_of_the_tokens_sum_to_the_bytes_of_the_text(exact: Tokenizer, text: str) -> None:
    assert exact.byte_lengths()[exact.encode(text)].sum() == len(text.encode())


@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
@CHECKED
def test_documents_are_encoded_together_as_alone(exact: Tokenizer, texts: list[str]) -> None:
    together = exact.encode_documents(texts)
    assert [row.tolist() for row in together] == [exact.encode(text) for text in texts]


@given(parts=st.lists(TEXTS, min_size=1, max_size=4))
@example(parts=["<|endoftext|>", "a text that spells it"])
@CHECKED
def test_every_token_tells_the_character_at_which_it_begins(exact: Tokenizer, parts: list[str]) -> None:
    text = exact.end_text.join(parts)
    ids, starts = exact.encode_with_starts(text)
    assert ids == exact.encode(text, special=True)
    assert starts == sorted(starts)
    ends = [at for at, token in zip(starts, ids, strict=True) if token == exact.end]
    assert [text[at : at + len(exact.end_text)] for at in ends] == [exact.end_text] * text.count(
        exact.end_text
    )


def test_a_text_that_spells_the_end_token_does_not_become_it(exact: Tokenizer) -> None:
    text = f"one{exact.end_text}two"
    assert exact.end not in exact.encode(text)
    assert exact.end not in exact.encode_documents([text])[0]
    assert exact.decode(exact.encode(text)) == text
    special = exact.encode(text, special=True)
    assert special == [*exact.encode("one"), exact.end, *exact.encode("two")]
    assert exact.decode(special) == "onetwo"
    # Whichever way it was asked last, the next question is answered as it is asked.
    assert exact.end not in exact.encode(text)


def test_the_end_token_stands_for_no_bytes(exact: Tokenizer) -> None:
    assert exact.byte_lengths()[exact.end] == 0
    assert exact.byte_lengths().shape == (exact.vocab,)


def test_bytes_need_no_library_and_mend_what_is_no_utf8() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab, tokenizer.end) == (257, END_OF_DOCUMENT)
    assert tokenizer.encode("é") == [0xC3, 0xA9]
    assert tokenizer.decode([0xC3, 0x28, END_OF_DOCUMENT]) == "\ufffd("


def test_sentence_piece_forms_count_one_byte_more_per_document(folder: Path) -> None:
    tokenizer = open_tokenizer(str(vocabularies.sentence_piece(folder / "pieces")))
    assert tokenizer.end_text == "</s>"
    for text in ("the cat", "the  ends", "größe 日本", "a"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.byte_lengths()[tokenizer.encode(text)].sum() == len(text.encode()) + 1


def test_digests_tell_tokenizers_apart(folder: Path) -> None:
    first, second = (vocabularies.byte_level(folder / str(size), vocab=size) for size in (300, 310))
    digests = {open_tokenizer(str(path)).digest for path in (first, second)}
    assert len(digests) == 2
    assert open_tokenizer(str(first.parent)).digest == open_tokenizer(str(first)).digest
    assert open_tokenizer("bytes").digest == "bytes/1"


ENDS = {
    "the usual one": (("<|endoftext|>", "</s>"), {}, "", "<|endoftext|>"),
    "one that is named": (("<|endoftext|>", "<stop>"), {}, "<stop>", "<stop>"),
    "that of tokenizer_config.json": (("<stop>",), {"eos_token": "<stop>"}, "", "<stop>"),
    "that of tokenizer_config.json, as an object": (
        ("<stop>",),
        {"eos_token": {"content": "<stop>", "special": True}},
        "",
        "<stop>",
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_documents_end_with(case: str, tmp_path: Path) -> None:
    special, config, named, found = ENDS[case]
    file = vocabularies.with_config(vocabularies.byte_level(tmp_path, special), **config)
    tokenizer = open_tokenizer(str(file), named)
    assert tokenizer.end_text == found
    assert tokenizer.encode(found, special=True) == [tokenizer.end]


def test_refusals_are_one_line_that_says_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = vocabularies.byte_level(tmp_path / "good", ("<stop>",))
    (tmp_path / "broken.json").write_text("{}")
    cases = {
        str(tmp_path / "none.json"): "cannot be read: No such file or directory",
        str(tmp_path / "broken.json"): "is no tokenizer.json",
        str(good): "name its end-of-document token (prepare --end-token)",
    }
    for name, message in cases.items():
        with pytest.raises(BadConfig) as refusal:
            open_tokenizer(name)
        assert message in refusal.value.message
        assert "\n" not in refusal.value.message
    with pytest.raises(BadConfig, match="has no token '<halt>' to end documents with"):
        open_tokenizer(str(good), "<halt>")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BadConfig, match=r"pip install tokenizers"):
        open_tokenizer(str(good), "<stop>")

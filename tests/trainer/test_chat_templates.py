"""Chat templates render as in transformers, and answers are found in what they render."""

import sys
from pathlib import Path

import pytest

from rerail_trainer.data.answers import answers, encode_answers
from rerail_trainer.data.chat import open_template
from rerail_trainer.data.tokenizer import open_tokenizer
from rerail_trainer.failures import BadConfig

from .chats import CHATML, FORGETFUL, TALK, TEMPLATES, template_in

# Templates.


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_and_mark_answers_as_transformers_does(name: str, tokenizer_folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    template = template_in(tokenizer_folder, TEMPLATES[name])
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_folder / "tokenizer.json"),
        bos_token="<s>",
        eos_token="<|endoftext|>" if name == "built in" else "<|im_end|>",
    )
    theirs.chat_template = TEMPLATES[name]
    for upto in range(1, len(TALK) + 1):
        for prompt in (False, True):
            wanted = theirs.apply_chat_template(TALK[:upto], tokenize=False, add_generation_prompt=prompt)
            assert template.render(TALK[:upto], prompt) == wanted
    if name == "with generation marks":
        marked = theirs.apply_chat_template(
            TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ((text, spans),) = answers(template, TALK)
        ids, counted = encode_answers(open_tokenizer(str(tokenizer_folder)), text, spans)
        assert ids.tolist() == marked["input_ids"][: len(ids)]
        assert counted.tolist() == [bool(flag) for flag in marked["assistant_masks"][: len(ids)]]
        assert not any(marked["assistant_masks"][len(ids) :])


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_what_the_assistant_says_up_to_its_end_mark(name: str, tokenizer_folder: Path) -> None:
    template = template_in(tokenizer_folder, TEMPLATES[name])
    ((text, spans),) = answers(template, TALK)
    mark = "<|endoftext|>" if name == "built in" else "<|im_end|>"
    assert [text[begin:end] for begin, end in spans] == [
        f"On the mat, in größter Ruhe.{mark}",
        f"Beside it.\nAsleep.{mark}",
    ]
    assert len(text) == spans[-1][1]
    # A beginning-of-text token stands where the template writes it, and no second one before it.
    ids = open_tokenizer(str(tokenizer_folder)).encode(text, special=True)
    begin = open_tokenizer(str(tokenizer_folder)).encode("<s>", special=True)
    assert ids.count(begin[0]) == (name == "with a beginning-of-text token")


def test_a_template_that_forgets_gives_every_answer_a_text_of_its_own(tokenizer_folder: Path) -> None:
    template = template_in(tokenizer_folder, FORGETFUL)
    thought = [
        {**message, "content": f"<think>hm</think>{message['content']}"}
        if message["role"] == "assistant"
        else message
        for message in TALK
    ]
    texts = answers(template, thought)
    assert [[text[begin:end] for begin, end in spans] for text, spans in texts] == [
        ["<think>hm</think>On the mat, in größter Ruhe.<|im_end|>"],
        ["<think>hm</think>Beside it.\nAsleep.<|im_end|>"],
    ]
    assert texts[1][0].count("<think>") == 1
    # Without thoughts nothing is forgotten, and one text holds both answers.
    assert len(answers(template, TALK)) == 1


def test_the_built_in_template_needs_no_jinja2(
    monkeypatch: pytest.MonkeyPatch, tokenizer_folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    template = open_template(open_tokenizer("bytes"))
    assert template.render(TALK[:2], prompt=True) == (
        "<|system|>\nBe brief.\n<|user|>\nWhere is the cat?\n<|assistant|>\n"
    )
    with pytest.raises(BadConfig, match=r"pip install jinja2"):
        template_in(tokenizer_folder, CHATML).render(TALK)


def test_templates_that_cannot_serve_are_refused(tokenizer_folder: Path) -> None:
    with pytest.raises(BadConfig, match="is no chat template"):
        template_in(tokenizer_folder, "{% for %}").render(TALK)
    with pytest.raises(BadConfig, match="cannot render a conversation: roles must alternate"):
        template_in(tokenizer_folder, "{{ raise_exception('roles must alternate') }}").render(TALK)
    with pytest.raises(BadConfig, match="does not write a conversation as the beginning of a longer one"):
        answers(template_in(tokenizer_folder, "{{ messages | length }}{{ messages[-1].content }}"), TALK)


def test_a_template_file_wins_over_the_configuration(tokenizer_folder: Path) -> None:
    (tokenizer_folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert template_in(tokenizer_folder, CHATML).render(TALK) == "Be brief.!"

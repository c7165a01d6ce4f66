"""Conversations as tokens, each with a flag that says whether it belongs to an answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rerail_trainer.failures import BadConfig

from .chat import ASSISTANT, Message, Template
from .tokenizer import Tokenizer

COUNTED = np.uint32(1 << 31)
"""Flag of a token that belongs to an answer."""
BEGINS = np.uint32(1 << 30)
"""Flag of the first token of a text."""
TOKEN = np.uint32((1 << 30) - 1)
"""The bits of the token itself."""

COMPLAINT = 'a conversation is {"messages": [{"role": ..., "content": ...}, ...]}'


def messages_of(value: Any) -> tuple[list[Message], str]:
    """(messages, what is wrong with them): nothing and a complaint, or a list of role and content."""
    if not isinstance(value, list) or not value:
        return [], COMPLAINT
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            return [], "every message needs role and content, both text"
    return value, ""


def encode_talk(
    tokenizer: Tokenizer, template: Template, messages: Sequence[Message]
) -> list[NDArray[np.uint32]]:
    """The texts of a conversation as flagged tokens; none where nobody answers."""
    rows = list[NDArray[np.uint32]]()
    for text, spans in answers(template, messages):
        ids, counted = encode_answers(tokenizer, text, spans)
        row = ids | np.where(counted, COUNTED, np.uint32(0))
        row[:1] |= BEGINS
        rows.append(row)
    return rows


def encode_answers(
    tokenizer: Tokenizer, text: str, spans: list[tuple[int, int]]
) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Tokens of a rendered conversation, and which of them begin inside a span of characters."""
    ids, starts = tokenizer.encode_with_starts(text)
    places = np.array(starts, dtype=np.int64)
    counted = np.zeros(len(ids), dtype=bool)
    for begin, end in spans:
        counted |= (places >= begin) & (places < end)
    return np.array(ids, dtype=np.uint32), counted


def answers(template: Template, messages: Sequence[Message]) -> list[tuple[str, list[tuple[int, int]]]]:
    """Texts to train on, each with the spans (begin, end in characters) of the assistant's answers in it.

    An answer is what rendering with it adds to rendering the prompt before it, without white space after its
    last word. Where a template writes earlier answers differently from the last (as those that drop the
    reasoning of earlier turns), every answer becomes a text of its own, as it would be asked for.
    """
    places = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
    found = [_last_answer(template, messages[: index + 1]) for index in places]
    if not found:
        return []
    whole = template.render(messages[: places[-1] + 1])
    if all(whole.startswith(text[: span[1]]) for text, span in found):
        return [(whole[: found[-1][1][1]], [span for _, span in found])]
    return [(text[: span[1]], [span]) for text, span in found]


def _last_answer(template: Template, messages: Sequence[Message]) -> tuple[str, tuple[int, int]]:
    text = template.render(messages)
    for prompt in (True, False):
        before = template.render(messages[:-1], prompt)
        if text.startswith(before):
            return text, (len(before), max(len(before), len(text.rstrip())))
    raise BadConfig(
        f"{template.origin} does not write a conversation as the beginning of a longer one: "
        "where its answers lie cannot be told"
    )

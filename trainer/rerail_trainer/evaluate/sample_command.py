"""`sample`: text from a checkpoint or an exported model. Torch-free until a model is opened."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerail_trainer.commands import Words
from rerail_trainer.failures import BadConfig

from .asked import Asked, add_model_words, open_asked
from .prompts import add_sampling_words, before, read_prompts, rows_of, sampling_of, stops_of

if TYPE_CHECKING:
    from .generate import Continuation


@dataclass(frozen=True)
class Written:
    """What a model wrote after one prompt: text, number of tokens, and why it ended."""

    prompt: str
    text: str
    tokens: int
    why: str


def main(words: Sequence[str]) -> int:
    """Writes texts to standard output, and how fast they came to standard error."""
    options = _words().parse_args(words)
    if (options.prompt is None) == (options.prompts is None):
        raise BadConfig("sample needs --prompt TEXT (may come often) or --prompts FILE, one of the two")
    prompts = options.prompt or read_prompts(options.prompts)
    asked = open_asked(options.model, options)
    begin = time.perf_counter()
    texts = write(asked, prompts, options)
    seconds = time.perf_counter() - begin
    for written in texts:
        sys.stdout.write(_shown(written, options))
    count = sum(written.tokens for written in texts)
    sys.stderr.write(f"{asked.origin}: {count} tokens in {seconds:.2f} s, {count / seconds:,.1f} tokens/s\n")
    return 0


def _words() -> Words:
    words = Words("sample", "Continues prompts with a trained model.")
    words.add_argument("model", help="checkpoint folder, step folder, or exported model directory")
    words.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may come often")
    add_sampling_words(words)
    add_model_words(words)
    words.add_argument("--json", action="store_true", help="one JSON object per prompt")
    return words


def write(asked: Asked, prompts: Sequence[str], options: argparse.Namespace) -> list[Written]:
    """Texts after `prompts`, in their order, as the sampling flags say."""
    from .generate import generate

    tokenizer, sampling = asked.tokenizer, sampling_of(options, asked.tokenizer)
    found = generate(
        asked.model, rows_of(prompts, asked, options.chat), sampling, stops_of(options.stop, tokenizer)
    )
    return [_read(one, prompt, asked, options.stop) for one, prompt in zip(found, prompts, strict=True)]


def _read(one: "Continuation", prompt: str, asked: Asked, stops: list[str]) -> Written:
    text = before(asked.tokenizer.decode(one.tokens), stops)
    return Written(prompt, text, len(one.tokens), one.why)


def _shown(written: Written, options: argparse.Namespace) -> str:
    if options.json:
        row = {
            "prompt": written.prompt, "text": written.text, "tokens": written.tokens, "ended": written.why,
        }  # fmt: skip
        return json.dumps(row, ensure_ascii=False) + "\n"
    return f"{'' if options.chat else written.prompt}{written.text}\n"

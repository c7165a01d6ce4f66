"""Prompts from the command line or a file, and the words that say how to continue them. Torch-free."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rerail_trainer.commands import Words
from rerail_trainer.data.tokenizer import Tokenizer
from rerail_trainer.failures import BadConfig

from .asked import Asked
from .lines import read_lines, read_text, with_newlines

if TYPE_CHECKING:
    from .generate import Sampling, Stops


def add_sampling_words(words: Words) -> None:
    """The flags that say how text is drawn."""
    words.add_argument("--prompts", metavar="FILE", help='one prompt per line, or .jsonl with "prompt"')
    words.add_argument("--max-tokens", type=int, default=128, help="longest continuation, in tokens")
    words.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token")
    words.add_argument("--top-k", type=int, default=0, help="draw from so many likeliest tokens; 0: all")
    words.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this mass")
    words.add_argument("--seed", type=int, default=0, help="the same seed draws the same texts")
    words.add_argument(
        "--stop",
        type=with_newlines,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may come often, \\n is understood",
    )
    words.add_argument("--batch", type=int, default=16, help="prompts that run together")
    words.add_argument("--chat", action="store_true", help="each prompt is a user's message to the assistant")


def sampling_of(options: argparse.Namespace, tokenizer: Tokenizer) -> "Sampling":
    """The flags, checked; a chat's texts end where the template ends an answer, too."""
    from .generate import Sampling

    rules = [
        (options.max_tokens >= 1, f"--max-tokens {options.max_tokens} must be at least 1"),
        (options.temperature >= 0, f"--temperature {options.temperature} must not be negative"),
        (options.top_k >= 0, f"--top-k {options.top_k} must not be negative"),
        (0 < options.top_p <= 1, f"--top-p {options.top_p} must lie above 0 and at most at 1"),
        (options.seed >= 0, f"--seed {options.seed} must not be negative"),
        (options.batch >= 1, f"--batch {options.batch} must be at least 1"),
        (all(options.stop), "--stop '' would end every text at once"),
    ]
    for holds, message in rules:
        if not holds:
            raise BadConfig(message)
    return Sampling(
        ends=(tokenizer.end, *(_ends_of_answers(tokenizer) if options.chat else ())),
        vocab=tokenizer.vocab,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        batch=options.batch,
    )


def rows_of(prompts: Sequence[str], asked: Asked, chat: bool) -> list[list[int]]:
    """The tokens to continue; in a chat those of the user's message, up to where the answer begins."""
    if not chat:
        return [asked.start(prompt) for prompt in prompts]
    from rerail_trainer.data.chat import open_template

    template = open_template(asked.tokenizer)
    texts = [template.render([{"role": "user", "content": prompt}], prompt=True) for prompt in prompts]
    # A template names its special tokens itself, the one at the beginning among them.
    return [asked.tokenizer.encode(text, special=True) for text in texts]


def _ends_of_answers(tokenizer: Tokenizer) -> tuple[int, ...]:
    from rerail_trainer.data.chat import open_template

    ids = tokenizer.encode(dict(open_template(tokenizer).names)["eos_token"], special=True)
    return tuple(ids) if len(ids) == 1 else ()


def read_prompts(path: str) -> list[str]:
    """Prompts of a file: {"prompt": ...} per line of a .jsonl, else every line that is not empty."""
    if path.endswith(".jsonl"):
        return [line.text("prompt") for line in read_lines(path)]
    prompts = [line for line in read_text(path).split("\n") if line.strip()]
    if not prompts:
        raise BadConfig(f"{path} holds no prompt")
    return prompts


def stops_of(texts: list[str], tokenizer: Tokenizer) -> "Stops | None":
    """Whether tokens spell one of `texts`; None where there is none to look for."""
    if not texts:
        return None
    # Asked after every token, so a stop ends in the last one, and no token spells less than a byte of it.
    reach = max(len(text.encode()) for text in texts) + 4

    def stops(tokens: list[int]) -> bool:
        tail = tokenizer.decode(tokens[-reach:])
        return any(text in tail for text in texts)

    return stops


def before(text: str, stops: list[str]) -> str:
    """`text` up to the first of the stop texts in it."""
    return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]

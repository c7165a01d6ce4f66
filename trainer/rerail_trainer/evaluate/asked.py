"""The words that eval, sample and compare share: which model, on what device, with which tokenizer.

Torch-free until a model is opened.
"""

import argparse
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rerail_trainer.commands import Words
from rerail_trainer.data.tokenizer import Tokenizer, open_tokenizer
from rerail_trainer.environment import rank_identity
from rerail_trainer.failures import BadConfig

if TYPE_CHECKING:
    from rerail_trainer.model import Transformer


@dataclass(frozen=True)
class Asked:
    """A model that is open, its tokenizer, and where it came from."""

    model: "Transformer"
    tokenizer: Tokenizer
    origin: str
    begin: tuple[int, ...] = ()
    """Tokens before every text."""

    def start(self, text: str) -> list[int]:
        """Tokens of a text that stands at the beginning of a document; never none, as a model needs something
        to continue: an empty text is the end token of the document before.
        """
        return [*self.begin, *self.tokenizer.encode(text)] or [self.tokenizer.end]


def add_model_words(words: Words) -> None:
    """The flags that say how models are opened."""
    words.add_argument("--step", type=int, help="step of a checkpoint folder; default the newest good one")
    words.add_argument("--tokenizer", default="", help="bytes or a tokenizer.json, where the model has none")
    words.add_argument(
        "--begin", default="", metavar="TEXT", help="special text before every text, as <|begin_of_text|>"
    )
    words.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where it runs")
    words.add_argument(
        "--dtype", choices=("stored", "float32", "bfloat16"), default="stored", help="of the weights"
    )


def open_asked(path: str, options: argparse.Namespace) -> Asked:
    """Opens the model at `path` as the flags say. BadConfig where it has no tokenizer and none is named."""
    ranks = rank_identity(os.environ).world_size
    if ranks > 1:
        raise BadConfig(f"this command is one process, and {ranks} ranks were started: ask for one")
    import torch

    from rerail_trainer.weights import open_model

    wanted = options.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    elif wanted == "cuda" and not torch.cuda.is_available():
        raise BadConfig("--device cuda: torch finds no CUDA device here")
    dtype = None if options.dtype == "stored" else getattr(torch, options.dtype)
    opened = open_model(path, torch.device(wanted), dtype, options.step)
    tokenizer = open_tokenizer(options.tokenizer) if options.tokenizer else opened.tokenizer
    if tokenizer is None:
        raise BadConfig(f"{path} holds no tokenizer: name it with --tokenizer (bytes or a tokenizer.json)")
    if tokenizer.vocab > opened.config.vocab:
        raise BadConfig(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab} tokens, the model {opened.config.vocab}: "
            "it is another model's"
        )
    begin = tuple(tokenizer.encode(options.begin, special=True)) if options.begin else ()
    return Asked(opened.model, tokenizer, opened.origin, begin)

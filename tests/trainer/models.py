"""Small models with random weights for tests of what is done with a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rerail_trainer.config import ModelConfig
from rerail_trainer.data.tokenizer import ByteTokenizer, Tokenizer
from rerail_trainer.evaluate.asked import Asked
from rerail_trainer.evaluate.items import Item
from rerail_trainer.model import Transformer, fill

DENSE: dict[str, Any] = {
    "layers": 2, "dim": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 48, "seq_len": 32, "vocab": 257,
}  # fmt: skip
MIXED: dict[str, Any] = {**DENSE, "experts": 4, "experts_per_token": 2, "expert_ffn": 24, "dense_layers": 1}

TEXTS = (
    "To be or not to be, that is the question:",
    "Whether 'tis nobler",
    "in the mind to suffer: " * 5,
    "é",
)
QUESTION = Item("Which one?", ("the first of them", "none", "all that there are"), 1)


def a_model(seed: int = 1, sharpness: float = 3.0, **settings: Any) -> Transformer:
    """A model in float64, where the order of sums does not show; with experts in float32, as their products
    know no float64. sharpness: factor on the output head, so that tokens differ in likelihood.
    """
    with single_threaded():
        model = Transformer(ModelConfig(**{**DENSE, **settings}))
        fill(model, seed)
        model = (model if model.config.experts else model.double()).eval()
        with torch.no_grad():
            model.head.weight.mul_(sharpness)
    return model.requires_grad_(False)


def asked_of(model: Transformer, tokenizer: Tokenizer | None = None) -> Asked:
    return Asked(model, tokenizer or ByteTokenizer(), "a test's model")


@contextmanager
def single_threaded() -> Iterator[None]:
    """Threads cost more than they bring for models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Logits of some positions only: those of whole prompts can take gigabytes, and few are looked at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from rerail_trainer.model import Transformer


@contextmanager
def head_sees(model: Transformer, chosen: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, the output head turns only what `chosen` takes from the hidden states [batch, time, dim] into
    logits.
    """

    def narrow(_: Any, words: tuple[Any, ...]) -> tuple[Any, ...]:
        return (chosen(words[0]), *words[1:])

    hook = model.head.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        hook.remove()

"""The chunked loss against the plain one, and that its logits never exist whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rerail_trainer.config import ModelConfig
from rerail_trainer.model import IGNORED, Transformer, fill
from rerail_trainer.model.loss import softmax_loss, summed_loss

TOKENS, VOCAB, DIM = 24, 37, 8


def drawn(seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets; every third target is ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, TOKENS // 2, DIM, dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(VOCAB, DIM, dtype=dtype, generator=generator, requires_grad=True)
    targets = torch.randint(0, VOCAB, (2, TOKENS // 2), generator=generator)
    targets.view(-1)[::3] = IGNORED
    return hidden, weight, targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def with_gradients(loss_of: Callable[..., Tensor], *inputs: Any) -> list[Tensor]:
    loss = loss_of(*inputs)
    (loss * 3.0).backward()
    gradients = [value.grad for value in inputs[:2]]
    for value in inputs[:2]:
        value.grad = None
    return [loss.detach(), *gradients]


@given(rows=st.integers(1, TOKENS + 1), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_loss_and_gradients_are_those_of_whole_logits_whatever_the_chunk(rows: int, seed: int) -> None:
    inputs = drawn(seed)
    chunked = with_gradients(lambda *values: summed_loss(*values, rows=rows), *inputs)
    for one, other in zip(chunked, with_gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_second_backward_pass_over_one_loss_is_refused() -> None:
    loss = summed_loss(*drawn())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it anew"):
        loss.backward()


def test_a_batch_without_any_target_has_no_loss_and_no_gradient() -> None:
    hidden, weight, targets = drawn()
    loss, *gradients = with_gradients(summed_loss, hidden, weight, torch.full_like(targets, IGNORED))
    assert float(loss) == 0.0
    assert not any(gradient.any() for gradient in gradients)


def test_under_autocast_products_are_in_bfloat16_and_the_sum_is_not() -> None:
    inputs = drawn(dtype=torch.float32)
    exact = with_gradients(summed_loss, *inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = with_gradients(summed_loss, *inputs)
    assert low[0].dtype == low[2].dtype == torch.float32
    for one, other in zip(low, exact, strict=True):
        assert 1e-5 < float((one - other).norm() / other.norm()) < 2e-2


def test_weights_that_sharding_cast_down_get_a_gradient_in_their_dtype() -> None:
    hidden, weight, targets = (value.detach() for value in drawn(dtype=torch.float32))
    inputs = (hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_(), targets)
    loss, *gradients = with_gradients(summed_loss, *inputs)
    assert loss.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2


def test_a_tied_matrix_gets_the_gradients_of_both_its_uses() -> None:
    config = ModelConfig(
        layers=1, dim=16, heads=2, kv_heads=2, head_dim=8, ffn=16, vocab=40, seq_len=8, tie=True
    )
    model = Transformer(config)
    fill(model, 1)
    tokens = torch.arange(16).view(2, 8)
    model(tokens, tokens + 1).backward()
    chunked = model.embedding.weight.grad
    assert chunked is not None
    model.embedding.weight.grad = None
    F.cross_entropy(model.logits(tokens).flatten(0, 1), (tokens + 1).flatten(), reduction="sum").backward()
    assert model.embedding.weight.grad is not None
    torch.testing.assert_close(chunked, model.embedding.weight.grad)


class Largest(TorchDispatchMode):
    """The most values that any result of an operation held."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, Tensor):
                self.values = max(self.values, one.numel())
        return out


@pytest.mark.parametrize(("loss_of", "whole"), [(plain, True), (lambda *v: summed_loss(*v, rows=4), False)])
def test_logits_never_exist_whole(loss_of: Callable[..., Tensor], whole: bool) -> None:
    inputs = drawn()
    with Largest() as largest:
        loss_of(*inputs).backward()
    assert (largest.values >= TOKENS * VOCAB) == whole
    assert whole or largest.values <= max(4 * VOCAB, VOCAB * DIM)


def test_without_gradients_none_are_computed() -> None:
    hidden, weight, targets = drawn()
    with torch.no_grad(), Largest() as largest:
        summed_loss(hidden, weight, targets, rows=4)
    assert largest.values <= max(4 * VOCAB, VOCAB * DIM)
    assert hidden.grad is weight.grad is None


def test_the_slope_of_a_chunk_is_the_probabilities_less_the_target() -> None:
    logits, targets = torch.randn(3, 5, dtype=torch.float64), torch.tensor([4, IGNORED, 0])
    loss, slope = softmax_loss(logits, targets)
    probabilities = logits.softmax(-1)
    assert float(loss) == pytest.approx(-float(probabilities[0, 4].log() + probabilities[2, 0].log()))
    torch.testing.assert_close(slope[0], probabilities[0] - F.one_hot(targets[0], 5))
    assert not slope[1].any()

"""The mixture of experts against a loop over tokens, its losses, and the bias that evens out the load."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rerail_trainer.config import ModelConfig
from rerail_trainer.model import IGNORED, Transformer, balance, fill, forget_load
from rerail_trainer.model.moe import MixtureOfExperts, Moved

CONFIG = ModelConfig(
    layers=3, dim=16, heads=2, kv_heads=2, head_dim=8, ffn=24, vocab=64, seq_len=12, experts=6,
    experts_per_token=2, expert_ffn=24, shared_ffn=12, dense_layers=1,
    balance_loss=0.01, z_loss=0.001, balance_bias=0.01,
)  # fmt: skip
NEVER = torch.zeros(())


def a_mixture(**changes: Any) -> MixtureOfExperts:
    model = Transformer(replace(CONFIG, **changes))
    fill(model, 3)
    mixture = model.blocks[1].feed_forward
    assert isinstance(mixture, MixtureOfExperts)
    return mixture


def a_model(**changes: Any) -> Transformer:
    model = Transformer(replace(CONFIG, **changes))
    fill(model, 1)
    return model


def some_tokens(batch: int = 4, seed: int = 1) -> Tensor:
    return torch.randint(0, 64, (batch, 12), generator=torch.Generator().manual_seed(seed))


def one_by_one(mixture: MixtureOfExperts, x: Tensor) -> tuple[Tensor, list[list[int]]]:
    """What the mixture does, said for one token at a time; and the choices of each."""
    config, outputs, choices = mixture.config, [], []
    for token in x.flatten(0, 1):
        logits = mixture.router.weight @ token
        scores = logits.softmax(0) if config.router_score == "softmax" else logits.sigmoid()
        chosen = sorted(range(config.experts), key=lambda e: -float(scores[e].detach() + mixture.balance[e]))
        chosen = chosen[: config.experts_per_token]
        weights = torch.stack([scores[expert] for expert in chosen])
        if config.router_norm:
            weights = weights / weights.sum()
        out = torch.zeros_like(token) if mixture.shared is None else mixture.shared(token)
        for weight, expert in zip(weights, chosen, strict=True):
            inner = F.silu(mixture.experts.gate[expert] @ token) * (mixture.experts.up[expert] @ token)
            out = out + config.router_scale * weight * (mixture.experts.down[expert] @ inner)
        outputs.append(out)
        choices.append(chosen)
    return torch.stack(outputs).view_as(x), choices


def gradients_of(module: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for parameter in module.parameters():
        parameter.grad = None
    return found


@given(
    experts=st.integers(1, 8),
    per_token=st.integers(1, 8),
    score=st.sampled_from(["softmax", "sigmoid"]),
    norm=st.booleans(),
    shared=st.sampled_from([0, 12]),
    seed=st.integers(0, 100),
)
@settings(max_examples=20)
def test_outputs_and_gradients_are_those_of_a_loop_over_tokens(
    experts: int, per_token: int, score: str, norm: bool, shared: int, seed: int
) -> None:
    mixture = a_mixture(
        experts=experts, experts_per_token=min(per_token, experts), router_score=score, router_norm=norm,
        shared_ffn=shared, router_scale=1.5, balance_loss=0.0, z_loss=0.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    mixture.balance.normal_(0.0, 0.1, generator=generator)
    x = torch.randn(2, 5, 16, generator=generator, requires_grad=True)
    wanted = torch.randn(2, 5, 16, generator=generator)
    out, routed = mixture(x)
    (out * wanted).sum().backward()
    ours, ours_x = gradients_of(mixture), x.grad
    x.grad = None
    expected, choices = one_by_one(mixture, x)
    (expected * wanted).sum().backward()
    theirs = gradients_of(mixture)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours_x, x.grad, rtol=1e-4, atol=1e-5)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    flat = [expert for chosen in choices for expert in chosen]
    assert routed.load.tolist() == [flat.count(expert) for expert in range(experts)]


@pytest.mark.parametrize("favourite", [0, 5])
def test_experts_without_a_token_do_no_harm_and_learn_nothing(favourite: int) -> None:
    mixture = a_mixture(experts_per_token=1)
    mixture.balance.fill_(-100.0)[favourite] = 100.0
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))
    out, routed = mixture(x)
    out.square().sum().backward()
    assert routed.load.tolist() == [24 if expert == favourite else 0 for expert in range(6)]
    for weight in (mixture.experts.gate, mixture.experts.up, mixture.experts.down):
        assert weight.grad is not None
        learning = weight.grad.flatten(1).abs().sum(1) > 0
        assert learning.tolist() == [expert == favourite for expert in range(6)]
    torch.testing.assert_close(out, one_by_one(mixture, x)[0], rtol=1e-5, atol=1e-5)


def test_balance_and_router_losses_are_those_of_their_formulas() -> None:
    mixture = a_mixture(router_score="sigmoid", balance_loss=0.3, z_loss=0.7)
    x = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))
    _, routed = mixture(x)
    choices = torch.tensor(one_by_one(mixture, x)[1]).view(2, 24)
    for row in range(2):
        logits = x[row] @ mixture.router.weight.t()
        shares = torch.bincount(choices[row], minlength=6) * 6 / (2 * 12)
        scores = logits.sigmoid()
        means = (scores / scores.sum(1, keepdim=True)).sum(0) / 12
        loss = 0.3 * float((shares * means).sum().detach()) + 0.7 * float(
            (logits.exp().sum(1).log() ** 2).sum().detach() / 12
        )
        assert float(routed.penalty[row].detach()) == pytest.approx(loss, rel=1e-5)


def test_the_losses_reach_the_router_and_weigh_by_targets() -> None:
    model, tokens = a_model(), some_tokens(2)
    targets = tokens.clone()
    targets[0, 4:] = IGNORED
    with_losses = float(model(tokens, targets).detach())
    model.eval()
    without = float(model(tokens, targets).detach())
    penalties: list[Tensor] = []
    for mixture in mixtures_of(model):
        mixture.register_forward_hook(lambda _, __, out: penalties.append(out[1].penalty.detach()))
    model(tokens, targets)
    expected = float((torch.stack(penalties).sum(0) * torch.tensor([4, 12])).sum())
    assert with_losses - without == pytest.approx(expected, rel=1e-3)
    model.train()(tokens, torch.full_like(tokens, IGNORED)).backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    "changes", [{}, {"experts": 0, "shared_ffn": 0, "dense_layers": 0}], ids=["moe", "dense"]
)
@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_add_up_to_the_batch(changes: dict[str, int], parts: int) -> None:
    model, tokens = a_model(**changes), some_tokens(4)
    targets = tokens.roll(-1, 1)
    targets[1, 3:] = IGNORED
    whole = model(tokens, targets)
    whole.backward()
    expected, load = gradients_of(model), [m.load.clone() for m in mixtures_of(model)]
    forget_load(model)
    losses = []
    for some, wanted in zip(tokens.chunk(parts), targets.chunk(parts), strict=True):
        losses.append(model(some, wanted))
        losses[-1].backward()
    torch.testing.assert_close(torch.stack(losses).sum(), whole, rtol=1e-6, atol=0)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(m.load, before) for m, before in zip(mixtures_of(model), load, strict=True))


def mixtures_of(model: Transformer) -> list[MixtureOfExperts]:
    return [b.feed_forward for b in model.blocks if isinstance(b.feed_forward, MixtureOfExperts)]


def test_the_bias_falls_where_the_load_is_high_and_rises_where_it_is_low() -> None:
    model = a_model()
    first, second = mixtures_of(model)
    first.load.copy_(torch.tensor([4, 0, 1, 2, 2, 3]))
    second.load.copy_(torch.tensor([2, 2, 2, 2, 2, 2]))
    spread = balance(model, lambda load: load.mul_(2), NEVER)
    assert spread is not None
    assert spread.tolist() == [2.0, 1.0]
    assert first.balance.tolist() == pytest.approx([-0.01, 0.01, 0.01, 0.0, 0.0, -0.01])
    assert not second.balance.any()
    assert not first.load.any()


def test_a_step_that_is_not_taken_moves_no_bias_and_its_load_is_forgotten() -> None:
    model = a_model()
    model(some_tokens(), some_tokens()).backward()
    balance(model, lambda load: None, torch.ones(()))
    assert not any(mixture.balance.any() or mixture.load.any() for mixture in mixtures_of(model))


def test_biases_make_a_lopsided_load_even() -> None:
    model = a_model(balance_bias=0.005, balance_loss=0.0, z_loss=0.0)
    tokens = some_tokens(32)
    spreads = []
    for _ in range(80):
        model(tokens, tokens)
        spread = balance(model, lambda load: None, NEVER)
        assert spread is not None
        spreads.append(float(spread.max()))
    assert spreads[0] > 1.3
    assert max(spreads[-5:]) < 1.15


@pytest.mark.parametrize("kind", ["none", "selective", "block"])
def test_a_block_computed_again_counts_its_load_once(kind: Any) -> None:
    model = a_model()
    model.recompute(kind)
    model(some_tokens(), some_tokens()).backward()
    assert [int(mixture.load.sum()) for mixture in mixtures_of(model)] == [4 * 12 * 2] * 2


def test_passes_without_gradients_leave_no_load() -> None:
    model = a_model()
    with torch.no_grad():
        model(some_tokens(), some_tokens())
    model.eval()(some_tokens(), some_tokens())
    assert not any(mixture.load.any() for mixture in mixtures_of(model))


def test_biases_are_saved_and_loads_are_not() -> None:
    names = a_model().state_dict().keys()
    assert [name for name in names if name.endswith("balance")] == [
        f"blocks.{layer}.feed_forward.balance" for layer in (1, 2)
    ]
    assert not any(name.endswith("load") for name in names)


def test_the_router_stays_in_float32_under_autocast() -> None:
    mixture, x = a_mixture(), torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, routed = mixture(x.bfloat16())
        logits = mixture.router(x.bfloat16())
    assert logits.dtype == routed.penalty.dtype == torch.float32
    assert low.dtype == torch.bfloat16
    assert torch.equal(routed.load, mixture(x.bfloat16().float())[1].load)


def test_parameters_have_the_names_that_checkpoints_and_exports_know() -> None:
    names = {name for name, _ in a_model().named_parameters() if name.startswith("blocks.2.feed_forward.")}
    assert {name.removeprefix("blocks.2.feed_forward.") for name in names} == {
        "router.weight", "experts.gate", "experts.up", "experts.down",
        "shared.gate.weight", "shared.up.weight", "shared.down.weight",
    }  # fmt: skip


def test_rows_that_were_moved_send_their_gradients_back() -> None:
    order = torch.tensor([3, 0, 2, 1, 5, 4])
    place = order.argsort()
    source = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: Moved.apply(rows, order // 2, place, 2), source)
    moved = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: Moved.apply(rows, place, order, 1), moved)

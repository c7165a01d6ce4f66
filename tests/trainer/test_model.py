"""The model, its numbers, and the optimizer, against independent statements of the same."""

from dataclasses import replace

import pytest
import torch

from rerail_trainer.config import ModelConfig, OptimConfig
from rerail_trainer.model import Transformer, fill, flops_per_token, param_counts
from rerail_trainer.optim import AdamW, learning_rate
from rerail_trainer.parallel.replicate import _cut

CONFIG = ModelConfig(layers=2, dim=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=64, seq_len=16)


def built(config: ModelConfig, seed: int = 1) -> Transformer:
    model = Transformer(config)
    fill(model, seed)
    return model


@pytest.mark.parametrize("changes", [{}, {"tie": True}, {"qk_norm": "head"}, {"kv_heads": 4, "layers": 3}])
def test_counted_parameters_are_those_that_are_there(changes: dict[str, int]) -> None:
    config = replace(CONFIG, **changes)
    assert param_counts(config)["total"] == sum(p.numel() for p in built(config).parameters())


def test_flops_of_gpt2_124m_are_the_published_figure() -> None:
    config = ModelConfig(
        layers=12, dim=768, heads=12, kv_heads=12, head_dim=64, ffn=2048, vocab=50304, seq_len=1024
    )
    assert flops_per_token(config) == pytest.approx(0.855e9, rel=0.01)


def test_no_position_sees_a_later_one() -> None:
    model = built(CONFIG)
    tokens = torch.arange(16)[None] % 64
    changed = tokens.clone()
    changed[0, 9:] = 5
    assert torch.equal(model.logits(tokens)[0, :9], model.logits(changed)[0, :9])
    assert not torch.equal(model.logits(tokens)[0, 9:], model.logits(changed)[0, 9:])


def test_attention_depends_on_distance_and_not_on_place() -> None:
    """RoPE: the same tokens later in the window, after other tokens that nobody attends to, score the same."""
    from rerail_trainer.model.rope import rope_table, rotate

    table = rope_table(CONFIG)
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(at: int, to: int) -> float:
        turned_query = rotate(query, table[0, at : at + 1], table[1, at : at + 1])
        turned_key = rotate(key, table[0, to : to + 1], table[1, to : to + 1])
        return float((turned_query * turned_key).sum())

    assert score(5, 2) == pytest.approx(score(12, 9), abs=1e-5)
    assert score(5, 2) != pytest.approx(score(5, 4), abs=1e-3)


def test_shared_key_heads_equal_full_heads_that_are_copies() -> None:
    shared = built(CONFIG)
    full = built(replace(CONFIG, kv_heads=4))
    full.load_state_dict(
        {
            name: value.view(2, 8, 32).repeat_interleave(2, 0).reshape(32, 32)
            if name.endswith(("key.weight", "value.weight"))
            else value
            for name, value in shared.state_dict().items()
        }
    )
    tokens = torch.arange(16)[None] % 64
    torch.testing.assert_close(shared.logits(tokens), full.logits(tokens))


def test_first_values_depend_on_seed_and_name_alone() -> None:
    first, second = built(CONFIG), built(replace(CONFIG, layers=4))
    values = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        if not name.endswith(("out.weight", "down.weight")):  # these are scaled by the depth
            assert torch.equal(parameter, values[name])
    assert not torch.equal(first.head.weight, built(CONFIG, seed=2).head.weight)


def test_adamw_is_that_of_torch_bit_for_bit() -> None:
    config = OptimConfig(weight_decay=0.1)
    ours, theirs = built(CONFIG), built(CONFIG)
    optimizer = AdamW(ours.parameters(), config)
    matrices = [p for p in theirs.parameters() if p.dim() >= 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    for count in range(1, 4):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=torch.Generator().manual_seed(count))
            b.grad = a.grad.clone()
        for group in reference.param_groups:
            group["lr"] = 0.01 * count
        reference.step()
        optimizer.step(count, 0.01 * count, unless=torch.zeros(()))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_an_update_that_must_not_be_taken_changes_nothing() -> None:
    model = built(CONFIG)
    optimizer = AdamW(model.parameters(), OptimConfig())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step(1, 0.1, unless=torch.ones(()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not moment.any() for moments in optimizer.state.values() for moment in moments.values())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_rises_then_falls_to_its_floor(schedule: str) -> None:
    config = OptimConfig(lr=1.0, warmup_steps=10, schedule=schedule, min_lr_frac=0.1)
    rates = [learning_rate(step, config, horizon=100) for step in range(120)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)


def test_buckets_hold_every_gradient_once_and_are_its_memory() -> None:
    model = built(CONFIG)
    buckets = _cut([(parameter, None) for parameter in model.parameters()])
    for bucket in buckets:
        bucket.attach()
        bucket.flat.fill_(3.0)
    assert sum(bucket.flat.numel() for bucket in buckets) == sum(p.numel() for p in model.parameters())
    assert all(p.grad is not None and bool((p.grad == 3.0).all()) for p in model.parameters())

"""The model, its numbers, and the optimizer, against independent statements of the same."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerail_trainer.config import ModelConfig, OptimConfig
from rerail_trainer.model import Transformer, fill, fill_roughly, flops_per_token, initial, param_counts
from rerail_trainer.model.initial import draws_of
from rerail_trainer.optim import AdamW, learning_rate
from rerail_trainer.parallel.replicate import _cut
from rerail_trainer.parallel.shards import Shard
from rerail_trainer.presets import PRESETS

CONFIG = ModelConfig(layers=2, dim=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=64, seq_len=16)


def built(config: ModelConfig, seed: int = 1) -> Transformer:
    model = Transformer(config)
    fill(model, seed)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"tie": True}, {"qk_norm": "head"}, {"qk_norm": "full"}, {"mlp": "gelu"},
        {"kv_heads": 4, "layers": 3}, {"experts": 4}, {"experts": 4, "dense_layers": 1, "shared_ffn": 16},
    ],
)  # fmt: skip
def test_counted_parameters_are_those_that_are_there(changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)
    assert param_counts(config)["total"] == sum(p.numel() for p in built(config).parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_counted_parameters_of_every_preset_are_those_that_are_there(name: str) -> None:
    with torch.device("meta"):
        model = Transformer(PRESETS[name].model)
    counts = param_counts(model.config)
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
    idle = sum(
        weight.numel() * (model.config.experts - model.config.experts_per_token) // model.config.experts
        for name, weight in model.named_parameters()
        if ".experts." in name
    )
    assert counts["active"] == counts["total"] - idle


@pytest.mark.parametrize(
    ("name", "gigaflops"),
    [("gpt2-124m", 0.855), ("dense-1b", 7.26), ("dense-8b", 51.5), ("moe-1b-a270m", 2.02)],
)
def test_flops_per_token_are_the_published_figures(name: str, gigaflops: float) -> None:
    assert flops_per_token(PRESETS[name].model) / 1e9 == pytest.approx(gigaflops, rel=0.002)


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


@given(data=st.data(), shape=st.sampled_from([(40, 24), (3, 40, 24), (1, 7), (5, 1, 9)]))
@settings(max_examples=40)
def test_a_part_of_a_parameter_gets_the_values_of_that_part_of_the_whole(
    data: st.DataObject, shape: tuple[int, ...]
) -> None:
    region = []
    for size in shape:
        begin = data.draw(st.integers(0, size))
        region.append((begin, data.draw(st.integers(begin, size))))
    whole, part = torch.empty(shape), torch.empty([end - begin for begin, end in region])
    with some_values_at_once(100):
        for draw in draws_of(Shard(whole, shape, (0,) * len(shape), sharded=False), "1/a", 0.5):
            draw.into_place()
        offset = tuple(begin for begin, _ in region)
        for draw in draws_of(Shard(part, shape, offset, sharded=True), "1/a", 0.5):
            draw.into_place()
    assert torch.equal(part, whole[tuple(slice(*bounds) for bounds in region)])


@contextmanager
def some_values_at_once(values: int) -> Iterator[None]:
    """So that small matrices are drawn in several goes too."""
    before, initial._DRAWN_AT_ONCE = initial._DRAWN_AT_ONCE, values
    yield
    initial._DRAWN_AT_ONCE = before


def test_a_rank_draws_little_more_than_its_own_rows() -> None:
    shape, own = (1 << 15, 1 << 10), torch.empty(10, 1 << 10)
    draws = list(draws_of(Shard(own, shape, (12_345, 0), sharded=True), "1/a", 0.5))
    assert sum(math.prod(draw.shape) for draw in draws) <= 2 << 16


def test_first_values_are_the_same_however_many_threads_draw_them() -> None:
    models = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        models.append(built(replace(CONFIG, dim=512, vocab=512)))
        torch.set_num_threads(before)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


def test_values_for_a_rehearsal_fill_everything() -> None:
    model = Transformer(replace(CONFIG, experts=4))
    for value in (*model.parameters(), *model.buffers()):
        value.detach().fill_(-1)
    fill_roughly(model)
    tokens = torch.arange(16)[None]
    assert bool(model(tokens, tokens).isfinite())
    assert not any(bool((value == -1).any()) for value in (*model.parameters(), *model.buffers()))


def test_first_values_are_normal_with_the_deviation_of_their_inputs() -> None:
    model = built(replace(CONFIG, dim=256, experts=4, expert_ffn=64, shared_ffn=64))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            assert bool((parameter == 1).all())
            continue
        residual = name.endswith(("out.weight", "down.weight", "experts.down"))
        expected = parameter.shape[-1] ** -0.5 / (2.0 if residual else 1.0)  # two layers: sqrt(2 x 2)
        assert float(parameter.std().detach()) == pytest.approx(expected, rel=0.05), name
        assert abs(float(parameter.mean().detach())) < 4 * expected / parameter.numel() ** 0.5


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

"""What a configuration may switch on in the model: norms, GELU, stretched RoPE, dropout, documents, recomputation, cache."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rerail_trainer.architecture import check_model
from rerail_trainer.config import ModelConfig
from rerail_trainer.failures import BadConfig
from rerail_trainer.model import Transformer, fill, new_cache
from rerail_trainer.model.attention import Attention
from rerail_trainer.model.rope import frequencies
from rerail_trainer.model.window import document_positions, plain_window

CONFIG = ModelConfig(layers=2, dim=32, heads=4, kv_heads=2, head_dim=8, ffn=48, vocab=64, seq_len=16)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "GELU": {"mlp": "gelu"},
    "post norm, whole projections normalised": {"norm": "post", "qk_norm": "full"},
    "heads normalised": {"qk_norm": "head"},
    "experts": {"experts": 4, "expert_ffn": 16, "shared_ffn": 16, "dense_layers": 1},
}


def built(seed: int = 1, double: bool = False, **changes: Any) -> Transformer:
    """With `double` in float64, where the order of sums does not show, if it has no experts."""
    model = Transformer(replace(CONFIG, **changes))
    fill(model, seed)
    return model.double() if double and not model.config.experts else model


def some_tokens(batch: int = 3, length: int = 16) -> Tensor:
    return torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(7))


def gradients(model: Transformer, *inputs: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(*inputs).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def normed(x: Tensor, dim: int) -> Tensor:
    return x / (
        x.square().view(*x.shape[:-1], -1, dim).mean(-1, keepdim=True) + 1e-5
    ).sqrt().repeat_interleave(dim, -1).view_as(x)


def test_a_block_with_norms_on_its_outputs_normalises_what_it_adds() -> None:
    model = built(double=True, norm="post", mlp="gelu")
    block, x = model.blocks[0], torch.randn(1, 16, 32, dtype=torch.float64)
    window = plain_window(model._rope(x.device).double(), 16)
    middle = x + normed(block.attention(x, window), 32)
    inner = F.gelu(middle @ block.feed_forward.up.weight.t(), approximate="tanh")
    expected = middle + normed(inner @ block.feed_forward.down.weight.t(), 32)
    torch.testing.assert_close(block(x, window)[0], expected)


@pytest.mark.parametrize(("kind", "dim"), [("head", 8), ("full", 32)])
def test_queries_and_keys_are_normalised_per_head_or_whole(kind: str, dim: int) -> None:
    """The same attention as without norms, whose projections give what the norms would."""
    model = built(double=True, qk_norm=kind, kv_heads=4)
    attention, x = model.blocks[0].attention, torch.randn(1, 16, 32, dtype=torch.float64)
    window = plain_window(model._rope(x.device).double(), 16)
    plain = Attention(replace(CONFIG, kv_heads=4)).double()
    plain.load_state_dict({k: v for k, v in attention.state_dict().items() if "norm" not in k})
    for projection in (plain.query, plain.key):
        projection.register_forward_hook(lambda _, __, out: normed(out, dim))
    torch.testing.assert_close(attention(x, window), plain(x, window))


def test_long_wavelengths_are_stretched_and_short_ones_are_not() -> None:
    config = replace(CONFIG, head_dim=64, rope_theta=500_000.0)
    plain = frequencies(config).tolist()
    stretched = frequencies(replace(config, rope_scaling="llama3:8:1:4:8192")).tolist()
    zones = Counter()
    for before, after in zip(plain, stretched, strict=True):
        length = 2 * math.pi / before
        if length < 8192 / 4:
            zones["short"] += 1
            assert after == before
        elif length > 8192 / 1:
            zones["long"] += 1
            assert after == pytest.approx(before / 8, rel=1e-6)
        else:
            zones["between"] += 1
            smooth = (8192 / length - 1) / (4 - 1)
            assert after == pytest.approx((1 - smooth) * before / 8 + smooth * before, rel=1e-5)
    assert all(zones[zone] for zone in ("short", "between", "long"))


@pytest.mark.parametrize(
    "text", ["llama3", "llama3:8:1:4", "yarn:8:1:4:8192", "llama3:8:4:1:8192", "llama3:a:1:4:8"]
)
def test_a_stretch_that_cannot_be_read_is_refused_in_words(text: str) -> None:
    with pytest.raises(BadConfig, match="llama3:8:1:4:8192"):
        check_model(replace(CONFIG, rope_scaling=text))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kv_heads": 3}, "must divide model.heads=4"),
        ({"head_dim": 7}, "must be even"),
        ({"dropout": 1.0}, "below 1"),
        ({"experts": 4, "experts_per_token": 5}, "must be 1 to model.experts=4"),
        ({"experts": 4, "dense_layers": 2}, "must be 0 to 1"),
        ({"experts": 4, "mlp": "gelu"}, "use model.mlp=swiglu"),
        ({"experts": 4, "expert_ffn": 20}, "multiple of 8"),
        ({"experts": -1}, "must not be negative"),
        ({"shared_ffn": 16}, "set model.experts too"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_in_words(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        check_model(replace(CONFIG, **changes))


@given(cuts=st.lists(st.integers(1, 15), max_size=5), variant=st.sampled_from(sorted(VARIANTS)))
@settings(max_examples=20)
def test_packed_documents_are_what_each_is_alone(cuts: list[int], variant: str) -> None:
    model = built(double=True, **VARIANTS[variant])
    tokens = some_tokens(1)
    bounds = [0, *sorted(set(cuts)), 16]
    pieces = list(itertools.pairwise(bounds))
    documents = torch.cat([torch.full((1, end - begin), begin * 7) for begin, end in pieces], 1)
    packed = model.logits(tokens, documents)
    alone = torch.cat([model.logits(tokens[:, begin:end]) for begin, end in pieces], 1)
    tolerance = 1e-4 if variant == "experts" else 1e-10
    torch.testing.assert_close(packed, alone, rtol=0, atol=tolerance)
    model.eval()
    parts = [model(tokens[:, begin:end], tokens[:, begin:end]) for begin, end in pieces]
    torch.testing.assert_close(model(tokens, tokens, documents), torch.stack(parts).sum(), rtol=1e-5, atol=0)


def test_positions_begin_anew_in_every_document() -> None:
    documents = torch.tensor([[5, 5, 5, 6, 6, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 0]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 0]]


def test_dropout_follows_the_generator_and_is_off_in_evaluation() -> None:
    model, tokens = built(dropout=0.3), some_tokens()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(tokens, tokens).detach())
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert torch.equal(model.eval()(tokens, tokens), built().eval()(tokens, tokens))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["selective", "block"])
def test_recomputation_changes_no_gradient_and_no_name(variant: str, kind: Any) -> None:
    model, tokens = built(dropout=0.2, **VARIANTS[variant]), some_tokens()
    documents = (torch.arange(16) > 6).long().expand(3, 16)
    names = list(model.state_dict())
    torch.manual_seed(1)
    expected = gradients(model, tokens, tokens, documents)
    model.recompute(kind)
    torch.manual_seed(1)
    assert all(map(torch.equal, gradients(model, tokens, tokens, documents), expected))
    assert list(model.state_dict()) == names


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "products_again", "rest_again"), [("selective", False, True), ("block", True, True)]
)
def test_selective_recomputation_keeps_products_and_attention(
    kind: Any, products_again: bool, rest_again: bool
) -> None:
    model, tokens = built(experts=4, expert_ffn=16, dense_layers=1), some_tokens()
    counts = []
    for wish in ("none", kind):
        model.recompute(wish)
        loss = model(tokens, tokens)
        with Calls() as calls:
            loss.backward()
        counts.append(calls.names)
    before, after = counts
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    # The whole of a block, less the products whose results only its output needs.
    assert (after["mm"] > before["mm"]) == products_again
    assert (after["_grouped_mm"] > before["_grouped_mm"]) == products_again
    assert (after[attention] == 2) == products_again
    assert (after["silu"] > before["silu"]) == rest_again


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pass_asks_the_device_for_nothing(variant: str) -> None:
    """Neither a value nor how many there are: either would make the host wait in every block."""
    model, tokens = built(dropout=0.1, **VARIANTS[variant]), some_tokens()
    documents = (torch.arange(16) > 6).long().expand(3, 16)
    with Calls() as calls:
        model(tokens, tokens, documents).backward()
    assert not calls.names.keys() & {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal"}


@given(cuts=st.lists(st.integers(1, 15), max_size=5), variant=st.sampled_from(sorted(VARIANTS)))
@settings(max_examples=20)
def test_logits_with_a_cache_are_those_without(cuts: list[int], variant: str) -> None:
    model, tokens = built(double=True, **VARIANTS[variant]).eval(), some_tokens(2)
    bounds = [0, *sorted(set(cuts)), 16]
    with torch.no_grad():
        cache = new_cache(model.config, 2, model.norm.weight)
        parts = [model.logits(tokens[:, begin:end], cache=cache) for begin, end in itertools.pairwise(bounds)]
        assert cache.length == 16
        whole = model.logits(tokens)
    torch.testing.assert_close(
        torch.cat(parts, 1), whole, rtol=0, atol=1e-4 if variant == "experts" else 1e-10
    )


def test_a_cache_that_is_set_back_forgets() -> None:
    model, tokens = built().eval(), some_tokens(2)
    with torch.no_grad():
        cache = new_cache(model.config, 2, model.norm.weight, capacity=12)
        model.logits(tokens[:, :8], cache=cache)
        first = model.logits(tokens[:, 8:10], cache=cache)
        cache.length = 8
        assert torch.equal(model.logits(tokens[:, 8:10], cache=cache), first)


def test_positions_that_there_is_no_room_for_are_refused() -> None:
    model, tokens = built().eval(), some_tokens(2)
    with pytest.raises(ValueError, match=r"17 positions are more than model\.seq_len=16"):
        model.logits(F.pad(tokens, (0, 1)))
    cache = new_cache(model.config, 2, model.norm.weight, capacity=12)
    with pytest.raises(ValueError, match="13 positions are more than the cache's 12"):
        model.logits(tokens[:, :13], cache=cache)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_stays_near_float32_and_the_stream_is_bfloat16(variant: str) -> None:
    model, tokens = built(**VARIANTS[variant]), some_tokens()
    seen = []
    model.blocks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    exact = gradients(model, tokens, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = gradients(model, tokens, tokens)
    assert seen == [torch.float32, torch.bfloat16]
    assert {gradient.dtype for gradient in low} == {torch.float32}
    for one, other in zip(low, exact, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.1

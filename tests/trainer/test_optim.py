"""Optimizers against independent statements of the same, and in every layout."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rerail_trainer.config import Config, ModelConfig, OptimConfig
from rerail_trainer.control import Control
from rerail_trainer.environment import RankIdentity
from rerail_trainer.meeting import Meeting
from rerail_trainer.model import fill
from rerail_trainer.optim import AdamW, optimizer_for
from rerail_trainer.optim.adamw import round_at_random
from rerail_trainer.optim.muon import is_matrix
from rerail_trainer.optim.orthogonal import orthogonalised
from rerail_trainer.parallel.layouts import Layout, lay_out

from .gang import Yard, Zygote
from .trainings import TWENTY, Training, assert_relayed, assert_same, trained

TAKEN = torch.zeros(())
"""What `unless` is when the step is taken."""


def a_parameter(*shape: int, seed: int = 1) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def slopes(parameter: nn.Parameter, step: int) -> Tensor:
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 + step))


def a_layout(model: ModelConfig) -> Layout:
    layout = lay_out(Config(model=model), Meeting(RankIdentity(), torch.device("cpu"), Control(0, 1)))
    fill(layout.model, 1)
    return layout


def test_random_rounding_is_right_on_average_and_goes_to_neighbours_only() -> None:
    value = torch.tensor([1.0 + 1 / 512, -(1.0 + 1 / 512), 3e-5, -7.1]).repeat_interleave(20_000)
    low = torch.empty_like(value, dtype=torch.bfloat16)
    round_at_random(value.clone(), low, torch.Generator().manual_seed(1))
    rounded = low.float().view(4, -1)
    exact = value.view(4, -1)[:, 0]
    step = exact.abs() * 2**-7
    assert torch.all((rounded - exact[:, None]).abs() < step[:, None])
    assert all(len(row.unique()) == 2 for row in rounded)
    # The mean of 20,000 draws of at most half a step's deviation lies within 5 deviations of the truth.
    assert torch.all((rounded.mean(1) - exact).abs() < 5 * step / 2 / 20_000**0.5)


def test_random_rounding_leaves_what_bfloat16_can_hold() -> None:
    value = torch.tensor([0.0, 1.0, -2.5, 1e-30, float(torch.finfo(torch.bfloat16).max)]).repeat(1000)
    low = torch.empty_like(value, dtype=torch.bfloat16)
    round_at_random(value.bfloat16().float(), low, torch.Generator().manual_seed(1))
    assert torch.equal(low, value.bfloat16())


def test_moments_in_bfloat16_take_half_the_memory_and_follow_those_in_float32() -> None:
    ends = {}
    for dtype in ("float32", "bfloat16"):
        parameter = a_parameter(64, 64)
        optimizer = AdamW([parameter], OptimConfig(beta2=0.999, moment_dtype=dtype))
        for step in range(1, 101):
            parameter.grad = slopes(parameter, step) + 0.3
            optimizer.step(step, 1e-3, TAKEN)
        moments = optimizer.state[parameter]
        assert {moment.dtype for moment in moments.values()} == {getattr(torch, dtype)}
        ends[dtype] = (parameter.detach(), moments["exp_avg_sq"].float())
    weights, squares = ([ends[dtype][part] for dtype in ends] for part in (0, 1))
    assert float(squares[1].mean()) == pytest.approx(float(squares[0].mean()), rel=2e-3)
    assert (weights[1] - weights[0]).abs().max() < 5e-3
    assert (weights[1] - weights[0]).abs().mean() < 3e-4


def test_moments_in_bfloat16_fade_as_they_should() -> None:
    parameter = a_parameter(32, 32)
    optimizer = AdamW([parameter], OptimConfig(beta2=0.999, moment_dtype="bfloat16"))
    square = optimizer.state[parameter]["exp_avg_sq"]
    square.fill_(1.0)
    parameter.grad = torch.zeros_like(parameter)
    for step in range(1, 301):
        optimizer.step(step, 1e-3, TAKEN)
    # Rounding to the nearest would leave it at 1 for ever: a thousandth is less than half of the last digit.
    assert float(square.float().mean()) == pytest.approx(0.999**300, rel=5e-3)


def test_rounding_draws_the_same_after_a_restart() -> None:
    def run(steps: range, parameter: nn.Parameter, optimizer: AdamW) -> None:
        for step in steps:
            parameter.grad = slopes(parameter, step)
            optimizer.step(step, 1e-2, TAKEN)

    config = OptimConfig(moment_dtype="bfloat16")
    straight, first, second = (a_parameter(8, 8) for _ in range(3))
    run(range(1, 7), straight, AdamW([straight], config))
    before = AdamW([first], config)
    run(range(1, 4), first, before)
    second.data.copy_(first)
    after = AdamW([second], config)
    for key, moment in after.state[second].items():
        moment.copy_(before.state[first][key])
    run(range(4, 7), second, after)
    assert torch.equal(second, straight)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_not_taken_changes_nothing_and_reset_forgets_all(name: str, dtype: str) -> None:
    layout = a_layout(ModelConfig(layers=1, dim=16, heads=2, kv_heads=1, head_dim=8, ffn=24, seq_len=8))
    optimizer = optimizer_for(layout, OptimConfig(name=name, moment_dtype=dtype))  # type: ignore[arg-type]
    parameters = list(layout.model.parameters())
    for step in (1, 2):
        for parameter in parameters:
            parameter.grad = slopes(parameter, step) if step == 1 else torch.full_like(parameter, torch.nan)
        before = [
            t.clone() for t in (*parameters, *(m for s in optimizer.state.values() for m in s.values()))
        ]
        optimizer.step(step, 1e-2, unless=torch.full((), float(step == 2)))
        after = [*parameters, *(m for s in optimizer.state.values() for m in s.values())]
        same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
        assert all(same) if step == 2 else not any(same)
    optimizer.reset()
    assert not any(moment.any() for state in optimizer.state.values() for moment in state.values())


@pytest.mark.parametrize("shape", [(3, 24, 40), (3, 40, 24), (1, 32, 32)])
def test_orthogonalised_moves_singular_values_alone_and_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).float()
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    values = values / values.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = left @ torch.diag_embed(values) @ right
    result = orthogonalised(matrices)
    assert torch.allclose(result.double(), expected, atol=2e-5)
    # A square matrix has singular values near zero, which five iterations do not lift all the way.
    assert float(torch.linalg.svdvals(result).max()) < 1.21
    assert shape[1] == shape[2] or float(torch.linalg.svdvals(result).min()) > 0.6


def test_a_matrix_of_zeros_stays_one() -> None:
    assert not orthogonalised(torch.zeros(2, 4, 8)).any()


MIXTURE = ModelConfig(
    layers=2, dim=16, heads=2, kv_heads=1, head_dim=8, ffn=24, seq_len=8, qk_norm="head",
    experts=3, expert_ffn=24, shared_ffn=8, dense_layers=1,
)  # fmt: skip


def test_muon_takes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    layout = a_layout(MIXTURE)
    optimizer = optimizer_for(layout, OptimConfig(name="muon"))
    kept = {name: sorted(optimizer.state[p]) for name, p in layout.model.named_parameters()}
    by_adamw = {name for name, keys in kept.items() if keys == ["exp_avg", "exp_avg_sq"]}
    assert {name for name, keys in kept.items() if keys == ["momentum"]} == kept.keys() - by_adamw
    norms = {name for name in kept if "norm" in name}
    assert by_adamw == {
        "embedding.weight",
        "head.weight",
        "blocks.1.feed_forward.router.weight",
        *norms,
    }


def test_muon_is_what_its_definition_says() -> None:
    config = OptimConfig(name="muon", lr=0.5, muon_lr=0.02, muon_momentum=0.9, weight_decay=0.1)
    layout = a_layout(MIXTURE)
    optimizer = optimizer_for(layout, config)
    named = dict(layout.model.named_parameters())
    expected = {name: p.detach().double().numpy().copy() for name, p in named.items() if is_matrix(name, p)}
    momenta = {name: np.zeros_like(value) for name, value in expected.items()}
    for step, rate in ((1, 0.25), (2, 0.5), (3, 0.1)):
        for parameter in named.values():
            parameter.grad = slopes(parameter, step)
        own_rate = 0.02 * rate / 0.5
        for name, value in expected.items():
            slope = slopes(named[name], step).double().numpy()
            momenta[name] = 0.9 * momenta[name] + 0.1 * slope
            looked_ahead = 0.9 * momenta[name] + 0.1 * slope
            for index in np.ndindex(value.shape[:-2]):
                rows, columns = value.shape[-2:]
                update = _by_singular_values(looked_ahead[index]) * max(1, rows / columns) ** 0.5
                value[index] = value[index] * (1 - own_rate * 0.1) - own_rate * update
        optimizer.step(step, rate, TAKEN)
    for name, value in expected.items():
        assert named[name].detach().numpy() == pytest.approx(value, abs=1e-6), name


def _by_singular_values(matrix: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ np.diag(values) @ right


MUON = (
    "--optim.name=muon", "--model.experts=2", "--model.experts_per_token=2", "--model.expert_ffn=32",
    "--model.dense_layers=1", "--model.vocab=258",
)  # fmt: skip
"""Fewer experts than ranks, so that their matrices are cut as well; every token takes both, so that no near tie
sends one elsewhere in another layout.
"""

LAYOUTS = {
    "two replicas": (2, ()),
    "four shards": (4, ("--parallel.shard=0",)),
    "two shards of two tensor ranks": (4, ("--parallel.shard=2", "--parallel.tensor=2")),
    "experts over two of four replicas": (4, ("--parallel.expert=2",)),
}


@pytest.fixture(scope="module")
def alone(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """20 steps of Muon on one rank."""
    return trained(Yard(zygote, tmp_path_factory.mktemp("alone")), *MUON)


@pytest.mark.parametrize("case", LAYOUTS)
def test_twenty_steps_of_muon_are_those_of_one_rank(yard: Yard, alone: Training, case: str) -> None:
    ranks, words = LAYOUTS[case]
    assert_same(trained(yard, *MUON, *words, ranks=ranks), alone, loss=3e-6, norm=2e-6, tensor=1e-4)


def test_muon_goes_on_in_another_layout(yard: Yard, alone: Training) -> None:
    stations = [
        (4, ("--parallel.expert=2", "--parallel.shard=4")),
        (1, ()),
        LAYOUTS["two shards of two tensor ranks"],
    ]
    assert_relayed(yard, alone, stations, *MUON)


def test_muon_and_low_moments_resume_bit_for_bit(yard: Yard) -> None:
    words = (*TWENTY, *MUON, "--optim.moment_dtype=bfloat16", "--parallel.shard=0")
    straight = yard.run(*words, "--train.steps=4", "--checkpoint.dir=", ranks=2).losses()
    yard.run(*words, "--train.steps=2", ranks=2)
    assert yard.run(*words, "--train.steps=4", ranks=2).losses() == {step: straight[step] for step in (3, 4)}

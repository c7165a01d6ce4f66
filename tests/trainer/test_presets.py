"""Presets: each can be trained as it stands, has the size that its name says, and names its machine."""

import pytest

from rerail_trainer.config import check
from rerail_trainer.parallel.mesh import mesh_of
from rerail_trainer.planning.gpus import GPUS
from rerail_trainer.planning.parts import active_of, flops_per_token, total_of
from rerail_trainer.presets import PRESETS, TARGETS

SIZES = {  # total and active parameters in billions, FLOP per token in GFLOP, of the speed table or the published model
    "gpt2-124m": (0.124, 0.124, 0.855),
    "dense-1b": (1.18, 1.18, 7.26),
    "dense-8b": (8.03, 8.03, 51.5),
    "dense-70b": (70.6, 70.6, 481),
    "moe-1b-a270m": (1.03, 0.321, 2.02),
    "moe-30b-a3b": (30.5, 3.35, 27.9),
    "mai-1-class": (524, 38.5, 247),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_preset_has_the_size_that_it_is_known_by(name: str) -> None:
    model = PRESETS[name].model
    total, active, flops = SIZES[name]
    assert total_of(model) / 1e9 == pytest.approx(total, rel=0.005)
    assert active_of(model) / 1e9 == pytest.approx(active, rel=0.005)
    assert flops_per_token(model) / 1e9 == pytest.approx(flops, rel=0.005)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_good_configuration(name: str) -> None:
    check(PRESETS[name])


@pytest.mark.parametrize("name", TARGETS)
def test_the_machine_of_a_preset_divides_its_layout_and_batch(name: str) -> None:
    target, config = TARGETS[name], PRESETS[name]
    mesh = mesh_of(config, target.gpus)
    assert config.sequences_per_step % mesh.data_size == 0
    own = config.sequences_per_step // mesh.data_size
    assert own % min(config.batch.micro_batch, own) == 0
    assert target.gpu in GPUS


def test_every_preset_that_is_no_toy_names_a_machine() -> None:
    assert set(PRESETS) - set(TARGETS) == {"default", "tiny", "tiny-moe"}


def test_the_small_mixture_computes_as_much_per_token_as_the_small_dense_model() -> None:
    dense, mixed = PRESETS["tiny"].model, PRESETS["tiny-moe"].model
    router = mixed.layers * mixed.dim * mixed.experts
    assert active_of(mixed) - router == active_of(dense)
    assert total_of(mixed) > 2 * total_of(dense)

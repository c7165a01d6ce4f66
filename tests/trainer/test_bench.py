"""The bench of the trainer's speed works here, where no figure counts, as it will on a GPU; and the loop costs little."""

from pathlib import Path

import pytest

from bench.trainer.cases import CASES, config_of, dense_twin
from bench.trainer.overhead import measure as measure_overhead
from bench.trainer.phases import PARTS
from bench.trainer.speed import Wish, measure
from rerail_trainer.model import flops_per_token

LOOSE = 0.10
"""The goal is 3 %, on a quiet machine; here others may be at work, and CPU seconds feel it too."""


def test_the_loop_costs_little_beside_a_plain_one_around_the_same_model() -> None:
    told: list[str] = []
    overhead = measure_overhead(2, 12, told.append)["cpu"]["overhead"]
    if abs(overhead) >= LOOSE:
        overhead = measure_overhead(4, 12, told.append)["cpu"]["overhead"]
    assert -LOOSE < overhead < LOOSE, told


def test_speed_is_measured_with_its_parts_and_the_price_of_routing(tmp_path: Path) -> None:
    told: list[str] = []
    chosen = [case for case in CASES if case.name.startswith("moe")]
    wish = Wish("cpu", small=True, warmup=2, steps=4, runs=1, trace=tmp_path)
    mixed, dense = measure(chosen, wish, told.append)
    for result in (mixed, dense):
        assert result["tokens_per_second"] > 0
        assert 0 < result["share_of_measured_peak"] < 1
        assert set(result["phases_ms"]) == set(PARTS)
        assert result["phases_ms"]["forward"] > 0
        assert result["phases_ms"]["backward"] > result["phases_ms"]["clip"]
    assert mixed["share_of_dense_twin"] > 0
    assert any("of its dense twin's MFU" in line for line in told)
    assert len(list(tmp_path.glob("*.json"))) == 2, "a trace of each"


def test_a_dense_twin_computes_as_much_per_token_but_for_the_router() -> None:
    case = next(case for case in CASES if case.name == "moe-1b-a270m")
    model = config_of(case, "cuda", small=False).model
    router = 6 * model.layers * model.dim * model.experts
    assert flops_per_token(model) - flops_per_token(dense_twin(model)) == router


@pytest.mark.parametrize(
    ("name", "flops"),
    [("gpt2-124m", 0.855e9), ("dense-1b", 7.26e9), ("dense-8b", 51.5e9), ("moe-1b-a270m", 2.02e9)],
)
def test_the_shapes_are_those_of_the_goals(name: str, flops: float) -> None:
    case = next(case for case in CASES if case.name == name)
    config = config_of(case, "cuda", small=False)
    assert flops_per_token(config.model) == pytest.approx(flops, rel=0.005)
    assert config.parallel.compile
    assert config.parallel.compute_dtype == "bfloat16"
    # The goals' MFU and tokens per second are the same statement.
    assert case.goal_tokens * flops / 989e12 == pytest.approx(case.goal_mfu, abs=0.006)

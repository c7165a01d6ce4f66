"""`plan`: its counts are the model's, its memory is what is measured, and what it proposes divides and fits."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerail_trainer import __main__ as trainer
from rerail_trainer.config import Config, ModelConfig, OptimConfig, ParallelConfig
from rerail_trainer.failures import BadConfig
from rerail_trainer.model import Transformer
from rerail_trainer.parallel.mesh import Mesh, mesh_of
from rerail_trainer.planning import memory, parts
from rerail_trainer.planning.gpus import GPUS, gpu_named, peak_flops_of
from rerail_trainer.planning.memory import Setup, memory_of, state_bytes
from rerail_trainer.planning.plan import ETTR_GOAL, Plan, Question, plan
from rerail_trainer.planning.search import candidates, usable_bytes
from rerail_trainer.planning.traffic import Machine
from rerail_trainer.planning.wording import duration, told
from rerail_trainer.presets import PRESETS, TARGETS

from .gang import PYTHONPATH, ROOT, clean_environment, free_port
from .memory_account import MemoryAccount

SMALL = ModelConfig(layers=4, dim=128, heads=8, kv_heads=4, head_dim=16, ffn=384, vocab=1024, seq_len=128)
SHAPES = {
    "dense": SMALL,
    "few wide layers": replace(SMALL, layers=2, ffn=1024),
    "a large vocabulary": replace(SMALL, layers=2, vocab=16_384),
    "GELU and tied": replace(SMALL, mlp="gelu", tie=True),
    "many layers": replace(SMALL, layers=12),
    "normed heads": replace(SMALL, qk_norm="head"),
    "experts": replace(
        SMALL, experts=8, experts_per_token=2, expert_ffn=192, shared_ffn=192, balance_loss=0.1
    ),
    "wide experts after a dense layer": replace(
        SMALL, experts=4, experts_per_token=2, expert_ffn=512, dense_layers=1
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors here are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def machine(gpus: int, gpu: str = "h100") -> Machine:
    return Machine(gpu_named(gpu), gpus, min(gpus, 8))


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_of_the_model_itself(name: str) -> None:
    model = PRESETS[name].model
    with torch.device("meta"):
        built = Transformer(model)
    assert parts.total_of(model) == sum(parameter.numel() for parameter in built.parameters())


def measured(model: ModelConfig, setup: Setup, low: bool) -> int:
    """Peak bytes of weights, gradients, moments and one more forward and backward pass."""
    account = MemoryAccount()
    with account:
        built = Transformer(model)
        for block in built.blocks:
            block.recompute = setup.recompute
        for parameter in built.parameters():
            parameter.grad = torch.zeros_like(parameter)
        moments = [torch.zeros_like(parameter) for parameter in built.parameters() for _ in range(2)]
        tokens = torch.zeros(setup.micro_batch, model.seq_len, dtype=torch.int64)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = built(tokens, tokens.clone())
        loss.backward()
    assert len(moments) == 2 * len(list(built.parameters()))
    return account.peak


@pytest.mark.parametrize(
    ("recompute", "low"), [("none", False), ("none", True), ("selective", True), ("block", True)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_is_what_a_pass_takes_to_within_three_percent(shape: str, recompute: Any, low: bool) -> None:
    model = SHAPES[shape]
    setup = Setup(Mesh(), recompute, micro_batch=4, micro_batches=2)
    config = Config(model=model, parallel=ParallelConfig(compute_dtype="bfloat16" if low else "float32"))
    planned = memory_of(config, setup, fused_norms=False).total
    assert planned == pytest.approx(measured(model, setup, low), rel=0.03)


def measuring(**env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.trainer.sharded_memory"],
        env={**clean_environment(), "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", **env},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told_by(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def test_memory_in_every_kind_of_layout_is_not_less_than_a_step_takes_and_little_more() -> None:
    port = str(free_port())
    pair = [
        measuring(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(2)
    ]
    lines = [line for process in (*pair, measuring()) for line in told_by(process)]
    assert len(lines) == 2 + 2 + 6
    for line in lines:
        assert 0.95 <= line["planned"] / line["measured"] <= 1.2, line


def test_what_the_arithmetic_copies_from_the_trainer_is_what_stands_there() -> None:
    from rerail_trainer.model import loss

    assert (memory.LOGITS_AT_ONCE, memory.LOSS_ROWS) == (loss._LOGITS_AT_ONCE, loss._ROWS)


def test_a_shard_of_the_state_is_a_shard_and_moments_may_be_half() -> None:
    config = PRESETS["dense-8b"]
    whole = memory_of(config, Setup(Mesh(), "block", 1, 1))
    cut = memory_of(config, Setup(Mesh(shard=64), "block", 1, 1))
    assert whole.weights == whole.gradients == 4 * parts.total_of(config.model)
    assert whole.weights + whole.moments == state_bytes(config)
    assert cut.weights == pytest.approx(whole.weights / 64, rel=1e-6)
    halved = replace(config, optim=OptimConfig(moment_dtype="bfloat16"))
    assert memory_of(halved, Setup(Mesh(), "block", 1, 1)).moments * 2 == whole.moments


SIZES = st.fixed_dictionaries(
    {
        "layers": st.sampled_from([4, 12, 40]),
        "dim": st.sampled_from([256, 1024, 4096]),
        "kv_heads": st.sampled_from([2, 8]),
        "experts": st.sampled_from([0, 6, 16]),
        "vocab": st.sampled_from([1000, 50_304]),
    }
)


@settings(max_examples=25)
@given(SIZES, st.integers(1, 4), st.sampled_from([1, 2, 6, 8, 24, 40, 64]), st.sampled_from(sorted(GPUS)))
def test_every_layout_that_is_proposed_divides_and_fits(
    sizes: dict[str, int], batches: int, gpus: int, gpu: str
) -> None:
    model = ModelConfig(
        heads=8, head_dim=64, ffn=4 * sizes["dim"], expert_ffn=sizes["dim"], seq_len=512, **sizes
    )
    config = Config(model=model, parallel=ParallelConfig(compute_dtype="bfloat16"))
    config = replace(config, batch=replace(config.batch, tokens_per_step=512 * gpus * batches))
    where = Machine(gpu_named(gpu), gpus, 8 if gpus % 8 == 0 else gpus)
    try:
        made = plan(config, Question(where))
    except BadConfig as refusal:
        assert "no layout fits" in refusal.message
        assert all(one.memory.total > usable_bytes(where) for one in candidates(config, where))
        return
    setup = made.chosen.setup
    sizes = {axis: getattr(setup.mesh, axis) for axis in ("shard", "tensor", "expert")}
    mesh = mesh_of(replace(config, parallel=replace(config.parallel, **sizes)), gpus)
    assert mesh == made.chosen.setup.mesh
    assert mesh.data_size * made.chosen.setup.micro_batch * made.chosen.setup.micro_batches == gpus * batches
    assert made.chosen.memory.total <= usable_bytes(where)
    assert where.gpus_per_node % mesh.tensor == 0


def test_nothing_that_fits_is_faster_than_what_is_chosen() -> None:
    config, where = PRESETS["moe-30b-a3b"], machine(64)
    made = plan(config, Question(where))
    fitting = [one for one in candidates(config, where) if one.memory.total <= usable_bytes(where)]
    assert made.chosen.time.total <= min(one.time.total for one in fitting) + 1e-4
    assert len(fitting) > 50


@pytest.mark.parametrize("name", TARGETS)
def test_a_preset_fits_the_machine_that_it_names_as_it_is_configured(name: str) -> None:
    target = TARGETS[name]
    made = plan(PRESETS[name], Question(machine(target.gpus, target.gpu), keep_layout=True))
    assert made.chosen.memory.total <= made.usable
    assert 0.9 < made.saving.ettr < 1


def test_restarts_as_fast_as_the_goal_asks_for_reach_it() -> None:
    where = machine(512)
    asked = plan(PRESETS["dense-8b"], Question(where)).saving.goal_dead_seconds
    assert asked is not None and asked > 0
    made = plan(PRESETS["dense-8b"], Question(where, dead_seconds=asked))
    assert made.saving.ettr == pytest.approx(ETTR_GOAL, abs=1e-6)
    assert f"ETTR 0.9900; 0.99 where an interruption costs {duration(asked)} besides" in told(made)


def test_where_no_restart_is_fast_enough_for_the_goal_that_is_said() -> None:
    slow = Question(machine(512), storage_bytes_per_second=1e7)
    made = plan(PRESETS["dense-8b"], slow)
    assert made.saving.goal_dead_seconds is None
    assert "0.99 is out of reach, however fast restarts are" in told(made)


REFUSED = {
    "a model that is too large": (
        ["--preset=dense-70b", "--gpus=8"],
        ["no layout fits", "weights, gradients and moments", "what would fit: ", "--gpus="],
    ),
    "a single GPU too small for 8B, where half the moments would do": (
        ["--preset=dense-8b", "--gpus=1", "--gpu=h200"],
        ["no layout fits", "--optim.moment_dtype=bfloat16"],
    ),
    "a layout of one's own that does not fit": (
        ["--preset=dense-8b", "--gpus=64", "--keep-layout", "--parallel.shard=1"],
        ["64 replicas", "GiB per GPU of", "would fit"],
    ),
    "a batch that cannot be shared": (
        ["--preset=gpt2-124m", "--gpus=24", "--parallel.compile=false"],
        ["512 sequences, which 24 ranks cannot share evenly; use 516096 or 540672"],
    ),
    "an unknown GPU": (["--preset=tiny", "--gpus=1", "--gpu=h10"], ["unknown GPU 'h10'; did you mean"]),
    "no number of GPUs": (["--preset=tiny"], ["--gpus=N"]),
    "half a node": (["--preset=tiny", "--gpus=12"], ["no whole number of nodes of 8"]),
    "an MFU above one": (["--preset=tiny", "--gpus=1", "--mfu=40"], ["--mfu=40 must be between 0 and 1"]),
    "a word that is no setting": (["--gpus=1", "--parallel.shards=2"], ["did you mean 'parallel.shard'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_with_what_to_do(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = REFUSED[case]
    assert trainer.main(["plan", *words]) == 64
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in said:
        assert part in error


@pytest.mark.parametrize("name", ["dense-70b", "dense-8b"])
def test_what_would_fit_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = {"dense-70b": 8, "dense-8b": 1}[name]
    assert trainer.main(["plan", f"--preset={name}", f"--gpus={gpus}"]) == 64
    remedies = capsys.readouterr().err.split("what would fit: ")[1].split(" (exit")[0].split(" or ")
    assert remedies
    for remedy in remedies:
        words = [f"--preset={name}", f"--gpus={gpus}", remedy]
        assert trainer.main(["plan", *words]) == 0, remedy


def made_by(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert trainer.main(["plan", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_json_says_all_that_the_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    made = made_by(capsys, "--preset=dense-1b", "--gpus=8", "--mfu=0.5", "--tokens=1e9")
    assert made["flops_per_token"] == 7_261_913_088
    assert made["forecast"]["tokens_per_second"] == pytest.approx(8 * 0.5 * 989e12 / 7_261_913_088)
    assert made["forecast"]["days"] == pytest.approx(1e9 / made["forecast"]["tokens_per_second"] / 86_400)
    assert made["checkpoint"]["bytes"] == 12 * made["parameters"]["total"]
    assert sum(v for k, v in made["memory_bytes"].items() if k != "total") == made["memory_bytes"]["total"]
    assert trainer.main(["plan", "--preset=dense-1b", "--gpus=8", "--mfu=0.5"]) == 0
    text = capsys.readouterr().out
    for word in ("1.18 B parameters", "7.262 GFLOP per token", "layout", "memory", "ETTR", "at 50 % MFU"):
        assert word in text


def test_figures_that_are_given_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    slow = made_by(
        capsys, "--preset=dense-8b", "--stall-seconds=20", "--dead-seconds=900", "--mtbf-node-hours=100"
    )
    fast = made_by(capsys, "--preset=dense-8b", "--storage-gb-per-s=100")
    assert slow["checkpoint"]["ettr"] < fast["checkpoint"]["ettr"]
    assert slow["checkpoint"]["interruption_hours"] == pytest.approx(100 / 8)
    assert fast["checkpoint"]["save_seconds"] == pytest.approx(fast["checkpoint"]["bytes"] / 100e9)
    larger = made_by(capsys, "--preset=dense-8b", "--memory-gib=300", "--peak-tflops=2000", "--mfu=0.5")
    assert larger["machine"]["usable_bytes"] > 280 << 30
    assert larger["forecast"]["tokens_per_second"] == pytest.approx(64 * 0.5 * 2000e12 / 51_470_401_536)


def test_the_flags_of_a_plan_are_settings_that_the_trainer_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = made_by(capsys, "--preset=moe-1b-a270m")
    flags = made["layout"]["flags"]
    assert trainer.main(["--preset=moe-1b-a270m", "--show-config", *flags]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parallel"]["expert"] == made["layout"]["expert"]
    again = made_by(capsys, "--preset=moe-1b-a270m", "--keep-layout", *flags)
    assert again["memory_bytes"] == made["memory_bytes"]


def test_a_plan_needs_no_torch() -> None:
    program = (
        "import sys; from rerail_trainer.__main__ import main; "
        "code = main(['plan', '--preset=dense-8b', '--json']); "
        "sys.exit(code or int('torch' in sys.modules or 'numpy' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean_environment(), "PYTHONPATH": PYTHONPATH},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"]["total"] == 8_030_261_248


def test_each_axis_of_a_layout_has_its_reason() -> None:
    made: Plan = plan(PRESETS["mai-1-class"], Question(machine(15_000)))
    assert [reason.split()[0] for reason in made.why] == ["recompute", "tensor", "expert", "shard"]
    assert any("GiB at least" in reason or "longer" in reason for reason in made.why)


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_a_device_is_known_by_the_name_that_its_driver_gives(device: str, name: str) -> None:
    assert peak_flops_of(device) == GPUS[name].peak_flops


def test_of_an_unknown_device_no_peak_is_claimed() -> None:
    assert peak_flops_of("NVIDIA GeForce RTX 2080") == 0.0

"""python -m bench.trainer speed: tokens per second of real optimizer steps, MFU, and where the time goes."""

import gc
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from bench.report import Json, Tell
from rerail_trainer.config import Config, DataConfig
from rerail_trainer.model import flops_per_token, param_counts
from rerail_trainer.report.peak import measured_peak, memory_peak, stated_peak

from .cases import GOAL_MOE_TO_TWIN, Case, config_of
from .overhead import lasted, one_thread
from .phases import profile, shown
from .training import Training, synthetic

_CPU_SIZE = 1024


@dataclass(frozen=True)
class Wish:
    """How to measure. data: synthetic, pydoc, or a prepared folder; compile: None is as the preset says."""

    device: str
    small: bool
    data: str = "synthetic"
    warmup: int = 10
    steps: int = 50
    runs: int = 3
    compile: bool | None = None
    trace: Path | None = None


def measure(cases: Sequence[Case], wish: Wish, tell: Tell) -> list[Json]:
    """One result per case, told as it comes."""
    device = torch.device(wish.device)
    with one_thread() if wish.small else nullcontext():
        reached = measured_peak(device) if device.type == "cuda" else _cpu_peak()
    kind = "bf16" if device.type == "cuda" else "float32"
    name = device_name(device)
    tell(f"{name}, torch {torch.__version__}: {kind} products reach {reached / 1e12:.3g} TFLOP/s")
    results = []
    for case in cases:
        try:
            with one_thread() if wish.small else nullcontext():
                result = _measure_case(case, wish, reached)
        except torch.OutOfMemoryError as error:
            # The 8B shape is for an H200; a smaller device still measures the others.
            result = {"case": case.name, "failed": str(error).splitlines()[0]}
            tell(f"{case.name}: does not fit: {result['failed']}")
        results.append(result)
        if "failed" not in result:
            tell(f"{case.name}: {_sentence(result)}")
            tell(f"  {shown(result['phases_ms'])}")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    _tell_of_twins(cases, results, tell)
    return results


def _measure_case(case: Case, wish: Wish, reached: float) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        config = _config(case, wish, Path(folder))
        training = Training(config)
        runs = []
        for _ in range(wish.runs):
            steps = lasted(training.more(wish.warmup + wish.steps))[wish.warmup - 1 :]
            runs.append(config.batch.tokens_per_step / median(step.wall for step in steps))
        phases = profile(training, max(wish.steps // 5, 2))
        if wish.trace is not None:
            _trace(training, wish.trace / f"{case.name.replace(' ', '-')}.json")
    device = training.run.meeting.device
    tokens, flops = median(runs), flops_per_token(config.model)
    stated = stated_peak(device, config.metrics.peak_tflops)
    counts = param_counts(config.model)
    return {
        "case": case.name,
        "device": device_name(device),
        "torch": torch.__version__,
        "tiny": wish.small,
        "data": wish.data,
        "compiled": config.parallel.compile,
        "parameters": counts["total"],
        "flop_per_token": flops,
        "micro_batch": config.batch.micro_batch,
        "tokens_per_step": config.batch.tokens_per_step,
        "tokens_per_second": round(tokens, 1),
        "runs": [round(run, 1) for run in runs],
        "mfu": round(tokens * flops / stated, 4) if stated else None,
        "share_of_measured_peak": round(tokens * flops / reached, 4),
        "goal_tokens_per_second": case.goal_tokens or None,
        "goal_mfu": case.goal_mfu or None,
        "memory_peak_bytes": int(memory_peak(device)),
        "rehearsal_seconds": round(training.rehearsed_seconds, 2),
        "phases_ms": phases,
    }


def _config(case: Case, wish: Wish, folder: Path) -> Config:
    config = config_of(case, wish.device, wish.small)
    if wish.compile is not None:
        config = replace(config, parallel=replace(config.parallel, compile=wish.compile))
    if wish.data == "synthetic":
        return synthetic(config, folder)
    source = DataConfig() if wish.data == "pydoc" else DataConfig(source="shards", path=wish.data)
    return replace(config, data=source)


def _sentence(result: Json) -> str:
    words = f"{result['tokens_per_second']:,.0f} tok/s"
    if result["mfu"] is not None:
        words += f", MFU {result['mfu']:.1%}"
    words += f", {result['share_of_measured_peak']:.1%} of the measured peak"
    if result["goal_tokens_per_second"] and not result["tiny"]:
        words += f" (goal {result['goal_tokens_per_second']:,.0f} tok/s on one H200)"
    return f"{words}; {result['memory_peak_bytes'] / 2**30:.1f} GiB at most"


def _tell_of_twins(cases: Sequence[Case], results: list[Json], tell: Tell) -> None:
    """The price of routing: the MFU of a mixture of experts over that of its dense twin."""
    by_name = {result["case"]: result for result in results if "failed" not in result}
    for case in cases:
        if case.name in by_name and case.twin_of in by_name:
            mixed, dense = by_name[case.twin_of], by_name[case.name]
            ratio = mixed["share_of_measured_peak"] / dense["share_of_measured_peak"]
            mixed["share_of_dense_twin"] = round(ratio, 4)
            goal = f"goal {GOAL_MOE_TO_TWIN} on a GPU"
            tell(f"{case.twin_of} reaches {ratio:.2f} of its dense twin's MFU ({goal})")


def _trace(training: Training, path: Path) -> None:
    """Three steps as torch's profiler sees them, for a trace viewer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        training.more(3)
    profiler.export_chrome_trace(str(path))


def _cpu_peak() -> float:
    """FLOP/s of float32 products of 1024 x 1024 on the threads that there are, the best of ten."""
    left, right = torch.randn(2, _CPU_SIZE, _CPU_SIZE)
    best = 0.0
    for _ in range(10):
        began = perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * _CPU_SIZE**3 / (perf_counter() - began))
    return best


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"

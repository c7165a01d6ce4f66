"""Why a layout was chosen, and what would fit where none does: each a sentence. Torch-free."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from rerail_trainer.config import Config

from .gpus import GIB, GPUS
from .search import RECOMPUTE, Candidate, best, candidates, usable_bytes
from .traffic import Machine

_MOST_GPUS = 64
"""Up to so many times the GPUs are tried."""


@dataclass(frozen=True)
class _Axis:
    """One thing that a layout chooses; `less` of it is simpler or sends less."""

    name: str
    value_of: Callable[[Candidate], int]
    label: Callable[[int], str]


_AXES = (
    _Axis("recompute", lambda one: RECOMPUTE.index(one.setup.recompute), lambda value: RECOMPUTE[value]),
    _Axis("tensor", lambda one: one.setup.mesh.tensor, str),
    _Axis("expert", lambda one: one.setup.mesh.expert, str),
    _Axis("shard", lambda one: one.setup.mesh.shard, str),
)


def why(chosen: Candidate, found: list[Candidate], usable: int) -> list[str]:
    """One sentence for each axis: against the next smaller value, or that the smallest is enough."""
    return [_against(axis, chosen, found, usable) for axis in _AXES if _values(axis, found) != [1]]


def _against(axis: _Axis, chosen: Candidate, found: list[Candidate], usable: int) -> str:
    value = axis.value_of(chosen)
    smaller = [other for other in _values(axis, found) if other < value]
    said = f"{axis.name} {axis.label(value)}"
    if not smaller:
        return f"{said}: enough, and nothing is cheaper"
    rivals = [one for one in found if axis.value_of(one) == smaller[-1]]
    rival, label = best(rivals, usable), axis.label(smaller[-1])
    if rival is None:
        least = min(one.memory.total for one in rivals)
        return f"{said}: {label} needs {least / GIB:.1f} GiB at least"
    slower = 100 * (rival.time.total / chosen.time.total - 1)
    if slower < 0.5:
        return f"{said}: {label} is as fast and leaves less memory free"
    return f"{said}: {label} would take {slower:.0f} % longer ({_cause(chosen, rival)})"


def _cause(chosen: Candidate, rival: Candidate) -> str:
    differences = {
        "more is computed": rival.time.products - chosen.time.products,
        "more parameters travel": rival.time.hidden - chosen.time.hidden,
        "more is exchanged between products": rival.time.exposed - chosen.time.exposed,
    }
    return max(differences, key=lambda cause: differences[cause])


def _values(axis: _Axis, found: list[Candidate]) -> list[int]:
    return sorted({axis.value_of(one) for one in found})


def needs(least: Candidate, machine: Machine) -> str:
    """What the leanest layout needs, and of what most."""
    memory = least.memory
    state = memory.weights + memory.gradients + memory.moments
    return (
        f"the leanest layout ({least.setup.mesh}, recompute {least.setup.recompute}) needs "
        f"{memory.total / GIB:.1f} GiB per GPU, {state / GIB:.1f} of it weights, gradients and moments; "
        f"{usable_bytes(machine) / GIB:.1f} can be used on {machine.gpus} {machine.gpu.name}"
    )


def remedies(config: Config, machine: Machine) -> list[str]:
    """Settings, each of which alone makes some layout fit."""
    return [word for word, changed, other in _changes(config, machine) if _fits(changed, other)]


def _changes(config: Config, machine: Machine) -> Iterator[tuple[str, Config, Machine]]:
    if config.parallel.compute_dtype == "float32":
        parallel = replace(config.parallel, compute_dtype="bfloat16")
        yield "--parallel.compute_dtype=bfloat16", replace(config, parallel=parallel), machine
    if config.optim.moment_dtype == "float32":
        optim = replace(config.optim, moment_dtype="bfloat16")
        yield "--optim.moment_dtype=bfloat16", replace(config, optim=optim), machine
    times = 2
    while times <= _MOST_GPUS:
        larger = replace(machine, gpus=machine.gpus * times)
        if _fits(config, larger):
            yield f"--gpus={larger.gpus}", config, larger
            break
        times *= 2
    for gpu in GPUS.values():
        if gpu.memory_bytes > machine.gpu.memory_bytes:
            yield f"--gpu={gpu.name}", config, replace(machine, gpu=gpu)


def _fits(config: Config, machine: Machine) -> bool:
    return best(list(candidates(config, machine)), usable_bytes(machine)) is not None

"""A plan as a person reads it. Torch-free."""

from dataclasses import fields

from .gpus import GIB
from .memory import Memory
from .parts import active_of, flops_per_token, parts_of, total_of
from .plan import ETTR_GOAL, Plan, Saving

_MEMORY_PARTS = {
    "weights": "weights, float32",
    "gradients": "gradients, float32",
    "moments": "optimizer's moments",
    "gathered": "weights in the compute dtype",
    "traffic": "gathering and reducing",
    "activations": "kept for the backward pass",
    "working": "loss, or one block's backward",
    "dispatch": "tokens on their way to experts",
}


def told(plan: Plan) -> str:
    """The plan in paragraphs, aligned for a terminal."""
    return "\n\n".join("\n".join(part) for part in (_model(plan), _layout(plan), _memory(plan), _time(plan)))


def quantity(value: float) -> str:
    """Three digits and a letter: 8.03 B."""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """In the unit that reads best: 0.15 s, 12 min, 3.4 h, 11 days."""
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def _model(plan: Plan) -> list[str]:
    model = plan.config.model
    total, active = total_of(model), active_of(model)
    lines = [f"model       {quantity(total)} parameters, {quantity(active)} of them per token"]
    if total == active:
        lines = [f"model       {quantity(total)} parameters"]
    lines += [f"  {part.name:<16}{quantity(part.total):>9}" for part in parts_of(model)]
    return [*lines, f"  {flops_per_token(model) / 1e9:.4g} GFLOP per token, forward and backward"]


def _layout(plan: Plan) -> list[str]:
    setup, time = plan.chosen.setup, plan.chosen.time
    machine = plan.machine
    return [
        f"layout      {setup.mesh}, recompute {setup.recompute}, on {machine.gpus} {machine.gpu.name} "
        f"({machine.gpus_per_node} per node)",
        f"  micro-batches of {setup.micro_batch} sequences per rank, {setup.micro_batches} per step",
        *(f"  {reason}" for reason in plan.why),
        f"  a step by arithmetic: {time.products:.3g} s of products, {time.hidden:.3g} s of parameter "
        f"traffic beside them, {time.exposed:.3g} s of exchanges between them",
        f"  train with: {' '.join(plan.flags)}",
    ]


def _memory(plan: Plan) -> list[str]:
    memory = plan.chosen.memory
    sizes = [(_MEMORY_PARTS[part.name], getattr(memory, part.name)) for part in fields(Memory)]
    free = plan.usable - memory.total
    return [
        f"memory      {memory.total / GIB:.1f} of {plan.usable / GIB:.1f} GiB that can be used per GPU, "
        f"{free / GIB:.1f} free",
        *(f"  {name:<31}{size / GIB:>8.2f} GiB" for name, size in sizes if size),
    ]


def _time(plan: Plan) -> list[str]:
    expected, saving = plan.forecast, plan.saving
    steps = -(-expected.tokens // plan.config.batch.tokens_per_step)
    per_gpu = expected.tokens_per_second / plan.machine.gpus
    return [
        f"time        {duration(expected.days * 86_400)} for {quantity(expected.tokens)} tokens in {steps:,} "
        f"steps, {duration(plan.days * 86_400)} with interruptions",
        f"  {quantity(expected.tokens_per_second)} tokens/s, {per_gpu:,.0f} per GPU, "
        f"{duration(expected.step_seconds)} per step, {quantity(expected.gpu_hours)} GPU-hours",
        f"  at {100 * expected.mfu:.0f} % MFU ({expected.mfu_source})",
        f"checkpoint  {saving.bytes / 1e9:,.1f} GB, saved in {duration(saving.save_seconds)} while training "
        f"goes on, {duration(saving.stall_seconds)} of stall",
        f"  every {duration(saving.interval_seconds)} ({saving.interval_steps} steps) is best for one "
        f"interruption per {duration(saving.interruption_hours * 3600)} that costs "
        f"{duration(saving.dead_seconds)} besides",
        f"  ETTR {saving.ettr:.4f}; {_goal(saving)}",
    ]


def _goal(saving: Saving) -> str:
    if saving.goal_dead_seconds is None:
        return f"{ETTR_GOAL:g} is out of reach, however fast restarts are: faster checkpoints or fewer nodes"
    return f"{ETTR_GOAL:g} where an interruption costs {duration(saving.goal_dead_seconds)} besides"

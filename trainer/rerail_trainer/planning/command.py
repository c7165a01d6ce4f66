"""`plan`: what a training will need and how long it will take, before anybody has a GPU. Torch-free."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

from rerail_trainer.commands import Words
from rerail_trainer.configure import read_command_line
from rerail_trainer.failures import BadConfig
from rerail_trainer.presets import TARGETS

from .gpus import GIB, GPUS, gpu_named
from .plan import Question, plan
from .traffic import Machine
from .wording import told


def main(words: Sequence[str]) -> int:
    """Prints the plan; 0. Raises BadConfig for what cannot fit, with what would."""
    asked, settings = _parser().parse_known_args(list(words))
    if asked.preset:
        settings = [f"--preset={asked.preset}", *settings]
    config = read_command_line(settings).config
    made = plan(config, _question(asked))
    text = json.dumps(made.as_json(), indent=1) if asked.json else told(made)
    sys.stdout.write(text + "\n")
    return 0


def _parser() -> Words:
    words = Words("plan", "parameters, memory, layout, time and checkpoints of a training, by arithmetic")
    words.add_argument(
        "--preset", default="", help="configuration to start from; --config and settings follow"
    )
    words.add_argument("--gpus", type=int, default=0, help="how many; 0 takes the preset's own machine")
    words.add_argument(
        "--gpu", default="", help=f"one of {', '.join(GPUS)}; empty takes the preset's, or h100"
    )
    words.add_argument("--gpus-per-node", type=int, default=8)
    words.add_argument("--memory-gib", type=float, default=0.0, help="of one GPU, if not as usual")
    words.add_argument("--peak-tflops", type=float, default=0.0, help="dense bf16, if not as usual")
    words.add_argument("--keep-layout", action="store_true", help="judge parallel.* as configured, no search")
    words.add_argument("--mfu", type=float, default=None, help="between 0 and 1; else one measured by others")
    words.add_argument("--tokens", type=float, default=None, help="in all; else train.steps of them")
    words.add_argument("--mtbf-node-hours", type=float, default=None, help="of one node; else 3,692 (RSC-1)")
    words.add_argument("--dead-seconds", type=float, default=None, help="per interruption; else 90")
    words.add_argument("--stall-seconds", type=float, default=None, help="per checkpoint; else as by PCIe 5")
    words.add_argument("--storage-gb-per-s", type=float, default=None, help="in all; else 1 per node")
    words.add_argument("--json", action="store_true", help="the same for a machine")
    return words


def _question(asked: Namespace) -> Question:
    for name in ("mfu", "tokens", "mtbf_node_hours", "storage_gb_per_s"):
        value = getattr(asked, name)
        if value is not None and (value <= 0 or (name == "mfu" and value > 1)):
            limits = "between 0 and 1" if name == "mfu" else "positive"
            raise BadConfig(f"plan: --{name.replace('_', '-')}={value:g} must be {limits}")
    for name in ("dead_seconds", "stall_seconds"):
        if (getattr(asked, name) or 0) < 0:
            raise BadConfig(f"plan: --{name.replace('_', '-')} must not be negative")
    storage = asked.storage_gb_per_s
    return Question(
        _machine(asked),
        keep_layout=asked.keep_layout,
        mfu=asked.mfu,
        tokens=None if asked.tokens is None else round(asked.tokens),
        node_hours=asked.mtbf_node_hours,
        dead_seconds=asked.dead_seconds,
        stall_seconds=asked.stall_seconds,
        storage_bytes_per_second=None if storage is None else storage * 1e9,
    )


def _machine(asked: Namespace) -> Machine:
    target = TARGETS.get(asked.preset)
    gpu = gpu_named(asked.gpu or (target.gpu if target else "h100"))
    if asked.memory_gib:
        gpu = replace(gpu, memory_bytes=round(asked.memory_gib * GIB))
    if asked.peak_tflops:
        gpu = replace(gpu, peak_flops=asked.peak_tflops * 1e12)
    gpus = asked.gpus or (target.gpus if target else 0)
    if gpus < 1 or asked.gpus_per_node < 1:
        raise BadConfig("plan: say how many GPUs there are: --gpus=N, and --gpus-per-node=N if not 8")
    if gpus > asked.gpus_per_node and gpus % asked.gpus_per_node:
        raise BadConfig(
            f"plan: --gpus={gpus} is no whole number of nodes of {asked.gpus_per_node}; "
            "give --gpus-per-node=N if yours have another number"
        )
    return Machine(gpu, gpus, min(asked.gpus_per_node, gpus))

"""python -m bench.trainer [speed | overhead]: the trainer's figures; without a word, both.

`python -m bench.trainer.data` and `python -m bench.trainer.saves` measure reading and saving.
"""

import argparse
import sys
from pathlib import Path

import torch

from bench.report import keep, tell

from .cases import CASES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.trainer", description=__doc__)
    parser.add_argument("bench", nargs="?", choices=("speed", "overhead"))
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="default: all")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--tiny", action="store_true", help="models small enough for two cores")
    parser.add_argument("--data", default="synthetic", help="synthetic, pydoc, or a folder that prepare made")
    parser.add_argument("--warmup", type=int, default=10, help="steps before those that count (default 10)")
    parser.add_argument("--steps", type=int, default=50, help="steps whose median counts (default 50)")
    parser.add_argument("--runs", type=int, default=3, help="the median of so many runs (default 3)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    parser.add_argument("--trace", type=Path, help="folder for traces of torch's profiler")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of the overhead bench (default 10)")
    parser.add_argument("--out", help="name of the result below bench/results; default by what was measured")
    arguments = parser.parse_args()
    command = " ".join(["python -m bench.trainer", *sys.argv[1:]])
    if arguments.bench in ("speed", None):
        speed(arguments, command)
    if arguments.bench in ("overhead", None):
        overhead(arguments, command)
    return 0


def speed(arguments: argparse.Namespace, command: str) -> None:
    """Steps of the presets on one device."""
    from .speed import Wish, measure

    if arguments.device == "cpu" and not arguments.tiny:
        sys.exit("these models are for a GPU: on a CPU say --tiny")
    chosen = [case for case in CASES if not arguments.case or case.name in arguments.case]
    wish = Wish(
        arguments.device,
        arguments.tiny,
        arguments.data,
        arguments.warmup,
        arguments.steps,
        arguments.runs,
        arguments.compile,
        arguments.trace,
    )
    name = arguments.out or f"trainer-speed-{arguments.device}{'-tiny' * arguments.tiny}"
    tell(f"kept in {keep(name, command, measure(chosen, wish, tell))}")


def overhead(arguments: argparse.Namespace, command: str) -> None:
    """The loop against a plain one, on the CPU."""
    from .overhead import measure

    result = measure(arguments.rounds, arguments.steps, tell)
    tell(f"kept in {keep(arguments.out or 'trainer-overhead', command, result)}")


if __name__ == "__main__":
    sys.exit(main())

"""python -m bench.trainer.saves: how long training stands still for a save, by checkpoint.mode.

Real runs of the trainer on this machine, one mode after the other, with the same model and the same saves;
the figures are the trainer's own, from metrics.jsonl. The stall is what the loop waited; beside it stand the
time of a save from its begin to its commit, and what a step took without a save and beside one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.report import keep, tell

ROOT = Path(__file__).parents[2]
MODES = ("sync", "process")
SHAPES = {
    "tiny": "layers=2 dim=64 heads=4 kv_heads=2 head_dim=16 ffn=192 seq_len=64 vocab=264",
    "400mb": "layers=4 dim=768 heads=12 kv_heads=12 head_dim=64 ffn=2304 seq_len=16 vocab=264",
    "1b": "layers=16 dim=2048 heads=32 kv_heads=8 head_dim=64 ffn=8192 seq_len=2048 vocab=50304",
}
"""The state, weights and two moments in float32, is 12 bytes per parameter: 14 GB for the 1B shape."""


@dataclass(frozen=True)
class Figures:
    """Medians over the saves of one run, in seconds; bytes of one checkpoint, of all ranks."""

    mode: str
    saves: int
    bytes: int
    stall: float
    worst_stall: float
    save: float
    step_alone: float
    step_beside_a_save: float | None
    skipped: int


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.trainer.saves")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="400mb")
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--every-steps", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", help="where checkpoints go; default: a temporary folder")
    options = parser.parse_args(words)
    rows = [measure(mode, options) for mode in MODES]
    heads = ("mode", "state", "stall", "worst", "save", "step alone", "beside a save", "left out")
    tell("  ".join(f"{head:>13}" for head in heads))
    for row in rows:
        beside = "" if row.step_beside_a_save is None else f"{row.step_beside_a_save:.3f} s"
        cells = (
            row.mode,
            f"{row.bytes / 1e6:.0f} MB",
            f"{row.stall:.3f} s",
            f"{row.worst_stall:.3f} s",
            f"{row.save:.2f} s",
            f"{row.step_alone:.3f} s",
            beside,
            str(row.skipped),
        )
        tell("  ".join(f"{cell:>13}" for cell in cells))
    told = {"torch": torch.__version__, "device": options.device, "rows": [asdict(row) for row in rows]}
    keep(f"trainer-saves-{options.shape}", "python -m bench.trainer.saves " + " ".join(words), told)
    return 0


def measure(mode: str, options: argparse.Namespace) -> Figures:
    """One run of the trainer on one rank."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        steps = options.every_steps * options.saves + options.every_steps - 1
        settings = [f"--model.{setting}" for setting in SHAPES[options.shape].split()]
        sequences = 1 if options.device == "cpu" else 32
        length = int(SHAPES[options.shape].split("seq_len=")[1].split()[0])
        command = [
            sys.executable, "-m", "rerail_trainer", *settings, f"--train.steps={steps}",
            f"--batch.tokens_per_step={sequences * length}", f"--parallel.device={options.device}",
            f"--checkpoint.dir={folder}/checkpoints", f"--checkpoint.every_steps={options.every_steps}",
            f"--checkpoint.mode={mode}", f"--metrics.jsonl={folder}/run.jsonl", "--metrics.every=1000",
        ]  # fmt: skip
        path = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer")])
        subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    return figures(mode, lines)


def figures(mode: str, lines: list[dict[str, Any]]) -> Figures:
    """From the lines of one run. The last commit is the end of training, which waits for it in every mode."""
    commits = [line for line in lines if line.get("event") == "commit"][:-1]
    steps = [line for line in lines if "loss" in line and "step_seconds" in line][1:]
    spans = [(commit["time"] - commit["seconds"], commit["time"]) for commit in commits]
    beside, alone = [], []
    for line in steps:
        begin, end = line["time"] - line["step_seconds"], line["time"]
        busy = any(begin < until and since < end for since, until in spans)
        (beside if busy else alone).append(line["step_seconds"])
    stalls = [commit["stall_seconds"] for commit in commits]
    return Figures(
        mode=mode,
        saves=len(commits),
        bytes=commits[-1]["bytes"],
        stall=median(stalls),
        worst_stall=max(stalls),
        save=median(commit["seconds"] for commit in commits),
        step_alone=median(alone or beside),
        step_beside_a_save=median(beside) if beside and mode == "process" else None,
        skipped=sum(line.get("event") == "save-skipped" for line in lines),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

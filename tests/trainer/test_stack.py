"""The stack as a whole: in little time on a CPU, and with nothing installed but torch and numpy."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from rerail_trainer.__main__ import main

from .gang import PYTHONPATH, Yard, clean_environment

EXPERTS = ("--model.experts=4", "--model.experts_per_token=2", "--model.shared_ffn=16")
LIMIT_SECONDS = 60.0

# What a fresh environment holds besides the standard library. numpy's and torch's own needs come with them.
CORE = "rerail_api rerail_trainer torch torchgen functorch numpy"
NEEDS_OF_TORCH = (
    "typing_extensions typing_inspection sympy mpmath networkx jinja2 markupsafe fsspec filelock setuptools"
)

ALONE = """
import importlib.abc, sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in allowed or top.startswith("_"):
            return None
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

allowed = set(sys.argv.pop(1).split())
sys.meta_path.insert(0, Nothing())
from rerail_trainer.__main__ import leave, main
leave(main(sys.argv[1:]))
"""


def test_experts_on_shards_and_tensor_ranks_train_stop_resume_and_evaluate_within_a_minute(
    yard: Yard,
) -> None:
    """Four ranks: two shards that also part the experts, times two that share every product."""
    layout = (*EXPERTS, "--parallel.shard=2", "--parallel.tensor=2", "--parallel.expert=2")
    for number in range(20):
        (yard.folder / f"{number}.txt").write_text(f"Text {number}: a statement ends a line. " * 30)
    corpus = yard.folder / "corpus"
    assert main(["prepare", f"{yard.folder}/*.txt", "--out", str(corpus), "--held-out=0.3"]) == 0
    words = (
        *layout,
        "--data.source=shards",
        f"--data.path={corpus}",
        "--train.eval_every=4",
        "--train.eval_sequences=4",
    )
    began = time.monotonic()
    first = yard.start(*words, ranks=4, at={"rank": 3, "point": "due", "step": 6, "signal": "SIGKILL"})
    assert first.end_of(3) == -signal.SIGKILL, first.output()
    second = yard.run(*words, ranks=4)
    took = time.monotonic() - began
    assert sorted(second.losses())[-1] == 8
    assert 1 not in second.losses()
    assert any("eval" in line.get("phase", "") for line in second.progress())
    assert took < LIMIT_SECONDS


def test_it_trains_saves_resumes_evaluates_and_samples_with_torch_and_numpy_alone(tmp_path: Path) -> None:
    steps, text = tmp_path / "steps", tmp_path / "text.txt"
    text.write_text("The import statement combines two operations. " * 40)
    small = ["--preset=tiny-moe", f"--checkpoint.dir={steps}", "--checkpoint.every_steps=1"]
    small += ["--batch.tokens_per_step=256", "--optim.horizon_steps=4", "--optim.warmup_steps=1"]
    for words in (
        ["train", *small, "--train.steps=2", "--optim.name=muon"],
        ["train", *small, "--train.steps=4", "--optim.name=muon"],
        ["prepare", str(text), "--out", str(tmp_path / "corpus")],
        ["eval", str(steps), "--held-out", str(text)],
        ["sample", str(steps), "--prompt", "The import", "--max-tokens", "4"],
        ["checkpoint", "verify", str(steps)],
        ["export", str(steps), "--out", str(tmp_path / "model")],
        ["plan", "--preset", "dense-1b", "--gpus", "8"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", ALONE, f"{CORE} {NEEDS_OF_TORCH}", *words],
            env={**clean_environment(), "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    assert (steps / "step-00000004" / "MANIFEST.json").exists()

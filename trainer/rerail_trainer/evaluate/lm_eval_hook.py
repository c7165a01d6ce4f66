"""The tasks of EleutherAI's lm-eval, run by that program over the model in Hugging Face form. Torch-free."""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rerail_trainer.failures import BadConfig

PACKAGE = "lm_eval"


@dataclass(frozen=True)
class Harness:
    """What lm-eval is told besides the model; empty and 0 leave its defaults."""

    tasks: str
    include_path: str = ""
    few_shot: int = 0
    limit: int = 0
    device: str = "auto"
    dtype: str = "stored"
    out: str = ""


def command_line(model: str, harness: Harness) -> list[str]:
    """The words with which lm-eval is started for the Hugging Face directory `model`."""
    dtype = "auto" if harness.dtype == "stored" else harness.dtype
    words = [sys.executable, "-m", PACKAGE, "--model", "hf"]
    words += ["--model_args", f"pretrained={model},dtype={dtype}", "--tasks", harness.tasks]
    optional = {
        "--device": "" if harness.device == "auto" else harness.device,
        "--include_path": harness.include_path,
        "--num_fewshot": harness.few_shot,
        "--limit": harness.limit,
        "--output_path": harness.out,
    }
    return words + [word for flag, value in optional.items() if value for word in (flag, str(value))]


def run(path: str, step: int | None, harness: Harness) -> int:
    """lm-eval's exit code over the model at `path`, exported to a temporary folder where it is a checkpoint.

    BadConfig where lm-eval is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise BadConfig("--lm-eval needs lm-eval, which is not installed: pip install 'lm-eval[hf]'")
    if "," in path or "=" in path:
        raise BadConfig(f"lm-eval cannot take a path with a comma or an equals sign: {path}")
    if (Path(path) / "config.json").is_file():
        return _started(command_line(path, harness))
    with tempfile.TemporaryDirectory(prefix="rerail-export-") as folder:
        model = f"{folder}/model"
        _export(path, step, model)
        return _started(command_line(model, harness))


def _export(path: str, step: int | None, folder: str) -> None:
    from rerail_trainer import commands

    chosen = [] if step is None else ["--step", str(step)]
    code = commands.run("export", [path, "--out", folder, *chosen])
    if code:
        raise BadConfig(f"{path} could not be exported for lm-eval (exit {code})")


def _started(words: Sequence[str]) -> int:
    sys.stdout.flush()
    return subprocess.run(words, check=False).returncode

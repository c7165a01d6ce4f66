"""lm-eval gets the model in the layout that it reads, and its words as they were meant.

lm-eval brings thirty packages along and is no requirement of the tests. Where it is installed the real program runs
over a real export; else a program of its name shows what it would be given.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from rerail_trainer.__main__ import main
from rerail_trainer.evaluate.lm_eval_hook import PACKAGE, Harness, command_line

from .gang import PYTHONPATH, Yard, Zygote

INSTALLED = importlib.util.find_spec(PACKAGE) is not None

TASK = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""

STAND_IN = """
import json, os, sys
model = sys.argv[sys.argv.index("--model_args") + 1].split(",")[0].removeprefix("pretrained=")
print(json.dumps({"words": sys.argv[1:], "model": model, "files": sorted(os.listdir(model))}))
sys.exit(3)
"""


@pytest.fixture(scope="module")
def checkpoints(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    yard = Yard(zygote, tmp_path_factory.mktemp("trained"))
    yard.run("--model.seq_len=64")
    return yard.checkpoints


def test_the_words_for_lm_eval_say_what_was_asked() -> None:
    harness = Harness(
        "arc_easy,own", include_path="tasks", few_shot=5, limit=10, device="cuda", dtype="bfloat16"
    )
    assert command_line("/models/one", harness) == [
        sys.executable, "-m", "lm_eval", "--model", "hf",
        "--model_args", "pretrained=/models/one,dtype=bfloat16", "--tasks", "arc_easy,own",
        "--device", "cuda", "--include_path", "tasks", "--num_fewshot", "5", "--limit", "10",
    ]  # fmt: skip
    assert command_line("m", Harness("own"))[-4:] == [
        "--model_args",
        "pretrained=m,dtype=auto",
        "--tasks",
        "own",
    ]


def test_a_checkpoint_is_exported_for_lm_eval_or_it_is_said_how_to_install_it(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"question": "q", "choices": ["e e e", "\x01\x02\x03"], "answer": 0}) + "\n")
    (tmp_path / "own.yaml").write_text(TASK % items)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    words = ["eval", str(checkpoints), "--lm-eval=own", f"--include-path={tmp_path}", "--device=cpu"]
    code = main(words)
    told = capfd.readouterr()
    if INSTALLED:
        assert code == 0, told.err
        assert "|own" in told.out
    else:
        assert code == 64
        assert "pip install 'lm-eval[hf]'" in told.err


def test_lm_eval_finds_a_whole_model_directory_and_its_exit_code_is_ours(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / PACKAGE
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(["eval", str(checkpoints), "--lm-eval=own", "--limit=2"]) == 3
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(told["files"])
    assert told["words"][-4:] == ["--tasks", "own", "--limit", "2"]
    assert not Path(told["model"]).exists(), "what was exported for this run is gone"
    # A directory that lm-eval can read as it is, is handed over as it is.
    exported = tmp_path / "exported"
    assert main(["export", str(checkpoints), "--out", str(exported)]) == 0
    capfd.readouterr()
    assert main(["eval", str(exported), "--lm-eval=own"]) == 3
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["model"] == str(exported)
    # A comma would begin the next of its arguments.
    assert main(["eval", str(tmp_path / "a,b"), "--lm-eval=own"]) == 64
    assert "comma" in capfd.readouterr().err

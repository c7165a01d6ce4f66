"""Settings: later words win, and what is not understood is answered with what to write."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from rerail_trainer.__main__ import main
from rerail_trainer.config import Config, config_hash
from rerail_trainer.configure import read_command_line
from rerail_trainer.presets import PRESETS

REFUSED = {
    "a key with a slip names the nearest": (
        ["--model.layer=2"],
        "unknown setting 'model.layer'; did you mean 'model.layers'?",
    ),
    "a key in the wrong section names the right one": (
        ["--train.seq_len=2"],
        "unknown setting 'train.seq_len'; did you mean 'model.seq_len'?",
    ),
    "a preset with a slip names the nearest": (
        ["--preset", "tiyn"],
        "unknown preset 'tiyn'; did you mean 'tiny'?",
    ),
    "a word where a number belongs": (["--train.steps=many"], "train.steps=many must be a whole number"),
    "a fraction where a whole number belongs": (
        ["--train.steps=1.5"],
        "train.steps=1.5 must be a whole number",
    ),
    "a choice that is none": (["--model.mlp=relu"], "model.mlp=relu must be one of swiglu, gelu"),
    "neither true nor false": (["--data.shuffle=yes"], "data.shuffle=yes must be true or false"),
    "a value that is missing": (["--train.steps"], "--train.steps needs a value: --train.steps=VALUE"),
    "an unknown command": (["tran"], "unknown command 'tran'; did you mean 'train'?"),
    "a loose word": (["train", "tiny"], "'tiny' is not understood; settings are written --section.key=value"),
    "a batch that is no whole number of sequences": (
        ["--batch.tokens_per_step=1000"],
        "batch.tokens_per_step=1000 must be a multiple of model.seq_len=1024",
    ),
    "one checkpoint to keep": (["--checkpoint.keep=1"], "checkpoint.keep=1 must be at least 2"),
    "no steps": (["--train.steps=0"], "train.steps=0 must be at least 1"),
    "heads that cannot be shared": (
        ["--model.kv_heads=5"],
        "model.kv_heads=5 must divide model.heads=12",
    ),
    "text without a path": (["--data.source=text"], "data.source=text needs data.path"),
    "a file that is not there": (["--config", "/no/such.toml"], "--config /no/such.toml: No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_with_code_64(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, message = REFUSED[case]
    assert main(words) == 64
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert lines[0].endswith("(exit 64)")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 must lie in 0..1"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}, "MASTER_PORT is not set"),
        ({"RERAIL_ROUND": "two"}, "RERAIL_ROUND must be a whole number, not 'two'"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(
    env: dict[str, str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert main(["--preset", "tiny"]) == 64
    assert message in capsys.readouterr().err


def test_preset_then_file_then_flags(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[optim]\nlr = 1\n[train]\nsteps = 50\n[parallel]\nshard = 2\n")
    line = read_command_line(["--train.steps=1_000", "--config", str(file), "--preset=tiny"])
    assert (line.config.optim.lr, line.config.train.steps, line.config.parallel.shard) == (1.0, 1000, 2)
    assert line.config.model == PRESETS["tiny"].model


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 1\n", "stands outside a table"),
        ("[train]\nsteps = true\n", "train.steps=True must be a whole number"),
        ("[train]\nstep = 1\n", "did you mean 'train.steps'"),
        ("[train\n", "is not TOML"),
    ],
)
def test_a_file_is_held_to_the_same_rules(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    assert main(["--config", str(file)]) == 64
    assert message in capsys.readouterr().err


def test_show_config_prints_what_holds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERAIL_CHECKPOINT_DIR", "/from/env")
    assert main(["--preset", "tiny", "--show-config"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["checkpoint"]["dir"] == "/from/env"
    assert shown["model"] == asdict(PRESETS["tiny"].model)


def test_the_hash_follows_what_must_stay_equal_and_nothing_else() -> None:
    base = config_hash(Config())

    def changed(*words: str) -> bool:
        return config_hash(read_command_line(list(words)).config) != base

    assert not changed(
        "--checkpoint.keep=5", "--batch.micro_batch=1", "--parallel.shard=2", "--metrics.port=1"
    )
    assert not changed("--train.steps=2000", "--optim.horizon_steps=1000")
    for word in ("--train.steps=2000", "--run.seed=2", "--model.tie=true", "--batch.tokens_per_step=1024"):
        assert changed(word)

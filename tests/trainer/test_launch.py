"""Started the ways people start it: alone, by torchrun, and the examples that know nothing of Rerail."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from .gang import PYTHONPATH, ROOT, SMALL, clean_environment, free_port


def start(*words: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        env={**clean_environment(), "PYTHONPATH": PYTHONPATH, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output = process.communicate(timeout=200)[0]
    return process.returncode, output


def test_alone_it_trains_tiny_and_never_imports_the_compiler(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom rerail_trainer.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "slow = {'torch._dynamo', 'torch._inductor', 'sympy'} & set(sys.modules)\n"
        "sys.exit(code or (f'imported {slow}' if slow else 0))"
    )
    words = ("--preset", "tiny", "--train.steps=3", f"--checkpoint.dir={tmp_path}/c")
    status, output = finish(start(sys.executable, "-c", code, *words))
    assert status == 0, output
    assert "done: 3 steps" in output


def test_torchrun_starts_it_and_its_code_is_in_the_error_file(tmp_path: Path) -> None:
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
    )
    words = (
        "-m",
        "rerail_trainer",
        *SMALL,
        f"--checkpoint.dir={tmp_path}/c",
        f"--metrics.jsonl={tmp_path}/j",
    )
    status, output = finish(start(*torchrun, *words))
    assert status == 0, output
    lines = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    errors = tmp_path / "error.json"
    status, output = finish(
        start(*torchrun, *words, "--model.ffn=64", env={"TORCHELASTIC_ERROR_FILE": str(errors)})
    )
    assert status == 1
    assert "model.ffn was 48, is 64" in output
    assert json.loads(errors.read_text())["message"]["errorCode"] == 65


def test_metrics_are_served_while_it_trains(tmp_path: Path) -> None:
    port = free_port()
    words = (*SMALL, f"--metrics.port={port}", f"--checkpoint.dir={tmp_path}/c", "--train.steps=1000000")
    process = start(sys.executable, "-m", "rerail_trainer", *words)
    try:
        text = ""
        end = time.monotonic() + 120
        while "rerail_trainer_checkpoint_last_committed_step" not in text:
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()[0]
            try:
                text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
            except OSError:
                time.sleep(0.05)
    finally:
        process.terminate()
    assert finish(process)[0] == 75
    assert re.search(r"^rerail_trainer_step [1-9]", text, re.MULTILINE)
    assert "# TYPE rerail_trainer_tokens_total counter" in text


def test_the_plain_example_runs_is_killed_and_resumes(tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "02-plain-pytorch" / "train.py")

    def gang() -> list[subprocess.Popen[str]]:
        port = str(free_port())
        where = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "CHECKPOINT_DIR": str(tmp_path),
        }
        return [
            start(sys.executable, script, "--steps", "60", env={**where, "RANK": str(rank)})
            for rank in range(2)
        ]

    first = gang()
    end = time.monotonic() + 120
    while not (tmp_path / "latest.pt").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    for process in first:
        process.kill()
        process.communicate()
    results = [finish(process) for process in gang()]
    assert [code for code, _ in results] == [0, 0], results
    assert re.search(r"rank 0 of 2: resumed from step (20|40|60)", results[0][1])
    assert "done after 60 steps" in results[1][1]


def test_the_torchrun_example_counts_its_ranks(tmp_path: Path) -> None:
    script = str(ROOT / "examples" / "03-torchrun" / "train.py")
    command = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
    )
    status, output = finish(start(*command, script, "--steps", "40", "--checkpoint-dir", str(tmp_path)))
    assert status == 0, output
    for rank in range(2):
        assert f"rank {rank} of 2: local rank {rank} on node 0" in output
    assert os.path.exists(tmp_path / "latest.pt")

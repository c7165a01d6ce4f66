"""`rerail run` as a person starts it: a process of its own, its output, its report, and what it leaves behind."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rerail_api.contract import Env
from rerail_operator.shell.local import processes

ROOT = Path(__file__).parents[2]


class Run:
    """One `rerail run` with its own folder; `finish` waits for its end."""

    def __init__(self, manifest: Path, folder: Path, *options: str, name: str = "run") -> None:
        self.workdir = folder / "work"
        self._report = folder / f"{name}.json"
        self._output = folder / f"{name}.out"
        words = [
            "run",
            str(manifest),
            "--workdir",
            str(self.workdir),
            "--report",
            str(self._report),
            *options,
        ]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rerail_operator.shell.cli", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text("utf-8", "replace")

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._report.read_text("utf-8"))
        return found

    def last_step(self) -> int:
        """The last step that it has shown; -1 before the first."""
        shown = re.findall(r"^  step (\d+)", self.output, flags=re.MULTILINE)
        return int(shown[-1]) if shown else -1

    def members(self) -> list[int]:
        """All processes of its pods that live now."""
        return processes.marked(Env.CHECKPOINT_DIR, str(self.workdir / "checkpoints"))

    def until(self, true: Callable[[], bool], what: str, seconds: float = 150.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.output}"
            time.sleep(0.05)

    def finish(self, seconds: float = 240.0) -> int:
        """Its exit code; nothing of it is alive afterwards."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in {seconds:g} s:\n{self.output}") from None
        assert self.members() == [], "processes are left running"
        return code

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


def job(
    folder: Path, command: list[str], *, name: str = "demo", nodes: int = 2, nproc: int = 1, **spec: Any
) -> Path:
    """A manifest in a folder of its own."""
    template = {"spec": {"containers": [{"name": "trainer", "image": "any", "command": command}]}}
    body = {
        "apiVersion": "rerail.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {"numNodes": nodes, "numProcPerNode": nproc, "template": template, **spec},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")
    return path


def ledger_sums(report: dict[str, Any]) -> bool:
    ledger = report["ledger"]
    total = ledger["productiveSeconds"] + sum(ledger["lostSeconds"].values())
    return abs(total - ledger["wallSeconds"]) < 0.1

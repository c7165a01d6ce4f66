"""The project's scripts as their user runs them, and programs that are not here played by a shell script."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .checkout import ROOT

PLAIN = "/usr/bin:/bin"


def run_script(
    name: str, *words: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run scripts/NAME with only this environment; an entry PATH keeps what the host has out of the test."""
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *words],
        env={"PATH": PLAIN, "HOME": "/nonexistent", **(env or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def play(folder: Path, name: str, answers: str = "") -> None:
    """Put a program into `folder` that writes down how it was called; `answers` is shell, $* the words."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> "{folder}/calls"\n{answers}\nexit 0\n')
    program.chmod(0o755)


def calls(folder: Path) -> list[str]:
    """How the programs in `folder` were called, in order."""
    return (folder / "calls").read_text().splitlines()


def alone(folder: Path) -> dict[str, str]:
    """An environment in which only the programs of `folder` are found, beside sh and its like."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("sh", "env", "cat", "sed", "head", "ls", "dirname", "mktemp", "rm", "grep", "sha256sum"):
        found = next(Path(place, name) for place in PLAIN.split(":") if Path(place, name).exists())
        if not (tools / name).exists():
            os.symlink(found, tools / name)
    return {"PATH": f"{folder}:{tools}"}

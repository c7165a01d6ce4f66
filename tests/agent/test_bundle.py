"""The zipapp: the same bytes from the same sources, small, and clear where it cannot run."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rerail_agent.bundle import build, main
from tests.agent.coordinator import Coordinator
from tests.agent.process import AgentProcess


def run(python: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def interpreters(wanted: str) -> list[str]:
    """Pythons of that version on PATH or under pyenv."""
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))]
    found = [str(p) for root in roots for p in sorted(root.glob(f"versions/{wanted}.*/bin/python"))]
    on_path = shutil.which(f"python{wanted}")
    # a version manager's shim is on PATH for versions that it would not start
    return found or ([on_path] if on_path and run(on_path, "-c", "").returncode == 0 else [])


def test_the_bytes_depend_on_the_sources_alone(pyz: Path, tmp_path: Path) -> None:
    assert build() == build() == pyz.read_bytes()
    assert main([str(tmp_path / "out")]) == 0 and (tmp_path / "out").read_bytes() == build()
    assert main([]) == 64
    assert len(build()) < 80 * 1024 and build().startswith(b"#!/usr/bin/env python3\n")


def test_it_holds_the_agent_and_the_contract_only(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as zipped:
        names = zipped.namelist()
        assert {entry.date_time for entry in zipped.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert [name for name in names if not name.startswith("rerail_agent/")] == [
        "__main__.py",
        "rerail_api/__init__.py",
        "rerail_api/contract.py",
    ]


def test_it_imports_nothing_beyond_the_standard_library(pyz: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(pyz)!r}); import rerail_agent.entry; "
        "own = {m.partition('.')[0] for m in sys.modules}; "
        "print(sorted(own - set(sys.stdlib_module_names) - {'__main__'}))"
    )
    assert run(sys.executable, "-I", "-S", "-c", code).stdout.strip() == "['rerail_agent', 'rerail_api']"


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ((), {}, "no command to run"),
        (("--",), {}, "no command to run"),
        (("true",), {}, "no command to run"),
        (("--", "true"), {}, "RERAIL_COORDINATOR is not set"),
        (("--", "true"), {"RERAIL_COORDINATOR": "host"}, "RERAIL_COORDINATOR: 'host' is not host:port"),
        (("--", "true"), {"RERAIL_COORDINATOR": "h:1"}, "RERAIL_CA_FILE is not set"),
        (
            ("--", "true"),
            {"RERAIL_COORDINATOR": "h:1", "RERAIL_COORDINATOR_TLS": "no"},
            "must be one of 1, 0",
        ),
        (
            ("--", "true"),
            {"RERAIL_COORDINATOR": "h:1", "RERAIL_COORDINATOR_TLS": "0"},
            "RERAIL_TOKEN_FILE is not set",
        ),
    ],
)
def test_what_is_missing_is_told_in_one_line(
    pyz: Path, arguments: tuple[str, ...], env: dict[str, str], message: str
) -> None:
    done = run(sys.executable, "-I", str(pyz), *arguments, **env)
    assert done.returncode == 64 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1


async def test_modules_of_the_user_do_not_become_the_agents(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    for name in ("random", "queue", "selectors", "rerail_agent"):
        (agent.folder / f"{name}.py").write_text("raise SystemExit('this is not yours')\n")
    agent.python = [sys.executable]
    program = "import random"
    agent.start(coordinator.address, sys.executable, "-c", program, PYTHONPATH=str(agent.folder))
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1)
    evidence = (await coordinator.state("Failed", 1))["exit"]
    assert evidence["last_line"] == "this is not yours"


OLD = [python for version in ("2.7", "3.6", "3.7", "3.8") for python in interpreters(version)]


def test_an_old_python_is_told_what_it_lacks(pyz: Path) -> None:
    entry = zipfile.ZipFile(pyz).read("__main__.py")
    ast.parse(entry, feature_version=(3, 6))  # it must be read at all to say so
    for python in OLD:
        done = run(python, str(pyz), "--", "true")
        assert done.returncode == 64 and "needs Python 3.9 or newer" in done.stderr, python
        assert done.stderr.count("\n") == 1, python


SUPPORTED = ("3.9", "3.10", "3.12", "3.13", "3.14")
OTHERS = [sys.executable, *(python for version in SUPPORTED for python in interpreters(version))]


@pytest.mark.parametrize("python", OTHERS)
async def test_every_supported_python_runs_it(
    coordinator: Coordinator, agent: AgentProcess, python: str
) -> None:
    agent.python = [python, "-I"]
    agent.start(
        coordinator.address, python, "-c", "import os; print('on', os.environ['RANK']); raise KeyError(1)"
    )
    await coordinator.hello()
    coordinator.join(1)
    await coordinator.state("Ready", 1)
    coordinator.run(1, nproc=2)
    report = await coordinator.until(lambda r: r["state"] == "Failed" and not r["ranks_alive"], "failure")
    assert report["exit"]["exception"] == "KeyError" and report["exit"]["same_on_all"] is True
    assert "[rank 1] on 1\n" in agent.output()
    coordinator.hang_up()
    await coordinator.hello(2)
    coordinator.join(2)
    await coordinator.state("Ready", 2)
    coordinator.finish(3)
    assert await agent.exit_code() == 3

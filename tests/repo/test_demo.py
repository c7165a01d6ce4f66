"""What `make demo` says on a machine that cannot run it: each sentence with the command that helps."""

import importlib.util
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest

from .checkout import ROOT

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def demo() -> ModuleType:
    """scripts/demo.py as a module of its own, so that a test may change what it sees of the machine."""
    spec = importlib.util.spec_from_file_location("demo_under_test", ROOT / "scripts" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_old_python_is_told_which_one_is_needed(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(demo.sys, "version", "3.9.2 (somewhen)")
    monkeypatch.setattr(demo.shutil, "which", lambda name: None)
    with pytest.raises(demo.CannotSetUp, match=r"Python 3.11 or newer is needed, this is 3.9.2.*apt install"):
        demo.require_python()


def test_a_newer_python_beside_the_old_one_is_taken(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(demo.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(demo.shutil, "which", lambda name: "/py/python3.12" if name == "python3.12" else None)

    def replaced(path: str, words: list[str]) -> None:
        started.append(list(words))
        raise SystemExit  # a process that was replaced does not go on

    monkeypatch.setattr(demo.os, "execv", replaced)
    with pytest.raises(SystemExit):
        demo.require_python()
    assert started == [["/py/python3.12", *sys.argv]]


def test_a_python_without_venv_is_told_the_package(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(demo.CannotSetUp, match=r"apt install python3\.\d+-venv"):
        demo.require_venv()


def test_a_full_disk_is_told_how_much_is_needed(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 2 * 10**9))
    with pytest.raises(demo.CannotSetUp, match=r"8 GB of disk are needed .* 2.0 GB are free.*TORCH_INDEX"):
        demo.require_disk(demo.DISK_GB_WITH_TORCH)


def test_an_interpreter_without_torch_has_none_to_lend(demo: ModuleType, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    assert demo.torch_home(str(bare)) == ""


def test_make_alone_lists_the_targets() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "test-fast", "cluster", "cluster-down", "bench"):
        assert f"make {target} " in done.stdout

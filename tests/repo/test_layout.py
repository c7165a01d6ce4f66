"""The house rules that a machine can check, so that nobody has to remember them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from .checkout import ROOT, files, functions, shown, syntax

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
SOURCE_ROOTS = ("operator", "trainer")
PRODUCT = ("operator/", "trainer/", "scripts/", "bench/", "tests/cluster/rig/")
WEAK_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def product() -> list[Path]:
    return [path for path in files(".py") if shown(path).startswith(PRODUCT)]


def test_no_python_file_is_longer_than_400_lines() -> None:
    long = {
        shown(path): count
        for path in files(".py")
        if (count := len(path.read_text().splitlines())) > MAX_FILE_LINES
    }
    assert long == {}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring: promises are not what makes a function long."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        promise = function.body[0]
        lines -= (promise.end_lineno or 0) - promise.lineno + 1
    return lines


def test_no_function_is_longer_than_40_lines() -> None:
    long = {
        f"{shown(path)}:{function.name}": length(function)
        for path in product()
        for function in functions(path)
        if length(function) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_the_folder_operator_never_hides_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    probe = "import operator; print(operator.itemgetter(1)('ab'))"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("b\n", "")


def test_nothing_on_the_search_path_is_named_like_the_standard_library() -> None:
    tops = [path for root in SOURCE_ROOTS for path in (ROOT / root).iterdir()]
    tops += [path for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert [shown(path) for path in tops if path.stem in sys.stdlib_module_names] == []


def test_names_say_what_a_thing_is() -> None:
    weak = [shown(path) for path in product() if WEAK_NAMES & set(path.stem.split("_"))]
    classes = [
        f"{shown(path)}:{node.name}"
        for path in product()
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.ClassDef) and re.search(r"(Manager|Helper|Util)s?$", node.name)
    ]
    assert weak + classes == []


def test_every_module_says_what_it_owns() -> None:
    silent = [
        shown(path)
        for path in product()
        if path.name not in ("__init__.py", "__main__.py") and ast.get_docstring(syntax(path)) is None
    ]
    assert silent == []


TEXTS = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".tpl", ".txt", ".json", ""}
# Spelled in pieces, so that this file does not find itself.
MARKS = re.compile(
    r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b|(?<![\w}])(/wo" + r"rk/(main|shared)|/ro" + r"ot/(?!\.cache))"
)


def test_nothing_is_left_to_do_and_nothing_names_this_machine() -> None:
    found = [
        f"{shown(path)}:{number}: {line.strip()[:80]}"
        for path in files()
        if path.suffix in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if MARKS.search(line)
    ]
    assert found == []


def test_imports_keep_to_the_layers() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
    ]
    environment = {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_core_is_synchronous() -> None:
    core = [path for path in product() if "/core/" in shown(path)]
    waits = [
        f"{shown(path)}:{node.lineno}"
        for path in core
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    clocks = [
        f"{shown(path)}:{node.lineno}"
        for path in core
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.Attribute)
        and node.attr in ("now", "utcnow", "today")
        and isinstance(node.value, ast.Name)
        and node.value.id in ("datetime", "date")
    ]
    assert waits + clocks == []

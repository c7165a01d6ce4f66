"""One table of exit codes: every code that the trainer uses is in the contract, and the docs say what it means."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rerail_api.contract import ExitCode

from .gang import ROOT, Yard

SOURCES = sorted((ROOT / "trainer" / "rerail_trainer").rglob("*.py"))
PAGE = ROOT / "docs" / "reference" / "exit-codes.md"
LEAVERS = ("exit", "_exit", "leave", "abort", "quit")
"""Calls that end the process."""
UNJUDGED = 1
"""What nobody foresaw, and workers of a command that die with it: judged by cause."""


def calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def name_of(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def used_codes() -> dict[str, str]:
    """Code names that the trainer's source spells, and one place for each."""
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "ExitCode"
            ):
                found[node.attr] = where(path, node)
    return found


def documented() -> dict[int, str]:
    rows = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {int(code): name for code, name in rows}


def test_every_code_that_the_trainer_uses_is_in_the_table() -> None:
    unknown = {name: place for name, place in used_codes().items() if name not in ExitCode.__members__}
    assert not unknown
    assert {"BAD_CONFIG", "HANG", "NON_FINITE", "PREEMPTED_SAVED", "RENDEZVOUS_FAILED"} <= set(used_codes())


def test_the_docs_have_the_table_whole() -> None:
    assert documented() == {int(code): code.name for code in ExitCode}


def test_whoever_refuses_names_a_code_of_the_table() -> None:
    wrong = []
    for path in SOURCES:
        for call in calls(path):
            if name_of(call) == "TrainerExit":
                code = call.args[0]
                spelled = isinstance(code, ast.Attribute) and ast.unparse(code.value) == "ExitCode"
                rebuilt = isinstance(code, ast.Call) and name_of(code) == "ExitCode"
                if not (spelled or rebuilt):
                    wrong.append(f"{where(path, call)}: {ast.unparse(code)}")
    assert not wrong


def test_no_process_ends_with_a_bare_number() -> None:
    wrong = [
        f"{where(path, call)}: {ast.unparse(call)}"
        for path in SOURCES
        for call in calls(path)
        if name_of(call) in LEAVERS
        for argument in call.args
        if isinstance(argument, ast.Constant) and argument.value not in (0, UNJUDGED)
    ]
    assert not wrong


def test_every_rank_declares_the_contract_before_its_configuration_is_read(yard: Yard) -> None:
    """The agent of each node hears its own ranks only, and a bad configuration must not be tried again."""
    gang = yard.start("--train.steps=many", ranks=2)
    assert gang.wait() == [64, 64]
    assert gang.declared() == [{"contract": 1}, {"contract": 1}] and gang.progress() == []


@pytest.mark.parametrize("code", [code for code in ExitCode if code is not ExitCode.DONE])
def test_the_operator_knows_what_each_code_means(code: ExitCode) -> None:
    from rerail_operator.core.taxonomy import BY_CODE

    assert code in BY_CODE or code in (ExitCode.PREEMPTED_SAVED, ExitCode.PREEMPTED_NOT_SAVED)

"""The trainer's feature matrix: every row says what holds, and links to the tests that show it."""

import ast
import re

import pytest

from .checkout import ROOT

PAGE = ROOT / "docs" / "trainer-matrix.md"
LINK = re.compile(r"\[([\w ]+)\]\(\.\./(tests/[\w/]+\.py)\)")
LAST_ROW = 23


def rows() -> dict[int, str]:
    """Row number -> its line."""
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    return {int(line.split("|")[1]): line for line in lines}


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_no_row_is_missing() -> None:
    assert sorted(rows()) == list(range(1, max(LAST_ROW, *rows()) + 1))


@pytest.mark.parametrize("number", range(1, LAST_ROW + 1))
def test_a_row_links_to_tests_that_are_there(number: int) -> None:
    """The link's text is the test's name without `test_` and underscores."""
    links = LINK.findall(rows()[number])
    assert links
    for name, path in links:
        assert "test_" + name.replace(" ", "_") in functions_of(path), (name, path)

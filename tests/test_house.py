"""Functions and files of ``src/`` are no longer than the house rules say."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "src").rglob("*.py"))
LINES_OF_A_FUNCTION = 60
LINES_OF_A_FILE = 400


@pytest.mark.parametrize("rule", ["CONTRIBUTING.md", "docs/design.md"])
def test_the_rules_are_those_that_are_written_down(rule):
    text = (ROOT / rule).read_text()
    line = next(line for line in text.splitlines() if str(LINES_OF_A_FILE) in line and "unctions" in line)
    assert str(LINES_OF_A_FUNCTION) in line


def test_no_file_is_too_long():
    assert FILES
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
    assert {name: length for name, length in lengths.items() if length > LINES_OF_A_FILE} == {}


def test_no_function_is_too_long():
    """From its ``def`` to its last line, with all that is written inside."""
    lengths = {
        f"{file.relative_to(ROOT)} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > LINES_OF_A_FUNCTION} == {}

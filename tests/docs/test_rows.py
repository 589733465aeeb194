"""The table of faults in tests/README.md names at least one existing test in each row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (\d+) \| .*? \| (.*?) \| .*? \|$", (TESTS / "README.md").read_text(), re.MULTILINE)


def test_every_row_of_the_table_names_a_test_that_exists() -> None:
    numbers = [int(number) for number, _ in ROWS]
    assert numbers[:48] == list(range(1, 49))
    assert numbers == sorted(set(numbers))
    for number, cell in ROWS:
        names = re.findall(r"`([\w/.]+)::(\w+)`", cell)
        assert names, number
        for file, name in names:
            tree = ast.parse((TESTS / file).read_text())
            functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
            assert name in functions, (number, file, name)


def test_every_test_that_names_a_row_is_in_that_row() -> None:
    cells = {int(number): cell for number, cell in ROWS}
    for file in TESTS.rglob("test_*.py"):
        for name, number in re.findall(r"def (test_row_(\d\d)_\w+)", file.read_text()):
            assert f"{file.relative_to(TESTS).as_posix()}::" in cells[int(number)], name

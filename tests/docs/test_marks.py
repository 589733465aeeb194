"""A test that opens the file itself has the mark ``sqlite_file``; all others use tests/support/state.py, for every kind of store."""

from __future__ import annotations

import ast
import re

from tests.docs.test_rows import TESTS

MARK = "pytest.mark.sqlite_file"


def test_a_test_that_opens_the_file_itself_is_marked() -> None:
    unmarked: list[str] = []
    for file in sorted(path for folder in ("unit", "contract", "model", "faults") for path in (TESTS / folder).rglob("*.py")):
        text = file.read_text()
        if f"pytestmark = {MARK}" in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                opens_file = re.search(
                    r"\bsqlite3\.(?!connect\(':memory:'\))|PRAGMA|\bPath\(db\)|\bSQLiteStore\b", ast.unparse(node)
                )
                if opens_file and MARK not in map(ast.unparse, node.decorator_list):
                    unmarked.append(f"{file.relative_to(TESTS)}::{node.name}")
    assert unmarked == []

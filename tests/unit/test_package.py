"""The package: its public names, its type information, and what an import loads."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import os
import subprocess
import sys
from pathlib import Path

import pytest

import asyncrunner


def test_every_public_name_is_there_sorted_and_documented() -> None:
    assert asyncrunner.__all__ == sorted(asyncrunner.__all__)
    assert [name for name in asyncrunner.__all__ if not (getattr(asyncrunner, name).__doc__ or "").strip()] == []


def test_the_package_is_typed_and_its_licence_is_named() -> None:
    assert importlib.resources.files("asyncrunner").joinpath("py.typed").is_file()
    assert importlib.metadata.metadata("asyncrunner")["License-Expression"] == "MIT"


def test_importing_it_does_not_import_modules_that_only_the_command_line_needs() -> None:
    code = "import asyncrunner, sys; print([name for name in ('rich', 'click', 'asyncrunner.cli', 'starlette', 'jinja2') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_importing_it_imports_no_runner_until_a_name_of_it_is_used() -> None:
    code = """
import sys
import asyncrunner
loaded = [name for name in ("asyncio", "sqlite3", "msgspec", "asyncrunner.runner") if name in sys.modules]
assert loaded == [], loaded
assert asyncrunner.errors.Retry is asyncrunner.Retry
assert "asyncrunner.runner" not in sys.modules
asyncrunner.Runner
assert "asyncrunner.runner" in sys.modules
assert {"Runner", "errors", "run_batch"} <= set(dir(asyncrunner))
"""
    unmeasured = {**os.environ, "COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}  # coverage imports sqlite3
    subprocess.run([sys.executable, "-c", code], check=True, env=unmeasured)


def test_each_name_is_imported_from_the_module_that_type_checkers_see() -> None:
    tree = ast.parse(Path(asyncrunner.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {node.module: tuple(alias.name for alias in node.names) for node in imports} == asyncrunner._NAMES
    assert sorted(asyncrunner._MODULE_OF) == asyncrunner.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'asyncrunner' has no attribute 'run_batches'"):
        asyncrunner.run_batches  # type: ignore[attr-defined]  # noqa: B018  # pyright: ignore

"""A command imports only what it uses, so that it starts quickly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

UNUSED = (
    "pydantic", "typer", "rich", "anyio", "aiosqlite", "tenacity", "filelock", "importlib.metadata", "asyncrunner.runner",
    "asyncrunner.worker", "asyncrunner.execution", "asyncrunner.batch", "asyncrunner.submission", "asyncrunner.admin.changes",
    "asyncrunner.admin.control", "asyncrunner.sqlite.store", "asyncrunner.sqlite.claims", "asyncrunner.sqlite.maintenance",
    "asyncrunner.sqlite.file.connection", "starlette", "jinja2", "uvicorn", "asyncrunner.dashboard",
)  # fmt: skip


def modules_of(folder: Path, *arguments: str) -> set[str]:
    """Run ``asyncrunner`` with *arguments* in a process, and return the names of the modules that it has imported."""
    code = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, sep="\\n", file=sys.stderr))
from asyncrunner.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""},  # coverage imports modules too
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines())


def used(modules: set[str], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if any(module == name or module.startswith(f"{name}.") for module in modules)]


def commands_of(modules: set[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in modules if name.startswith("asyncrunner.cli.commands.")}


@pytest.mark.sqlite_file
@pytest.mark.parametrize(
    ("arguments", "module"),
    [(["status"], "status"), (["status", "--json"], "status"), (["list"], "inspect"), (["show", "fine-1"], "inspect")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_that_only_reads_imports_no_code_that_runs_or_changes_items(
    arguments: list[str], module: str, file: Path
) -> None:
    modules = modules_of(file.parent, *arguments, "--db", "jobs.db")
    assert "asyncrunner.sqlite.admin.inspection" in modules, "the command has read the file"
    assert used(modules, UNUSED) == []
    assert commands_of(modules) == {module}


def test_the_help_imports_no_command(tmp_path: Path) -> None:
    modules = modules_of(tmp_path, "--help")
    assert "click" in modules
    assert commands_of(modules) == set()
    assert used(modules, ("asyncio", "sqlite3", "msgspec", *UNUSED)) == []

"""The package: its public names, its type information, and what an import loads."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import subprocess
import sys

import asyncrunner


def test_every_public_name_is_there_sorted_and_documented() -> None:
    assert asyncrunner.__all__ == sorted(asyncrunner.__all__)
    assert [name for name in asyncrunner.__all__ if not (getattr(asyncrunner, name).__doc__ or "").strip()] == []


def test_the_package_is_typed_and_its_licence_is_named() -> None:
    assert importlib.resources.files("asyncrunner").joinpath("py.typed").is_file()
    assert importlib.metadata.metadata("asyncrunner")["License-Expression"] == "MIT"


def test_importing_it_does_not_import_modules_that_only_the_command_line_needs() -> None:
    code = "import asyncrunner, sys; print([name for name in ('rich', 'typer', 'asyncrunner.cli') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

"""The options of ``run_batch`` with their defaults, for tests that compare them with the docs and the command line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from asyncrunner.domain.options import RunKeywords, RunOptions


def run_defaults() -> dict[str, Any]:
    """Return the default of each option of ``run_batch``."""
    defaults = RunOptions()
    owners: dict[str, Any] = {}
    for owner in (defaults, defaults.handler, defaults.runner):  # the concurrency of a run is that of its runner
        owners.update({each.name: owner for each in fields(owner)})
    return {name: getattr(owners[name], name) for name in RunKeywords.__annotations__}

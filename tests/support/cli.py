"""The command line in a separate process, with handlers to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.state import rows_of

HANDLERS = """
import asyncio
from dataclasses import dataclass
from pathlib import Path

from tests.support.state import rows_of

async def upper(line: str) -> str:
    return line.upper()

async def number(n: int) -> int:
    print("number", n)
    return n

@dataclass
class Row:
    name: str
    n: int

async def row(item: Row) -> int:
    return item.n

async def plain(item) -> object:
    return item

async def path(p: Path) -> str:
    return p.name

async def fails(line: str) -> None:
    raise ValueError(f"cannot do {line} \\x1b[31mred")

class Group:
    async def method(line: str) -> str:
        return line

CONSTANT = 3
"""


def run_command(folder: Path, *arguments: str, given: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asyncrunner", *arguments],
        cwd=folder, input=given, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def results(folder: Path, db: str = "asyncrunner.db") -> list[tuple[str, str]]:
    return rows_of(folder / db, "SELECT id, result FROM items ORDER BY seq")

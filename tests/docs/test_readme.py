"""The README is executed, so that its code, commands and tables stay true."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.options import run_defaults

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL_LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]


def run_block(source: str, folder: Path) -> str:
    """Run a block of Python in a folder and return what it prints; ``main()`` is called if the block does not."""
    script = folder / "shown.py"
    tree = ast.parse(source)
    defines_main = any(isinstance(node, ast.AsyncFunctionDef) and node.name == "main" for node in tree.body)
    calls_run = "asyncio.run(" in source or "uvloop.run(" in source
    script.write_text(source + ("\nimport asyncio\nasyncio.run(main())\n" if defines_main and not calls_run else ""))
    process = subprocess.run([sys.executable, script.name], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_code_is_shown_by_line_30() -> None:
    assert "```python" in "\n".join(README.splitlines()[:30])


def test_there_are_blocks_to_run() -> None:
    assert len(PYTHON_BLOCKS) >= 4


@pytest.mark.parametrize("number", range(len(PYTHON_BLOCKS)))
def test_every_block_runs(number: int, tmp_path: Path) -> None:
    run_block(PYTHON_BLOCKS[number], tmp_path)


def test_the_first_block_prints_every_result_again_at_the_second_run(tmp_path: Path) -> None:
    expected = "ready READY\nsteady STEADY\ngo GO\n"
    assert run_block(PYTHON_BLOCKS[0], tmp_path) == expected
    assert run_block(PYTHON_BLOCKS[0], tmp_path) == expected


def test_the_order_block_books_two_of_three(tmp_path: Path) -> None:
    source = next(block for block in PYTHON_BLOCKS if "class Order" in block)
    assert run_block(source, tmp_path).splitlines()[0] == "1 booked, 2 failed"


def test_the_table_of_options_names_every_option_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.MULTILINE))
    defaults = run_defaults()
    assert sorted(rows) == sorted(defaults)
    for name in ("concurrency", "max_attempts", "retry_failed", "stale_after", "shutdown_timeout"):
        assert float(ast.literal_eval(rows[name].strip("`"))) == float(defaults[name]), name
    for name in ("db", "on_change", "durability"):
        assert ast.literal_eval(rows[name].strip("`")) == defaults[name], name


def test_the_sql_of_the_readme_runs(tmp_path: Path) -> None:
    from asyncrunner import run_batch
    from asyncrunner.sqlite.file.opening import connect_writer

    asyncio.run(run_batch([1, 2], str, db=tmp_path / "a.db", batch="b"))
    connection = connect_writer(tmp_path / "a.db", "full")
    (block,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    statements = [each for each in block.split(";") if each.strip()]
    assert [connection.execute(each).fetchall() for each in statements] == [[("completed", 2)], [], []]
    connection.close()


def test_ci_takes_the_test_command_from_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    (pattern,) = re.findall(r'grep -m1 "(.*?)" README.md', ci)
    commands = [line for line in SHELL_LINES if re.search(pattern, line)]
    assert commands == ["python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[dev]' && .venv/bin/python -m pytest -n 3"]


def test_the_main_command_is_one_line_and_ci_runs_its_second_half_from_the_wheel() -> None:
    (line,) = [line for line in SHELL_LINES if "asyncrunner.examples.stdlib |" in line]
    install, _, run = line.partition(" && .venv/bin/python")
    assert install == "python3 -m venv .venv && .venv/bin/pip install --quiet ."
    assert f".venv/bin/python{run}".replace(".venv/", "venv/") in (ROOT / ".ci" / "run").read_text()

"""docs/guides/batches.md is executed, so that its code and commands stay true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.docs.test_readme import ROOT, run_block
from tests.support.processes import Jobs
from tests.support.state import rows_of

TEXT = (ROOT / "docs" / "guides" / "batches.md").read_text()


def block_with(name: str) -> str:
    block: str
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if name in block]
    return block


def test_the_program_with_child_processes_runs(jobs: Jobs) -> None:
    (jobs.folder / "sizes.py").write_text(block_with("processes="))
    (jobs.folder / "texts").mkdir()
    for number in range(5):
        (jobs.folder / "texts" / f"{number}.txt").write_text("one word " * number)
    subprocess.run([sys.executable, "sizes.py"], cwd=jobs.folder, check=True, timeout=60)
    assert rows_of(jobs.folder / "sizes.db", "SELECT id, result FROM items ORDER BY 1") == [
        (f"texts/{number}.txt", str(2 * number)) for number in range(5)
    ]


def test_the_plan_in_python_prints_the_output_on_the_page(tmp_path: Path) -> None:
    block = block_with("plan_batch")
    assert run_block(block, tmp_path) == "1 new, 1 done, 1 not in the input, 1 to run\n"


def test_every_command_runs(jobs: Jobs) -> None:
    (jobs.folder / "prices.py").write_text("async def fetch(url: str) -> int:\n    return len(url)\n")
    (jobs.folder / "urls.txt").write_text("https://a.example\n")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        program, *arguments = command.split()
        assert program == "asyncrunner"
        code, output = jobs.run(*arguments)
        assert code == 0, (command, output)
    jobs.until(lambda: jobs.query("SELECT count(*) FROM workers WHERE ended_at IS NULL") == [(0,)])
    assert jobs.query("SELECT status, count(*) FROM items") == [("completed", 1)]

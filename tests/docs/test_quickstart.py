"""docs/quickstart.md is executed, so that its code, commands and output stay true."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path

from tests.docs.test_readme import ROOT

TEXT = (ROOT / "docs" / "quickstart.md").read_text()
(SCRIPT,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
INSTALLING, RUNNING, KILLING, LOOKING, RETRYING = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
FIRST, RESUMED, RETRIED = re.findall(r"```\n(\d+ completed, .*\n)```", TEXT)
RAISING = '    if page == "page-13":\n        raise ValueError("no price on the page")\n'


def typed(block: str, folder: Path) -> str:
    """Return what a block of commands prints, typed in a shell in that folder."""
    python = f"{sys.executable} "
    block = re.sub(r"^python ", python, block, flags=re.MULTILINE)
    block = re.sub(r"^asyncrunner ", f"{python}-m asyncrunner ", block, flags=re.MULTILINE)
    process = subprocess.run(["bash", "-c", block], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def numbers(line: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", line)]


def test_every_step_prints_the_output_on_the_page(tmp_path: Path) -> None:
    assert INSTALLING == "pip install asyncrunner\n"
    script = tmp_path / "prices.py"
    script.write_text(SCRIPT)
    assert typed(RUNNING, tmp_path) == FIRST

    completed, skipped, failed = numbers(typed(KILLING, tmp_path))
    shown_completed, shown_skipped, shown_failed = numbers(RESUMED)
    assert (completed + skipped, failed) == (shown_completed + shown_skipped, shown_failed) == (199, 1)
    assert "together they are 199" in TEXT

    status = typed(LOOKING, tmp_path)
    assert "prices:fetch" in status
    assert "ValueError: no price on the page" in status

    (block,) = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
    connection = sqlite3.connect(tmp_path / "prices.db")
    by_status, failures = (connection.execute(query).fetchall() for query in block.split(";") if query.strip())
    connection.close()
    assert by_status == [("completed", 199), ("failed", 1)]
    assert failures == [("page-13", "ValueError: no price on the page", 2)]

    assert RAISING in SCRIPT
    script.write_text(SCRIPT.replace(RAISING, ""))
    assert typed(RETRYING, tmp_path).endswith(RETRIED)

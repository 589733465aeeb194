"""docs/guides/operations.md is executed: the run in one process, the commands in others, in the order of the page."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from docs.generate_cli import commands
from tests.docs.test_readme import ROOT
from tests.support.processes import Jobs

TEXT = (ROOT / "docs" / "guides" / "operations.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


def terminal(jobs: Jobs, line: str) -> str:
    """Return what a command prints, typed in a shell."""
    line = line.replace("asyncrunner", f"{sys.executable} -m asyncrunner").replace(" --watch", "")
    process = subprocess.run(
        ["bash", "-c", f"export ASYNCRUNNER_DB=prices.db; {line}"],
        cwd=jobs.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def program(jobs: Jobs, text: str) -> str:
    """Return what a Python program prints."""
    (jobs.folder / "look.py").write_text(text)
    process = subprocess.run(
        [sys.executable, "look.py"], cwd=jobs.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_page_works_from_beginning_to_end(jobs: Jobs) -> None:
    handler, from_python, bulk, history = PYTHON
    (start,), inspect, show, (retry_ids, *part, stuck), pause, backup, retry, rerun, clean_up = (
        block.splitlines() for block in SHELL
    )
    # The first run must not end before the commands that look at it: it waits at page 500 until it is paused.
    waits = "await asyncio.sleep(0.1)\n    while int(url[5:]) >= 500 and not pathlib.Path('go').exists():\n        await asyncio.sleep(0.1)"
    held_up = "import pathlib\n" + handler.replace("await asyncio.sleep(0.1)", waits)
    (jobs.folder / "prices.py").write_text(held_up)
    (jobs.folder / "urls.txt").write_text("".join(f"page-{number}\n" for number in range(2000)))
    jobs.db = jobs.folder / "prices.db"
    run = jobs.start(*start.split()[1:])
    jobs.until(lambda: jobs.db.exists() and jobs.query("SELECT 1 FROM items WHERE id = 'page-7' AND status = 'failed'"))

    status, failures = (terminal(jobs, line) for line in inspect[1:])
    assert "prices:fetch" in status
    assert re.search(r"[0-9a-f]{16}  page-7 .*KeyError: 'price'", failures)
    assert failures.splitlines()[0].split() == re.search(r"^ITEMS.*$", TEXT, re.MULTILINE)[0].split()  # type: ignore[index]
    assert 'return float(page["price"])' in terminal(jobs, show[0])

    assert re.fullmatch(r"prices:fetch: [1-9]\d* items? pending again\n", terminal(jobs, retry_ids))
    for line in part:
        terminal(jobs, line)
    assert '"id":"page-7"' in (jobs.folder / "broken.jsonl").read_text().splitlines()[0]
    assert (jobs.folder / "broken.csv").read_text().splitlines()[1] == "page-7,page-7,KeyError: 'price'"
    assert terminal(jobs, stuck.partition(" | ")[0]) == "", "nothing has been processing for an hour"

    assert terminal(jobs, pause[0]).startswith("paused")
    (jobs.folder / "go").touch()
    jobs.until(lambda: jobs.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(0,)])
    terminal(jobs, backup[0])
    assert (jobs.folder / "before-the-fix.db").exists()

    fixed = re.search(r"here: `(.*?)`", TEXT)
    assert fixed is not None
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130
    (jobs.folder / "prices.py").write_text(handler.replace('page["price"]', fixed[1]))
    run = jobs.start(*start.split()[1:])
    jobs.until(lambda: jobs.query("SELECT 1 FROM workers WHERE ended_at IS NULL"))
    assert "pending again" in terminal(jobs, retry[0])
    for line in retry[1:]:
        terminal(jobs, line)
    assert run.wait(60) == 0
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY status") == [("completed", 2000)]

    assert [terminal(jobs, line).split(": ")[1] for line in rerun] == ["2,000 items would run again\n", "2 items run again\n"]
    assert jobs.start(*start.split()[1:]).wait(60) == 0
    assert jobs.query("SELECT claim > 1, count(*) FROM items WHERE id IN ('page-17', 'page-18')") == [(1, 2)]

    outputs = [terminal(jobs, line) for line in clean_up]
    assert (jobs.folder / "prices.csv").read_text().count("\n") == 2001
    assert (jobs.folder / "still-failed.jsonl").read_text() == ""
    assert outputs[-1] == "no batch needs attention\n"
    assert program(jobs, from_python) == "0 KeyError: 'price'\n"
    found, *rows = program(jobs, bulk).splitlines()
    assert found.startswith("['page-799', 'page-798'")
    assert found.endswith(" of 2000")
    assert (len(rows), rows[0]) == (2000, "{'id': 'page-0', 'result': 12.5}")
    completed, failed = zip(*(line.split()[2:4] for line in program(jobs, history).splitlines()), strict=True)
    assert sum(map(int, completed)) == 2002, "two items ran again"
    assert sum(map(int, failed)) >= 1


def test_every_command_that_the_page_names_exists() -> None:
    existing = {name for name, _ in commands()}
    named = set(re.findall(r"`asyncrunner ([a-z]+(?: concurrency)?)", TEXT))
    assert named
    assert named <= existing
    assert (Path(ROOT) / "docs" / "reference" / "cli.md").exists()

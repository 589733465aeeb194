"""docs/guides/operations.md is lived through: the run in one terminal, the commands in another, in the order of the page."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from asyncrunner.cli.reference import commands
from tests.docs.test_readme import ROOT
from tests.processes import Jobs

TEXT = (ROOT / "docs" / "guides" / "operations.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


def terminal(jobs: Jobs, line: str) -> str:
    """What the command prints, typed in a shell."""
    line = line.replace("asyncrunner", f"{sys.executable} -m asyncrunner", 1).replace(" --watch", "")
    done = subprocess.run(
        ["bash", "-c", f"export ASYNCRUNNER_DB=prices.db; {line}"],
        cwd=jobs.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_is_lived_through(jobs: Jobs) -> None:
    handler, from_python = PYTHON
    (running,), looking, showing, pausing, keeping, mending, clearing = (block.splitlines() for block in SHELL)
    (jobs.folder / "prices.py").write_text(handler)
    (jobs.folder / "urls.txt").write_text("".join(f"page-{number}\n" for number in range(2000)))
    jobs.db = jobs.folder / "prices.db"
    run = jobs.start(*running.split()[1:])
    jobs.until(lambda: jobs.db.exists() and jobs.query("SELECT 1 FROM items WHERE id = 'page-7' AND status = 'failed'"))

    status, failures = (terminal(jobs, line) for line in looking[1:])
    assert "prices:fetch" in status
    assert re.search(r"[0-9a-f]{16}  page-7 .*KeyError: 'price'", failures)
    assert failures.splitlines()[0].split() == re.search(r"^ITEMS.*$", TEXT, re.MULTILINE)[0].split()  # type: ignore[index]
    assert 'return float(page["price"])' in terminal(jobs, showing[0])

    assert terminal(jobs, pausing[0]).startswith("paused")
    jobs.until(lambda: jobs.query("SELECT count(*) FROM items WHERE status = 'processing'") == [(0,)])
    terminal(jobs, keeping[0])
    assert (jobs.folder / "before-the-fix.db").exists()

    mended = re.search(r"here: `(.*?)`", TEXT)
    assert mended is not None
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130
    (jobs.folder / "prices.py").write_text(handler.replace('page["price"]', mended[1]))
    run = jobs.start(*running.split()[1:])
    jobs.until(lambda: jobs.query("SELECT 1 FROM workers WHERE ended_at IS NULL"))
    assert "pending again" in terminal(jobs, mending[0])
    for line in mending[1:]:
        terminal(jobs, line)
    assert run.wait(60) == 0
    assert jobs.query("SELECT status, count(*) FROM items GROUP BY status") == [("completed", 2000)]

    said = [terminal(jobs, line) for line in clearing]
    assert (jobs.folder / "prices.csv").read_text().count("\n") == 2001
    assert (jobs.folder / "still-failed.jsonl").read_text() == ""
    assert said[-1] == "nothing needs a person\n"
    (jobs.folder / "look.py").write_text(from_python)
    done = subprocess.run([sys.executable, "look.py"], cwd=jobs.folder, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "0 KeyError: 'price'\n"), done.stderr


def test_every_command_that_the_page_names_is_there() -> None:
    known = {name for name, _ in commands()}
    named = set(re.findall(r"`asyncrunner ([a-z]+(?: concurrency)?)", TEXT))
    assert named
    assert named <= known
    assert (Path(ROOT) / "docs" / "reference" / "cli.md").exists()

"""Attacks by a hostile file, a hostile item, or another user of the machine."""

from __future__ import annotations

import ast
import os
import pty
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import asyncrunner
from asyncrunner import run_batch
from asyncrunner.sqlite.locks import liveness_lock, lock_file, write_lock
from asyncrunner.sqlite.sql.schema import APPLICATION_ID
from tests.support.processes import Jobs

SOURCES = sorted(Path(asyncrunner.__file__).parent.rglob("*.py"))
PUBLIC_NAMES = Path(asyncrunner.__file__)  # it imports the modules of a table in its own code
EVIL = "\x1b]0;owned\x07\x1b[2J\u202eevil\r\n[bold]x"


async def same(item: str) -> str:
    return item


async def leaks(item: str) -> str:
    raise ValueError(f"{EVIL} GET https://me:hunter2@example.org/?token=s3cr3t Authorization: Bearer abc.def.ghi {item}")


def test_no_code_comes_from_data() -> None:
    """Check that there is no pickle, marshal, shelve, eval or exec, and that no module is imported by a name in the file.

    The command line imports by a name that the user gives, and by its table of commands; a child process by a name that its
    parent sends through a pipe.
    """
    imports_by_name = ("loader.py", "app.py", "process_handler.py", "handler_file.py", "importable.py")
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = [node.func.id]
            forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "eval", "exec", "__import__"}
            if path.name == "sent_error.py":
                forbidden -= {"pickle"}  # from a child of the same process, through its pipe; never from a file
            assert not forbidden & set(names), path
            if "importlib" in names:
                assert path.name in imports_by_name or path == PUBLIC_NAMES, path


def test_all_files_are_private_to_their_owner_with_every_umask(jobs: Jobs) -> None:
    under = ("sh", "-c", 'umask 0; exec "$@"', "sh")
    process = jobs.start("run", "h.py:forever", jobs.items(2), under=under)
    jobs.until(lambda: len(jobs.lines("start")) == 2)
    ours = [each for each in jobs.folder.rglob("*") if "asyncrunner.db" in str(each)]
    assert {each.stat().st_mode & 0o077 for each in ours} == {0}
    assert len([each for each in ours if each.is_file()]) >= 6, "database, log, index, and the locks"
    process.kill()
    process.wait()


@pytest.mark.parametrize("worker_id", ["../../precious", "/etc/passwd", "..", "", "next", "turn", "a/b", "x" * 300, "nul\0"])
def test_a_workers_id_from_the_file_is_no_path(worker_id: str, tmp_path: Path) -> None:
    database = tmp_path / "in" / "jobs.db"
    lock_file.locks_folder(database).mkdir(parents=True)
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    turnstile = write_lock.FairWriteLock(database)
    assert liveness_lock.is_held(database, worker_id) is None
    liveness_lock.forget(database, worker_id)
    with pytest.raises(ValueError, match="not a valid worker id"):
        liveness_lock.LivenessLock(database, worker_id)
    assert precious.read_text() == "keep me"
    with turnstile.pass_through():
        pass
    turnstile.close()


@pytest.mark.sqlite_file
async def test_a_hostile_database_runs_none_of_its_code_and_is_shown_escaped(jobs: Jobs) -> None:
    await run_batch(["a"], same, db=jobs.db, batch="b", progress=False)
    precious = jobs.folder / "precious"
    precious.touch()
    connection = sqlite3.connect(jobs.db)
    connection.execute("UPDATE batches SET name = ?, handler = 'os:system'", (EVIL,))
    connection.execute(
        "UPDATE items SET id = ?, payload = '{\"__reduce__\": [1]}', status = 'processing', worker_id = ?", (EVIL, EVIL)
    )
    connection.execute(
        "INSERT INTO workers (worker_id, host, pid, started_at, last_heartbeat) VALUES ('../../precious', ?, 1, ?, ?)",
        (EVIL, EVIL, EVIL),
    )
    connection.execute("CREATE VIEW evil AS SELECT load_extension('x')")
    connection.commit()
    connection.close()
    for command in (["status", "--stuck-after", "0"], ["status", "--json"], ["doctor"], ["doctor", "--fix"]):
        process = jobs.start(*command)
        out, error = process.communicate(timeout=60)
        assert process.returncode in (0, 1, 2), error
        assert "Traceback" not in error
        assert not set(out + error) & {"\x1b", "\x07", "\r", "\u202e"}, command
    code, said = jobs.run("run", "h.py:work", jobs.items(3), "--batch", "c")
    assert code == 0, said
    assert precious.exists()


@pytest.mark.parametrize("name", ["bomb", "huge"])
@pytest.mark.sqlite_file
def test_a_file_that_only_claims_to_be_ours_is_an_error_in_words(name: str, jobs: Jobs) -> None:
    connection = sqlite3.connect(jobs.db)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 3")
    if name == "huge":
        connection.execute("CREATE TABLE batches AS SELECT zeroblob(10000000) AS name")
    else:
        connection.execute("CREATE VIEW items AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n")
    connection.commit()
    connection.close()
    for command in (["status"], ["run", "h.py:work", jobs.items(1)]):
        code, said = jobs.run(*command)
        assert (code, "Traceback" in said) == (2, False), said
        assert len(said) < 3000


def test_no_control_sequence_reaches_a_terminal(jobs: Jobs) -> None:
    (jobs.folder / "evil.py").write_text(f"async def leaks(item: str) -> str:\n    raise ValueError({EVIL!r} + item)\n")
    (jobs.folder / "evil.txt").write_text("a\x1b[31mred\nb\u202eright\n")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "asyncrunner", "run", "evil.py:leaks", "evil.txt", "--max-attempts", "1"]
    process = subprocess.Popen(command, cwd=jobs.folder, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the error of Linux when the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait(60) == 1
    assert b"ValueError" in shown
    for evil in (b"\x1b]0;", b"\x07", b"\x1b[31m", b"\x1b[2J", "\u202e".encode()):
        assert evil not in shown


async def test_no_secret_of_an_error_is_in_the_file(jobs: Jobs) -> None:
    report = await run_batch(["a"], leaks, db=jobs.db, max_attempts=1, progress=False)
    assert report.failed == 1
    stored = str(jobs.query("SELECT * FROM items") + jobs.query("SELECT * FROM failures"))
    assert "example.org" in stored
    for secret in ("hunter2", "s3cr3t", "abc.def.ghi"):
        assert secret not in stored

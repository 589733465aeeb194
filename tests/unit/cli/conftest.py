"""The command line in this process, on a file with items in every state, and in separate processes."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from asyncrunner.cli import main
from tests.support.cli import HANDLERS
from tests.support.files import make_store
from tests.support.kinds import chosen_name


class Printed(NamedTuple):
    code: object
    out: str
    err: str

    @property
    def document(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.out)
        return found


Call = Callable[..., Printed]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    db = tmp_path_factory.mktemp("made") / "jobs.db"
    make_store(db)
    return db.read_bytes()


@pytest.fixture
def file(tmp_path: Path, made: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "jobs.db").write_bytes(made)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "jobs.db"


@pytest.fixture
def shop(db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Create a store with items in every state and return its location."""
    make_store(db)
    monkeypatch.chdir(tmp_path)
    return db


def name_remaining_threads(code: int) -> NoReturn:
    pytest.fail(f"the command would end the process immediately with {code} because threads remain: {threading.enumerate()}")


@pytest.fixture
def call(db: str, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """Call ``asyncrunner`` with *arguments* in this process; add a ``--db`` if there is none."""

    def called(*arguments: str, given: str = "", **environment: str) -> Printed:
        monkeypatch.setattr(sys, "argv", ["asyncrunner", *arguments])
        monkeypatch.setattr("asyncrunner.cli.program._exit_immediately", name_remaining_threads)  # which would end the tests
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        location = "jobs.db" if chosen_name() == "sqlite" else db
        for name, value in {"ASYNCRUNNER_DB": location, **environment}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        sys.stdout.flush()
        for name in environment:
            monkeypatch.delenv(name)
        out, err = capfdbinary.readouterr()
        return Printed(ended.value.code, out.decode(), err.decode())

    return called


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "h.py").write_text(HANDLERS)
    (tmp_path / "items.txt").write_text("one\ntwo\n\nthree\n")
    return tmp_path

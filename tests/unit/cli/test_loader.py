"""The file of a handler is loaded under its own name, unless another module has the name."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncrunner import ConfigurationError
from asyncrunner.cli.loader import load_handler
from asyncrunner.submission.naming import handler_name
from tests.support.processes import Jobs

SOURCE = """
from __future__ import annotations
import json
from dataclasses import dataclass
from beside import DOUBLE

@dataclass
class Price:
    amount: Amount

Amount = int

class TooLow(Exception): ...

def fetch(price: Price) -> int:
    if price.amount < 0:
        raise TooLow(json.dumps(price.amount))
    return price.amount * DOUBLE
"""


@pytest.fixture(autouse=True)
def _clean_up() -> Iterator[None]:
    modules, path = dict(sys.modules), list(sys.path)
    yield
    for name in sys.modules.keys() - modules.keys():
        del sys.modules[name]
    sys.path[:] = path


@pytest.mark.parametrize("stem", ["json", "types", "msgspec", "csv"])
def test_a_file_with_the_name_of_another_module_does_not_replace_it(stem: str, tmp_path: Path) -> None:
    before = sys.modules.get(stem)
    file = tmp_path / f"{stem}.py"
    file.write_text("def fetch(n: int) -> int:\n    return n\n")
    handler = load_handler(f"{file}:fetch")
    assert sys.modules.get(stem) is before
    assert sys.modules[handler.__module__].__file__ == str(file)
    assert handler_name(handler) == f"{stem}:fetch", "the name of the batch"
    assert sys.path[0] != str(tmp_path), "a later import of the other module must not find the file"


def test_a_file_with_a_free_name_has_it(tmp_path: Path) -> None:
    file = tmp_path / "a_free_name.py"
    file.write_text("def fetch(n: int) -> int:\n    return n\n")
    assert load_handler(f"{file}:fetch").__module__ == "a_free_name"


def test_a_file_that_fails_leaves_no_module(tmp_path: Path) -> None:
    file = tmp_path / "a_free_name.py"
    file.write_text("1 / 0")
    with pytest.raises(ConfigurationError, match="cannot be imported: ZeroDivisionError"):
        load_handler(f"{file}:fetch")
    assert "a_free_name" not in sys.modules


@pytest.mark.parametrize("stem", ["json", "msgspec", "prices"])
def test_a_child_process_finds_the_handler_of_a_file_whatever_its_name(stem: str, jobs: Jobs) -> None:
    folder = jobs.folder / "shop"
    folder.mkdir()
    (folder / f"{stem}.py").write_text(SOURCE)
    (folder / "beside.py").write_text("DOUBLE = 2")
    items = jobs.folder / "items.jsonl"
    items.write_text('{"amount": 4}\n{"amount": -1}\n')
    options = ("--run-in", "process", "--max-attempts", "1", "--quiet", "--json")
    process = jobs.start("run", f"shop/{stem}.py:fetch", str(items), *options)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 1, error
    report = json.loads(out)
    assert (report["batch"], report["completed"]) == (f"{stem}:fetch", 1), report
    assert jobs.query("SELECT result FROM items WHERE status = 'completed'") == [("8",)]
    assert jobs.query("SELECT error_type, message FROM failures") == [(f"{stem}.TooLow", "-1")]

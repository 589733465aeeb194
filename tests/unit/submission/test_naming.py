"""The default name of a batch is the name of its handler."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import ConfigurationError, run_batch
from asyncrunner.submission.naming import default_batch, handler_name


async def handler(number: int) -> None: ...


class Called:
    def __call__(self, item: int) -> None: ...

    def method(self, item: int) -> None: ...

    @classmethod
    def of_class(cls, item: int) -> None: ...

    @staticmethod
    def static(item: int) -> None: ...


class Derived(Called): ...


def repeated(function: Callable[..., Any], times: int = 2) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(item: int) -> object:
        return [function(item) for _ in range(times)]

    return wrapper


@repeated
def decorated(item: int) -> None: ...


def made(times: int) -> Callable[[int], int]:
    def work(item: int) -> int:
        return item * times

    return work


def made_with_default(times: int) -> Callable[[int], int]:
    def work(item: int, times: int = times) -> int:
        return item * times

    return work


def made_alike() -> Callable[[int], int]:
    def work(item: int) -> int:
        return item

    return work


MODULE = "tests.unit.submission.test_naming"


def test_a_handler_names_its_batch() -> None:
    assert handler_name(handler) == "tests.unit.submission.test_naming:handler"
    assert handler_name(partial(partial(handler))) == "tests.unit.submission.test_naming:handler"
    assert handler_name(Called()) == "tests.unit.submission.test_naming:Called"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (handler, f"{MODULE}:handler"),
        (decorated, f"{MODULE}:decorated"),
        (Called.of_class, f"{MODULE}:Called.of_class"),
        (Called.static, f"{MODULE}:Called.static"),
        (Called, f"{MODULE}:Called"),
        (made_alike(), f"{MODULE}:made_alike.<locals>.work"),
        (math.sqrt, "math:sqrt"),
    ],
    ids=["function", "decorated", "class method", "static method", "class", "local function", "builtin"],
)
def test_a_handler_that_its_name_identifies_has_a_default_batch(function: Callable[..., Any], name: str) -> None:
    assert default_batch(function) == name


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda item: item, "a lambda"),
        (partial(handler), "a functools.partial"),
        (Called(), "a callable instance"),
        (Called().method, "a bound method"),
        (Derived.of_class, "a bound method"),
        ("a".startswith, "a bound method"),
        (made(2), "a local function"),
        (made_with_default(2), "a local function"),
        (repeated(made_alike()), "a local function"),
        (repeated(handler), "a wrapper"),
    ],
    ids=[
        "lambda",
        "partial",
        "instance",
        "method",
        "inherited class method",
        "builtin method",
        "closure",
        "defaults",
        "wrapped closure",
        "wrapper",
    ],
)
def test_handlers_that_differ_in_what_they_are_bound_to_need_a_batch(function: Callable[..., Any], kind: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{kind}.*name the batch, as in .*batch='prices'"):
        default_batch(function)


async def test_two_partials_do_not_share_their_results(db: str) -> None:
    def scaled(item: int, factor: int) -> int:
        return item * factor

    with pytest.raises(ConfigurationError, match="name the batch"):
        await run_batch([1], partial(scaled, factor=2), db=db)
    for factor in (2, 3):
        report = await run_batch([1], partial(scaled, factor=factor), db=db, batch=f"times {factor}")
        assert [outcome.result async for outcome in report.outcomes()] == [factor]


SHOP = """
from asyncrunner.submission.naming import default_batch

def fetch(item: int) -> int:
    return item

if __name__ == "__main__":
    print(default_batch(fetch))
"""

CLI = """
import sys
from asyncrunner.cli.loader import load_handler
from asyncrunner.submission.naming import default_batch
print(default_batch(load_handler(sys.argv[1])))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "shop.prices"],
        ["shop/prices.py"],
        ["-c", CLI, "shop.prices:fetch"],
        ["-c", CLI, "shop/prices.py:fetch"],
        ["-c", "from shop import prices; print(prices.default_batch(prices.fetch))"],
    ],
    ids=["python -m", "script", "module", "file", "imported"],
)
def test_a_module_of_a_package_has_one_batch_however_it_runs(arguments: list[str], tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "__init__.py").touch()
    (shop / "prices.py").write_text(SHOP)
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("shop.prices:fetch\n", "")

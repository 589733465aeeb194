"""docs/reference/options.md names every option, where it is accepted, and its default."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_args, get_type_hints

import pytest

from asyncrunner import FailureShare, Handler, RetryPolicy, Runner, plan_batch, run_batch, stream_batch
from asyncrunner.domain.http_errors import is_throttled
from tests.docs.test_readme import ROOT
from tests.support.options import run_defaults

TEXT = (ROOT / "docs" / "reference" / "options.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]


def defaults(heading: str) -> dict[str, Any]:
    """Return the options of a table with their defaults as values."""
    names = {"RetryPolicy": RetryPolicy, "required": MISSING, "is_throttled": is_throttled}
    return {name.strip("`"): eval(default.strip("`"), names) for name, default, *_ in rows(heading)}


def defaults_of(kind: type) -> dict[str, Any]:
    return {field.name: field.default if field.default_factory is MISSING else field.default_factory() for field in fields(kind)}


def keywords(function: Callable[..., Any]) -> set[str]:
    """Return the names that a function with ``**options: Unpack[...]`` accepts."""
    (options,) = get_args(get_type_hints(function)["options"])
    return set(options.__annotations__)


def test_every_option_of_a_run_has_a_row_with_its_default() -> None:
    assert defaults("Options of runs, runners and handlers") == run_defaults()


@pytest.mark.parametrize(
    ("owner", "accepted"),
    [
        ("batch", keywords(run_batch)),
        ("batch", keywords(stream_batch)),
        ("batch", keywords(plan_batch)),
        ("runner", set(inspect.signature(Runner).parameters) - {"clock", "store"}),  # these two serve tests
        ("handler", keywords(Runner.handler)),
    ],
)
def test_the_page_lists_where_each_option_is_accepted(owner: str, accepted: set[str]) -> None:
    table = rows("Options of runs, runners and handlers")
    assert {name.strip("`") for name, _, _, accepted_by, _ in table if owner in accepted_by.split(", ")} == accepted


def test_a_runner_has_the_defaults_of_the_table() -> None:
    shown = defaults("Options of runs, runners and handlers")
    for parameter in inspect.signature(Runner).parameters.values():
        if parameter.name in shown:
            assert parameter.default == shown[parameter.name], parameter.name


def test_every_option_of_submit_has_a_row() -> None:
    assert set(defaults("Options of submit")) == keywords(Handler.submit)
    assert set(defaults("Options of submit")) - {"key"} == keywords(Handler.submit_many)


@pytest.mark.parametrize("kind", [RetryPolicy, FailureShare])
def test_every_field_of_a_policy_has_a_row_with_its_default(kind: type) -> None:
    assert defaults(kind.__name__) == defaults_of(kind)


def test_every_row_has_a_unit_and_a_meaning() -> None:
    for line in TEXT.splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in line.strip("|").split(" | ")), line

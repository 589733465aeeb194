"""Options that do not fit the file or the clock are refused at construction."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import ConfigurationError, RetryPolicy, run_batch
from asyncrunner.domain.options import NO_LIMIT, HandlerKeywords, HandlerOptions, RunKeywords, RunnerOptions, RunOptions
from tests.support.options import run_defaults


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("db", None, "give the path"), ("db", b"x", "give the path"), ("batch", "a\0", "without NUL"), ("batch", "\ud800", "surrogates"),
        ("max_attempts", 2**63, "at most"), ("concurrency", 10**5000, "at most"), ("retry_failed", "false", "True or False"),
        ("timeout", float("nan"), "seconds"),
    ],
    ids=lambda value: str(value)[:10] if not isinstance(value, int) else "number",
)  # fmt: skip
def test_an_option_whose_value_cannot_be_stored_or_waited_for_is_refused(option: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        RunOptions.of("run_batch", {option: value})  # type: ignore[misc]


def test_each_keyword_of_a_call_is_one_field_of_the_options_of_a_runner_a_handler_or_a_run() -> None:
    of_handler, of_runner, of_run = ({each.name for each in fields(kind)} for kind in (HandlerOptions, RunnerOptions, RunOptions))
    assert set(HandlerKeywords.__annotations__) == of_handler
    assert set(RunKeywords.__annotations__) == of_handler | of_runner | (of_run - {"handler", "runner"})
    assert of_handler & of_runner == {"concurrency"}


def test_the_concurrency_of_a_run_is_that_of_its_runner() -> None:
    options = RunOptions.of("run_batch", {"concurrency": 7, "max_attempts": 5, "db": Path("a") / "b.db"})
    assert options.runner == RunnerOptions(concurrency=7, db="a/b.db")
    assert options.handler == HandlerOptions(max_attempts=5)
    assert options.handler.concurrency == NO_LIMIT


@pytest.mark.parametrize("name", ["runner", "handler"])
def test_the_parts_of_the_options_are_no_keywords(name: Any) -> None:
    with pytest.raises(TypeError, match=f"unexpected option '{name}'"):
        RunOptions.of("run_batch", {name: None})  # type: ignore[misc]


def test_an_option_of_a_runner_is_refused_for_a_handler() -> None:
    with pytest.raises(TypeError, match="retention is an option of the runner or of run_batch, not of a handler"):
        HandlerOptions.of({"retention": 5})  # type: ignore[typeddict-unknown-key]


def test_the_docstring_gives_the_defaults_of_the_options() -> None:
    defaults = run_defaults()
    shown = re.findall(r"::\n\n(.*?)\n\n", inspect.getdoc(run_batch) or "", re.DOTALL)[0]
    found = dict(re.findall(r"(\w+)=([^,\n]+)", shown))
    assert set(found) == set(defaults)
    for name, text in found.items():
        assert eval(text, {"RetryPolicy": RetryPolicy}) == defaults[name], name


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("db", "", "db is empty"), ("batch", "", "1 to 200 characters"), ("batch", 5, "1 to 200 characters"), ("key", "", "name of a field"),
        ("key", 3, "name of a field"), ("concurrency", 0, "at least 1"), ("concurrency", True, "at least 1"), ("max_attempts", 1.5, "at least 1"),
        ("max_failures", 0, "at least 1"), ("timeout", 0, "more than 0"), ("timeout", "1", "seconds"), ("stale_after", None, "seconds"),
        ("shutdown_timeout", -1, "0 or more"), ("retry", 3, "give a RetryPolicy"), ("on_change", "x", "'error', 'keep', 'rerun'"),
        ("durability", "x", "'full', 'normal'"), ("timeout", float("inf"), "seconds"),
    ],
)  # fmt: skip
def test_the_error_about_a_wrong_option_names_a_right_value(option: Any, value: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        RunOptions.of("run_batch", {option: value})  # type: ignore[misc]


def test_an_option_that_resembles_none_lists_them_all() -> None:
    with pytest.raises(TypeError, match="the options are batch, key, concurrency"):
        RunOptions.of("run_batch", {"xyz": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize("value", [0, -5, "soon", datetime(2030, 1, 1), float("inf")])  # noqa: DTZ001
def test_meaningless_deadlines_are_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="deadline="):
        HandlerOptions(deadline=value)

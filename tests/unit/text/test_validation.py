"""Every check returns a valid value; its error names the argument, the value, and a valid form."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncrunner import ConfigurationError
from asyncrunner.text import validation as check

INF = float("inf")

NAN = float("nan")

MOMENT = datetime(2026, 11, 26, tzinfo=UTC)

positive = partial(check.checked_seconds, zero=False)

moment = partial(check.checked_moment, instead="seconds")

past = partial(check.checked_past, now=MOMENT.timestamp())

choice = partial(check.checked_choice, choices=("full", "none"))

match = partial(check.checked_error_match, owner="RetryPolicy")

factor = partial(check.checked_number, at_least=1, owner="RetryPolicy")


def predicate(error: BaseException) -> bool:
    return bool(error)


@pytest.mark.parametrize(
    ("checked", "values"),
    [
        (check.checked_count, [1, 2_000_000_000]),
        (partial(check.checked_count, at_least=0), [0]),
        (check.checked_seconds, [0, 0.5, 10**400]),
        (positive, [1, 1e-9]),
        (factor, [1, 1.5]),
        (moment, [MOMENT]),
        (check.checked_text, ["", "a", "ä\n"]),
        (check.checked_name, ["a", "n" * 200]),
        (check.checked_pattern, ["a*b", "*a"]),
        (choice, ["full", "none"]),
        (check.checked_flag, [True, False]),
        (match, [ValueError, (ValueError, OSError), (), predicate]),
    ],
)
def test_a_valid_value_is_returned(checked: Callable[..., Any], values: list[Any]) -> None:
    assert [checked("name", value) for value in values] == values


@pytest.mark.parametrize(
    ("checked", "value", "message"),
    [
        (check.checked_count, 0, "name=0: give a whole number of at least 1"),
        (check.checked_count, True, "name=True: give a whole number of at least 1"),
        (check.checked_count, 1.0, "name=1.0: give a whole number of at least 1"),
        (check.checked_count, 2_000_000_001, "name=2000000001: give at most 2,000,000,000"),
        (check.checked_count, 10**5000, "name=(too long to show): give at most 2,000,000,000"),
        (partial(check.checked_count, at_most=9), 10, "name=10: give at most 9"),
        (check.checked_seconds, -1, "name=-1: give seconds, 0 or more"),
        (check.checked_seconds, NAN, "name=nan: give seconds, 0 or more"),
        (check.checked_seconds, INF, "name=inf: give seconds, 0 or more"),
        (check.checked_seconds, "1", "name='1': give seconds, 0 or more"),
        (partial(check.checked_seconds, instead=", or None"), False, "name=False: give seconds, 0 or more, or None"),
        (positive, 0, "name=0: give seconds, more than 0"),
        (factor, 0.5, "RetryPolicy(name=0.5): give a number of at least 1"),
        (moment, 5, "name=5: give a datetime with a time zone, or seconds"),
        (moment, datetime(2030, 1, 1), "has no time zone, so it is ambiguous"),  # noqa: DTZ001
        (past, 5, "name=5: give a datetime with a time zone, or a timedelta"),
        (past, datetime(2030, 1, 1, tzinfo=UTC), "is in the future; give a moment in the past"),
        (past, timedelta(seconds=-1), "name=-1.0: give seconds, 0 or more"),
        (check.checked_text, 5, "name=5 is not valid UTF-8 text"),
        (check.checked_text, "a\0", r"name='a\x00' is not valid UTF-8 text"),
        (check.checked_text, "\udcff", r"name='\udcff' is not valid UTF-8 text"),
        (check.checked_name, "", "name='': give a name of 1 to 200 characters"),
        (check.checked_name, "n" * 201, "give a name of 1 to 200 characters"),
        (check.checked_name, "a\0", "give a name without NUL and lone surrogates"),
        (check.checked_pattern, "**", "name='**' would match everything"),
        (check.checked_pattern, "", "name='' would match everything"),
        (check.checked_pattern, "a" * 1001, "give at most 1,000 characters of the error"),
        (check.checked_path, None, "name=None: give the path of a file"),
        (check.checked_path, b"x", "name=b'x': give the path of a file"),
        (check.checked_path, "", "name is empty; give the path of a file"),
        (
            lambda _, value: check.checked_path("db", value),
            "",
            "db is empty; give the path of a file, or the URL of a PostgreSQL server",
        ),
        (choice, "ful", "name='ful': give one of 'full', 'none'; did you mean 'full'?"),
        (choice, ["full"], "name=['full']: give one of 'full', 'none'"),
        (check.checked_flag, 1, "name=1: give True or False"),
        (check.checked_ids, "abc", "name='abc': give a list, as in ['abc']"),
        (check.checked_ids, 5, "name=5: give a list, as in [5]"),
        (check.checked_ids, ["a", 5], "name=5 is not valid UTF-8 text"),
        (check.checked_items, "abc", "name() takes a list or another iterable of items, not str"),
        (match, 3, "RetryPolicy(name=3): give an exception type, a tuple of them, or a function of the error"),
        (match, int, "give an exception type"),
        (match, (ValueError, 3), "give an exception type"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_the_error_about_an_invalid_value_names_a_valid_one(checked: Callable[..., Any], value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        checked("name", value)
    assert message in str(error.value)


def test_an_option_of_the_command_line_is_named_as_it_is_typed() -> None:
    with pytest.raises(ConfigurationError, match=r"^--wait -1: give seconds, 0 or more$"):
        check.checked_seconds("--wait", -1)
    with pytest.raises(ConfigurationError, match=r"^--format 'xml': give one of txt, jsonl$"):
        check.checked_choice("--format", "xml", ("txt", "jsonl"))


def test_a_long_value_is_shortened_and_its_control_characters_are_escaped() -> None:
    assert len(check.argument("batch", "x" * 10_000)) < 220
    assert check.argument("batch", "\x1b[31m") == r"batch='\x1b[31m'"


def test_paths_become_text_and_ids_lose_duplicates() -> None:
    assert check.checked_path("db", Path("a") / "jobs.db") == "a/jobs.db"
    assert check.checked_ids("ids", ("b", "a", "b")) == ["b", "a"]


def test_a_past_moment_is_in_seconds_since_the_epoch() -> None:
    now = MOMENT.timestamp()
    assert check.checked_past("before", timedelta(days=1), now) == now - 86400
    assert check.checked_past("before", MOMENT, now) == now
    assert check.checked_past("before", timedelta(days=100_000), now) == 0.0


@pytest.mark.parametrize(
    ("priority", "fits"),
    [(0, True), (-(2**31) + 1, True), (2**31 - 1, True), (2**31, False), (-(2**31), False), (1.5, False), (True, False)],
)
def test_a_priority_fits_its_column(priority: Any, fits: bool) -> None:
    if fits:
        assert check.checked_priority(priority) == priority
    else:
        with pytest.raises(ConfigurationError, match=r"^priority=.*: give a whole number within"):
            check.checked_priority(priority)

"""The small values: states, errors, texts, times, options, events, names."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import inspect
import re
import sqlite3
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncrunner
from asyncrunner import ConfigurationError, RetryPolicy, run_batch
from asyncrunner.batch.progress import rate_text
from asyncrunner.domain.item import MOVES, TERMINAL, Claim, Counts, Status
from asyncrunner.domain.options import RunOptions, Settings
from asyncrunner.domain.outcome import Completed, Settlement
from asyncrunner.events import Accepted, Events, Started
from asyncrunner.serialization.error_info import describe
from asyncrunner.sqlite.sql.schema import MIGRATIONS
from asyncrunner.submission.naming import default_batch, handler_name
from asyncrunner.text.durations import duration_text
from asyncrunner.text.escaping import safe_text
from asyncrunner.text.timestamps import from_text, to_text
from asyncrunner.worker.prefetch import Prefetch

# --- states ---------------------------------------------------------------------------------------------------------


def test_every_state_has_its_moves_and_none_leads_nowhere() -> None:
    assert set(MOVES) == set(Status)
    assert {status for moves in MOVES.values() for status in moves} <= set(Status)
    assert all(MOVES[status] == {Status.PENDING} for status in TERMINAL)
    assert MOVES[Status.PENDING] & TERMINAL == {Status.CANCELLED}


def test_the_schema_knows_the_same_states() -> None:
    (found,) = re.findall(r"status IN \(([^)]*)\)", MIGRATIONS[0])
    assert [each.strip(" '") for each in found.split(",")] == [status.value for status in Status]


def test_counts_add_up() -> None:
    counts = Counts(pending=5, waiting=2, processing=1, completed=7, failed=3, cancelled=4)
    assert (counts.total, counts.unfinished) == (20, 6)


def test_a_duration_is_never_negative() -> None:
    claim = Claim(1, 1, "k", "1", 1, 1, 0)
    assert Settlement(claim, Completed("1"), 10.0, 5.0).seconds == 0


# --- times ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_is_kept_to_the_millisecond(milliseconds: int) -> None:
    text = to_text((milliseconds + 0.5) / 1000)
    found = from_text(text)
    assert found is not None
    assert round(found * 1000) == milliseconds
    assert len(text) == 23


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_texts_sort_like_times(one: float, other: float) -> None:
    if one <= other:
        assert to_text(one) <= to_text(other)


def test_sqlite_reads_our_times_and_we_read_its_own() -> None:
    connection = sqlite3.connect(":memory:")
    assert connection.execute("SELECT datetime(?, '-5 minutes')", (to_text(1_800_000_000.5),)).fetchone() == (
        "2027-01-15 07:55:00",
    )
    (now,) = connection.execute("SELECT datetime('now')").fetchone()
    assert from_text(now) is not None
    connection.close()


@pytest.mark.parametrize("text", [None, "", "tomorrow", "2026-13-45", "9" * 50])
def test_what_is_no_time_is_none(text: str | None) -> None:
    assert from_text(text) is None


# --- errors ---------------------------------------------------------------------------------------------------------


def raised(error: BaseException) -> BaseException:
    try:
        secret_local = "hunter2"
        raise error
    except BaseException as caught:
        assert secret_local
        return caught


def test_an_error_is_described_by_type_message_and_frames_without_locals() -> None:
    info = describe(raised(ValueError("bad number 7")))
    assert (info.type, info.message) == ("ValueError", "bad number 7")
    assert "in raised" in info.traceback
    assert "hunter2" not in info.traceback.replace('secret_local = "hunter2"', "")


def test_errors_of_one_cause_have_one_fingerprint_and_others_have_another() -> None:
    def mark(message: str, kind: type[Exception] = ValueError) -> str:
        return describe(raised(kind(message))).fingerprint

    assert mark("item 1 at 0x7f01 of 'a'") == mark("item 22 at 0x8802 of 'b'")
    assert len({mark("one thing"), mark("another thing"), mark("one thing", KeyError)}) == 3


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [
        Mute(),
        ValueError("\ud800\0" * 5000),
        ExceptionGroup("g", [ValueError(str(n)) for n in range(100)]),
        RecursionError("deep"),
        ValueError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_describing_never_fails_and_is_bounded_and_storable(error: Exception) -> None:
    info = describe(raised(error))
    assert len(info.message) <= 2000
    assert len(info.traceback) <= 16_384
    assert "\0" not in info.message + info.traceback
    assert (info.message + info.traceback).encode()


def test_secrets_in_messages_are_not_kept() -> None:
    error = ValueError("GET https://me:hunter2@host/x?token=hunter3&a=1 Authorization: Bearer hunter4 password='hunter5'")
    info = describe(raised(error))
    assert "hunter" not in info.message
    assert "hunter2@" not in info.traceback
    assert "https://" in info.message
    assert "a=1" in info.message


# --- texts ----------------------------------------------------------------------------------------------------------


@given(st.text(), st.integers(10, 300))
def test_a_safe_text_has_nothing_that_a_terminal_obeys(text: str, limit: int) -> None:
    shown = safe_text(text, limit=limit)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 or character in "\u202e\u2028" for character in shown)
    shown.encode()


def test_a_long_text_loses_its_middle() -> None:
    shown = safe_text("a" * 100 + "b" * 100, limit=50)
    assert (len(shown), shown[:10], shown[-10:]) == (50, "a" * 10, "b" * 10)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.05, "50.0 ms"),
        (2.54, "2.5 s"),
        (42, "42 s"),
        (250, "4 min 10 s"),
        (11_100, "3 h 05 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_are_in_units_people_use(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(0, "0.0/s"), (1204, "1,204/s"), (2.5, "2.5/s"), (0.05, "3.0/min")])
def test_rates_too(rate: float, text: str) -> None:
    assert rate_text(rate) == text


# --- options --------------------------------------------------------------------------------------------------------


def test_the_options_of_a_call_are_those_of_the_settings() -> None:
    assert set(RunOptions.__annotations__) == set(Settings.__slots__)


def test_the_docstring_gives_the_defaults_of_the_settings() -> None:
    defaults = Settings()
    (shown,) = re.findall(r"::\n\n(.*?)\n\n", inspect.getdoc(run_batch) or "", re.DOTALL)
    found = dict(re.findall(r"(\w+)=([^,\n]+)", shown))
    assert set(found) == set(Settings.__slots__)
    for name, text in found.items():
        assert eval(text, {"RetryPolicy": RetryPolicy}) == getattr(defaults, name), name


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
def test_an_option_that_cannot_work_says_what_to_give(option: Any, value: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Settings(**{option: value})


def test_an_option_that_is_like_none_lists_them_all() -> None:
    with pytest.raises(TypeError, match="the options are db, batch, key"):
        Settings.of("run_batch", {"xyz": 1})  # type: ignore[typeddict-unknown-key]


# --- events, names, pace --------------------------------------------------------------------------------------------


def test_an_observer_that_raises_is_logged_and_the_others_hear_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    seen: list[Accepted] = []
    stop = events.on(Accepted, lambda _: 1 / 0)
    events.on(Accepted, seen.append)
    events.publish(Accepted("b", 2, 3))
    assert seen == [Accepted("b", 2, 3)]
    assert "an observer of Accepted failed" in caplog.text
    stop()
    stop()
    events.publish(Accepted("b", 2, 3))
    assert caplog.text.count("failed") == 1
    assert (len(events.observers_of(Accepted)), len(events.observers_of(Started))) == (1, 0)


class Called:
    def __call__(self, item: int) -> None: ...


def test_a_handler_names_its_batch() -> None:
    assert handler_name(raised) == "tests.unit.test_values:raised"
    assert handler_name(partial(partial(raised))) == "tests.unit.test_values:raised"
    assert handler_name(Called()) == "tests.unit.test_values:Called"
    with pytest.raises(ConfigurationError, match="lambda"):
        default_batch(lambda item: item)


@given(st.integers(1, 20_000), st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=20))
def test_the_pace_is_bounded_and_slow_work_is_never_claimed_ahead(limit: int, seen: list[tuple[float, float]]) -> None:
    pace = Prefetch(limit)
    assert pace.ahead() == 0
    for turn, item in seen:
        pace.turn_took(turn)
        pace.items_took(item, 1)
    assert 0 <= pace.ahead() <= 2 * Prefetch.MOST
    for _ in range(100):
        pace.items_took(20.0, 1)
    pace.is_slow()
    assert pace.ahead() == 0


def test_fast_work_is_claimed_ahead() -> None:
    pace = Prefetch(100)
    for _ in range(10):
        pace.turn_took(0.01)
        pace.items_took(0.0, 1)
    assert pace.ahead() >= 500


# --- the package ----------------------------------------------------------------------------------------------------


def test_every_public_name_is_there_sorted_and_documented() -> None:
    assert asyncrunner.__all__ == sorted(asyncrunner.__all__)
    assert [name for name in asyncrunner.__all__ if not (getattr(asyncrunner, name).__doc__ or "").strip()] == []


def test_the_package_is_typed_and_its_licence_is_named() -> None:
    assert importlib.resources.files("asyncrunner").joinpath("py.typed").is_file()
    assert importlib.metadata.metadata("asyncrunner")["License-Expression"] == "MIT"


def test_importing_it_does_not_import_what_only_the_command_line_needs() -> None:
    code = "import asyncrunner, sys; print([name for name in ('rich', 'typer', 'asyncrunner.cli') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

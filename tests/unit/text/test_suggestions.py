"""The error about a mistyped name suggests the closest one, in one wording."""

from __future__ import annotations

import pytest

from asyncrunner import BatchNotFound
from asyncrunner.text.suggestions import closest, did_you_mean, no_such_batch, unexpected_option, variants


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("shpo", ["shop", "other"], "did you mean 'shop'?"),
        ("price", ["prices", "prize"], "did you mean 'prices' or 'prize'?"),
        ("xyz", ["shop", "other"], "known: 'shop', 'other'"),
        ("xyz", list("abcdef"), "known: 'a', 'b', 'c', 'd', 'e', ..."),
        ("xyz", [], "there are none yet"),
        ("x" * 1001, ["x" * 1000], f"known: '{'x' * 52}...{'x' * 25}'"),
        ("esc", ["esc\x1b"], r"did you mean 'esc\\x1b'?"),
    ],
)
def test_the_hint_names_close_or_known_names(name: str, known: list[str], hint: str) -> None:
    assert did_you_mean(name, known) == hint


def test_the_closest_name_is_found() -> None:
    assert closest("timeot", ["retry", "timeout"]) == "timeout"
    assert closest("xyz", ["retry", "timeout"]) is None


def test_a_batch_that_does_not_exist_is_reported_in_one_wording() -> None:
    assert str(no_such_batch("jobs.db", "mail", ["mails"])) == "jobs.db has no batch 'mail'; did you mean 'mails'?"
    assert str(no_such_batch("jobs.db", "x", [])) == "jobs.db has no batch 'x'; there are none yet"
    assert str(no_such_batch("jobs.db", "mail", ["mails"], advice="Do so.")).endswith("did you mean 'mails'? Do so.")
    assert str(no_such_batch("jobs.db", "x", ["mails"], advice="Do so.")).endswith("known: 'mails'. Do so.")
    assert isinstance(no_such_batch("jobs.db", "x", []), BatchNotFound)


def test_an_unexpected_option_is_reported_with_the_closest_or_with_all() -> None:
    assert str(unexpected_option("submit", "dealy", ["delay", "key"])) == (
        "submit() got an unexpected option 'dealy'; did you mean 'delay'?"
    )
    assert str(unexpected_option("submit", "xyz", ["delay", "key"])).endswith("'xyz'; the options are delay, key")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("page-07", "page-7"), ("Page-7", "page-7"), ("page_7", "page-7"), (" page-7", "page-7"), ("pag-7", "page-7"), ("paeg-7", "page-7")],
)  # fmt: skip
def test_likely_typing_errors_are_undone(typed: str, meant: str) -> None:
    assert meant in variants(typed)
    assert typed not in variants(typed)

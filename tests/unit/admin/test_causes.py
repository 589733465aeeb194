"""Causes of one type and place share a row if a batch has many; what is omitted is counted."""

from __future__ import annotations

import pytest

from asyncrunner.admin.inspection.causes import failure_causes, pattern_of, place_in
from asyncrunner.store.snapshot import CausePage, CauseRow, FailureCause

TRACE = """Traceback (most recent call last):
  File "/srv/app/shop.py", line 12, in fetch
    parse(page)
  File "/srv/venv/lib/python3.11/site-packages/lxml/html.py", line 700, in parse
    raise ParserError
ValueError: token abc"""


def row(number: int, error: str, *, items: int = 1, attempts: int = 2, trace: str = TRACE) -> CauseRow:
    return CauseRow(
        f"f{number}", items, attempts, f"2026-11-26 10:00:{number:02d}.000", f"2026-11-26 11:00:{number:02d}.000", f"k{number}",
        error, trace,
    )  # fmt: skip


def test_few_causes_are_a_row_each() -> None:
    rows = [row(1, "ValueError: token abc"), row(2, "ValueError: token xyz")]
    causes = failure_causes([("b", CausePage(rows, 2, 2))], 2)
    assert [(cause.fingerprint, cause.causes) for cause in causes] == [("f1", 1), ("f2", 1)]
    assert (causes.more_causes, causes.more_items) == (0, 0)


def test_many_causes_of_one_type_and_place_are_one_row_whose_error_is_a_pattern() -> None:
    elsewhere = TRACE.replace("line 12", "line 13")
    rows = [
        row(1, "ValueError: token abc of page", items=5),
        row(2, "ValueError: token xyz of page", items=3, attempts=4),
        row(3, "ValueError: token xyz of page", items=9, trace=elsewhere),
        row(4, "KeyError: 'price'"),
    ]
    causes = failure_causes([("b", CausePage(rows, 4, 18))], 3)
    assert list(causes) == [
        FailureCause("b", "f3", 9, 2, rows[2].first_seen, rows[2].last_seen, "k3", "ValueError: token xyz of page"),
        FailureCause("b", None, 8, 6, rows[0].first_seen, rows[1].last_seen, "k1", "ValueError: token * of page", 2),
        FailureCause("b", "f4", 1, 2, rows[3].first_seen, rows[3].last_seen, "k4", "KeyError: 'price'"),
    ]
    assert (causes.more_causes, causes.more_items) == (0, 0)


def test_the_causes_that_are_omitted_are_counted_with_their_items_in_all_batches() -> None:
    pages = [
        ("a", CausePage([row(1, "A: x", items=5), row(2, "B: x", items=3)], 90, 110)),
        ("b", CausePage([row(3, "C: x", items=7)], 1, 7)),
    ]
    causes = failure_causes(pages, 1)
    assert [cause.fingerprint for cause in causes] == ["f3", "f1"]
    assert (causes.more_causes, causes.more_items) == (89, 105)


@pytest.mark.parametrize(
    ("errors", "pattern"),
    [
        (["E: a", "E: a"], "E: a"),
        (["E: token abc", "E: token abd"], "E: token *"),
        (["E: no 12 of 7", "E: no 13 of 7"], "E: no * of 7"),
        (["E: row 12x", "E: row 99x"], "E: row *"),
        (["E: ended", "E: ended early"], "E: ended*"),
        (["E", "E: x"], "E*"),
        (["aa", "aaa"], "*"),
        (["x y", "x z y"], "x *y"),
    ],
)
def test_a_pattern_has_the_whole_words_that_all_errors_share(errors: list[str], pattern: str) -> None:
    assert pattern_of(errors) == pattern


def test_the_place_is_the_innermost_frame_that_is_not_in_a_library() -> None:
    assert place_in(TRACE) == "/srv/app/shop.py:12"
    assert place_in("") == ""
    assert place_in('  File "<frozen x>", line 3, in f\n') == "<frozen x>:3"

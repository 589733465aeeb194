"""Join the causes of failure that have the same type of error and the same place, if a batch has many causes. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from asyncrunner.admin.read_models import FailureCauses
from asyncrunner.store.snapshot import CausePage, CauseRow, FailureCause

MAX_JOINED: Final = 1000
"""The number of most frequent causes of a batch that may be joined."""

_FRAME: Final = re.compile(r'^  File "([^"\n]+)", line (\d+), in (.+)$', re.MULTILINE)
_LIBRARY: Final = re.compile(r"[\\/](?:site-packages|dist-packages|lib[\\/]python3[^\\/]*)[\\/]|^<frozen ", re.IGNORECASE)


def failure_causes(pages: Iterable[tuple[str, CausePage]], limit: int) -> FailureCauses:
    """Return up to *limit* causes of each batch, those with the most failed items first; *pages* are by batch name."""
    shown: list[FailureCause] = []
    more_causes = more_items = 0
    for name, page in pages:
        rows = _joined(name, page.rows) if page.causes > limit else [_cause(name, [row]) for row in page.rows]
        part = sorted(rows, key=_rank)[:limit]
        shown += part
        more_causes += page.causes - sum(cause.causes for cause in part)
        more_items += page.items - sum(cause.items for cause in part)
    return FailureCauses(sorted(shown, key=_rank), more_causes=more_causes, more_items=more_items)


def _rank(cause: FailureCause) -> tuple[int, int]:
    return -cause.items, -cause.attempts


def _joined(batch: str, rows: Sequence[CauseRow]) -> list[FailureCause]:
    groups: dict[tuple[str, str], list[CauseRow]] = {}
    for row in rows:
        groups.setdefault((row.error.partition(":")[0], place_in(row.traceback)), []).append(row)
    return [_cause(batch, group) for group in groups.values()]


def _cause(batch: str, group: Sequence[CauseRow]) -> FailureCause:
    """Return the causes of *group* as one cause; the first of them has the most failed items."""
    return FailureCause(
        batch,
        group[0].fingerprint if len(group) == 1 else None,
        sum(row.items for row in group),
        sum(row.attempts for row in group),
        min((row.first_seen for row in group if row.first_seen), default=None),
        max((row.last_seen for row in group if row.last_seen), default=None),
        group[0].example,
        group[0].error if len(group) == 1 else pattern_of([row.error for row in group]),
        len(group),
    )


def place_in(traceback: str) -> str:
    """Return the innermost place in a traceback that is not in a library, as ``file:line``; "" if it has no frames."""
    frames = _FRAME.findall(traceback)
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])] or frames
    return "" if not own else f"{own[-1][0]}:{own[-1][1]}"


def pattern_of(errors: Sequence[str]) -> str:
    """Return a pattern that matches all *errors*: what they have in common at their start and end, and ``*`` between.

    A word, or a number, that is only in part the same in all of them is left out of the pattern.
    """
    start = _common_start(errors)
    if any(len(error) > len(start) and _splits_word(start[-1:], error[len(start)]) for error in errors):
        start = re.sub(r"\w+\Z", "", start)
    rests = [error[len(start) :] for error in errors]
    end = _common_start([rest[::-1] for rest in rests])[::-1]
    if any(len(rest) > len(end) and _splits_word(rest[len(rest) - len(end) - 1], end[:1]) for rest in rests):
        end = re.sub(r"\A\w+", "", end)
    return start if not any(rests) else f"{start}*{end}"


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # all others are between these two
    same = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[:same]


def _splits_word(before: str, after: str) -> bool:
    return bool(re.fullmatch(r"\w\w", before + after))

"""Check the rows of a file against the log of the handlers; numbers are those of the invariants."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.crash.load import MAX_ATTEMPTS, result_of
from tests.support.files import WHOLE_RESULT

__all__ = ["Event", "read_log", "violations"]

_COUNTED = "SELECT name, total, (SELECT count(*) FROM items WHERE items.batch_id = batches.batch_id) FROM batches"
_ITEMS = "SELECT id, status, {result}, attempts, claim, worker_id FROM items"
_HISTORY = "SELECT coalesce(sum(completed), 0), coalesce(sum(failed + retried), 0) FROM history"
_EVENTS = "SELECT (SELECT count(*) FROM items WHERE status = 'completed'), (SELECT count(*) FROM failures)"
_HAS_HISTORY = "SELECT count(*) FROM sqlite_schema WHERE name = 'history'"  # not before the migration
_HAS_PIECES = "SELECT count(*) FROM sqlite_schema WHERE name = 'result_pieces'"  # not before the migration


class Event(NamedTuple):
    """A line of the log."""

    what: str
    key: str
    pid: int


def read_log(path: Path) -> Iterator[Event]:
    """Return the events of the log, in their order."""
    if not path.exists():
        return
    with path.open() as lines:
        for line in lines:
            what, key, pid = line.split()
            yield Event(what, key, int(pid))


def violations(db: Path, log: Path, *, is_over: bool = False, deaths_are_logged: bool = False) -> list[str]:
    """Return the broken invariants. *is_over*: the work has ended, so no item may be unfinished.

    *deaths_are_logged*: each kill is in the log before it happens, so that a recovery differs from a lost claim of a live process.
    """
    connection = sqlite3.connect(db)
    try:
        found = [f"16: {message}" for (message,) in connection.execute("PRAGMA integrity_check") if message != "ok"]
        result = WHOLE_RESULT if connection.execute(_HAS_PIECES).fetchone()[0] else "result"
        found += [f"16: {row}" for row in connection.execute("PRAGMA foreign_key_check")]
        if found:
            return found
        found += [
            f"12: {name} says {total}, has {there}" for name, total, there in connection.execute(_COUNTED) if total != there
        ]
        if connection.execute(_HAS_HISTORY).fetchone()[0]:
            counted, there = connection.execute(_HISTORY).fetchone(), connection.execute(_EVENTS).fetchone()
            found += [f"12: the history says {counted} completed items and failed attempts, the file has {there}"] * (
                counted != there
            )
        items = {row[0]: row[1:] for row in connection.execute(_ITEMS.format(result=result))}
    finally:
        connection.close()
    found += _rows(items, is_over=is_over) + _against_the_log(items, read_log(log))
    return found + (_robbed(read_log(log)) if deaths_are_logged else [])


def _rows(items: dict[str, tuple[str, str | None, int, int, str | None]], *, is_over: bool) -> list[str]:
    found: list[str] = []
    for key, (status, result, attempts, _, worker_id) in items.items():
        if status == "completed" and json.loads(result or "null") != result_of(int(key[1:])):
            found.append(f"3: {key} has the result {result}")
        if status == "processing" and worker_id is None:
            found.append(f"4: {key} is processing without a worker")
        if not 0 <= attempts <= MAX_ATTEMPTS:
            found.append(f"5: {key} has {attempts} attempts")
        if is_over and status in ("pending", "processing"):
            found.append(f"8: {key} is still {status}")
    return found


def _against_the_log(items: dict[str, tuple[str, str | None, int, int, str | None]], events: Iterable[Event]) -> list[str]:
    found: list[str] = []
    acknowledged: set[str] = set()
    starts: Counter[str] = Counter()
    taken: Counter[str] = Counter()  # by an operator, from a process that may have been stopped and may not know it yet
    for what, key, _ in events:
        if what == "accepted" and key not in items:
            found.append(f"1: {key} was accepted and has no row")
        elif what == "ack":
            acknowledged.add(key)
        elif what == "operator":
            taken[key] += 1
        elif what == "start":
            starts[key] += 1
            if key not in acknowledged:
                continue
            if taken[key] > 0:
                taken[key] -= 1
            else:
                found.append(f"7: {key} ran again after its result was acknowledged")
    found += [
        f"6: {key} was acknowledged and is not completed" for key in acknowledged if items.get(key, ("",))[0] != "completed"
    ]
    found += [f"5: {key} was started {n} times by {items[key][3]} claims" for key, n in starts.items() if n > items[key][3]]
    return found


def _robbed(events: Iterable[Event]) -> list[str]:
    """Return breaches of invariant 9: a live process keeps its items until an operator takes them away."""
    found: list[str] = []
    holders: dict[str, int] = {}
    gone: set[int] = set()
    # Items that an operator released. A process that had claimed one may still start it, see docs/concepts/guarantees.md.
    taken: Counter[str] = Counter()
    for what, key, pid in events:
        if what == "start":
            holder = holders.get(key)
            if holder is not None and holder not in gone and taken[key] > 0:
                taken[key] -= 1
            elif holder is not None and holder not in gone:
                found.append(f"9: {key} was taken from process {holder}, which lived, by {pid}")
            holders[key] = pid
        elif what in ("end", "raised", "cancelled"):
            if holders.get(key) == pid:
                del holders[key]
        elif what == "operator":
            holders.pop(key, None)
            taken[key] += 1
        elif what == "killing":
            gone.add(pid)
    return found

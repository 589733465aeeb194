"""Add a chunk in a transaction of several statements: compare the payloads of known keys as JSON, and replace those that differ.

The steps are a generator, which yields a statement and its argument, and gets the value that the statement returned. So they run
on a connection of any driver. Each statement has one argument, ``$1``, a JSON text, and returns a text.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import msgspec

from asyncrunner.serialization.keys import is_same_json
from asyncrunner.store.batches import Added
from asyncrunner.store.rules.conflicts import key_conflict, key_exists

if TYPE_CHECKING:
    from asyncrunner.domain.item import NewItem, OnKnownKey

T = TypeVar("T")

Steps: TypeAlias = Generator[tuple[str, str | None], str | None, T]
"""Statements with their arguments. One that takes no argument has None."""

FIRST_MODES: Final[dict[OnKnownKey, str]] = {
    "error": "same",
    "keep": "same",
    "refuse": "new",
    "rerun": "same",
    "run again": "new",
}
"""How the function add_items begins. If it finds a conflict, another transaction compares the payloads as JSON."""


class Answer(msgspec.Struct):
    """The answer of the functions add_items and submit_items."""

    seqs: list[int]
    known: list[bool]
    batch_id: int = 0
    database: str = ""

    def added(self, entries: Sequence[NewItem]) -> Added:
        """Return what was added of *entries*, the items that the function was called with."""
        new = len({seq for seq, known in zip(self.seqs, self.known, strict=True) if not known})
        known = frozenset(entry.id for entry, known in zip(entries, self.known, strict=True) if known)
        return Added(new, len(entries) - new, 0, (), self.seqs, known)


decode_answer: Final = msgspec.json.Decoder(Answer).decode
_decode_stored: Final = msgspec.json.Decoder(list[tuple[str, str, bool, int]]).decode


def statement(schema: str, function: str) -> str:
    """Return the statement that calls a function of the schema with ``$1``."""
    return f"SELECT {schema}.{function}(CAST($1 AS text))"


def encoded(**fields: object) -> str:
    """Return the argument of a statement."""
    return msgspec.json.encode(fields).decode()


def chunk_fields(entries: Sequence[NewItem], now: float | None) -> dict[str, object]:
    """Return the fields of a chunk for the function submit_items. *now*: None for the server's time."""
    return {"entries": [msgspec.structs.asdict(entry) for entry in entries], "traceparent": entries[0].traceparent, "now": now}


def adding(
    schema: str, entries: Sequence[NewItem], on_change: OnKnownKey, fields: dict[str, object]
) -> Steps[tuple[Answer, Added]]:
    """Add a chunk with the function submit_items, whose argument has *fields*; return its answer and what was added.

    Raises KeyConflict; the caller must then undo the steps.
    """
    answer = decode_answer((yield statement(schema, "submit_items"), encoded(**fields, mode="any")) or "")
    added = answer.added(entries)
    if on_change == "refuse" and added.new < len(entries):
        raise key_exists(entries, added.known)
    ids = list({entry.id for entry in entries})
    text = yield statement(schema, "stored_items"), encoded(batch_id=answer.batch_id, ids=ids)
    stored = {key: (payload, completed, seq) for key, payload, completed, seq in _decode_stored(text or "[]")}
    runs_again = added.known if on_change == "run again" else frozenset[str]()
    changed = [entry for entry in entries if entry.id in runs_again or not is_same_json(stored[entry.id][0], entry.payload)]
    if changed and on_change == "error":
        raise key_conflict(changed[0])
    undone: Sequence[int] = ()
    if changed and on_change in ("rerun", "run again"):
        newest: dict[str, dict[str, Any]] = {entry.id: msgspec.structs.asdict(entry) for entry in changed}
        yield statement(schema, "replace_payloads"), encoded(batch_id=answer.batch_id, entries=list(newest.values()))
        undone = [seq for key, (_, completed, seq) in stored.items() if completed and key in newest]
    return answer, added._replace(changed=len(changed), undone=undone)

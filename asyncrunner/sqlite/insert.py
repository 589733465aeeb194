"""Insert items, as functions of a raw connection.

The connection is the writer's, or a user's connection with an open transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from asyncrunner.domain.item import Claim
from asyncrunner.errors import StoreError
from asyncrunner.serialization.keys import is_same_json
from asyncrunner.sqlite import sql
from asyncrunner.sqlite.sql.bulk import Block, execute_blocks, long_step
from asyncrunner.store.batches import Added
from asyncrunner.store.rules.conflicts import key_conflict, key_exists
from asyncrunner.text.timestamps import to_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncrunner.domain.item import NewItem, OnKnownKey
    from asyncrunner.store.turn import ClaimRequest


MAX_SEQ: Final = 2**63 - 1
"""The largest number that SQLite can give to a row."""


_Seqs = msgspec.json.Decoder(list[int | None])


class Insertion:
    """The operation that inserts *entries*, to be called in a transaction; see EngineStore.add.

    The operation raises KeyConflict if a payload has changed and *on_change* is "error", and if a key exists and *on_change*
    is "refuse"; the caller must then roll back. The rows are built here, before the operation runs, so that the writer's thread
    has less to do.
    """

    def __init__(
        self,
        batch_id: int,
        entries: Sequence[NewItem],
        on_change: OnKnownKey,
        now: float,
        request: ClaimRequest | None = None,
        *,
        expects_known: bool = False,
        may_claim: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepare the operation. *expects_known*: the items probably exist, as in a resumed batch. *may_claim*: see store.py."""
        self._may_claim = may_claim
        self._batch_id = batch_id
        self._entries = entries
        self._on_change: OnKnownKey = on_change
        self._moment = to_text(now)
        self._request = request
        self._claimed: Sequence[NewItem] = ()  # the entries that the operation has inserted as claimed, if their key was new
        self._last = 0  # the last seq before the operation
        self._claimable: Sequence[NewItem] = ()
        self._claimed_blocks: Sequence[Block] = ()
        self._later_blocks: Sequence[Block] | None = None
        self._same_blocks: Sequence[Block] | None = None
        if expects_known:
            self._prepare_comparison()
        else:
            self._prepare_insert()

    def _prepare_comparison(self) -> Sequence[Block]:
        rows = [(entry.id, entry.payload) for entry in self._entries]
        self._same_blocks = sql.items.SAME_ITEMS.blocks(rows, (self._batch_id,))
        return self._same_blocks

    def _prepare_insert(self) -> Sequence[Block]:
        """Prepare the rows of the entries, and return the calls that insert those which the add does not claim."""
        entries, request = self._entries, self._request
        claimable = 0 if request is None else _claimable(entries, self._on_change, request.want.limit)
        self._claimable = entries[:claimable]
        if request is not None and claimable:
            rows = [(entry.id, entry.payload) for entry in self._claimable]
            shared = (self._batch_id, entries[0].priority, self._moment, request.worker_id)
            self._claimed_blocks = sql.items.INSERT_CLAIMED.blocks(rows, shared)
        self._later_blocks = self._blocks(entries[claimable:])
        return self._later_blocks

    def _blocks(self, entries: Sequence[NewItem]) -> Sequence[Block]:
        rows = [
            (entry.id, entry.payload, entry.priority, None if entry.due_at is None else to_text(entry.due_at))
            for entry in entries
        ]
        return sql.items.INSERT_ITEMS.blocks(rows, (self._batch_id, self._moment))

    def __call__(self, connection: sqlite3.Connection) -> Added:
        entries, batch_id, on_change = self._entries, self._batch_id, self._on_change
        self._claimed = ()
        worker_id = self._request.worker_id if self._request is not None and self._may_claim() else None
        before = (batch_id, entries[0].id if entries else None, self._moment, worker_id)
        last, is_known, version = connection.execute(sql.items.BEFORE_INSERT, before).fetchone()
        self._last = last
        if is_known and on_change not in ("refuse", "run again") and (same := self._seqs_if_same(connection)) is not None:
            return Added(0, len(entries), 0, (), same, frozenset([entry.id for entry in entries]))
        stored = _stored_if_all_exist(connection, batch_id, entries) if is_known or not entries else None
        new = 0
        if stored is None:
            if last > MAX_SEQ - len(entries):
                raise StoreError(
                    f"no seq is left for new items, because a row of items has or had the seq {last}. Give such rows a smaller "
                    "seq, and set the seq of items in the table sqlite_sequence to the largest seq in items"
                )
            new = self._insert(connection, version)
            if new:
                connection.execute(sql.batches.ADD_TO_TOTAL, (new, batch_id))
                if entries[0].traceparent is not None:
                    connection.execute(sql.items.SET_TRACEPARENT, (entries[0].traceparent, last))
            if new == len(entries):
                return Added(new, 0, 0, (), range(last + 1, last + 1 + new))
            connection.execute(sql.items.FREE_UNUSED_SEQS, (last,))
            stored = _stored(connection, batch_id, entries)
        payloads = {key: payload for key, payload, _, _ in stored}
        seqs = {key: seq for key, _, _, seq in stored}
        known = frozenset(key for key, _, _, seq in stored if seq <= last) if new else frozenset(payloads)
        if on_change == "refuse":
            raise key_exists(entries, known)
        runs_again = known if on_change == "run again" else frozenset[str]()
        changed = [entry for entry in entries if entry.id in runs_again or not is_same_json(payloads[entry.id], entry.payload)]
        if changed and on_change == "error":
            raise key_conflict(changed[0])
        undone: Sequence[int] = ()
        if changed and on_change in ("rerun", "run again"):
            _run_again(connection, batch_id, changed)
            keys = {entry.id for entry in changed}
            undone = [seq for key, _, completed, seq in stored if completed and key in keys]
        return Added(new, len(entries) - new, len(changed), undone, [seqs[entry.id] for entry in entries], known)

    def _insert(self, connection: sqlite3.Connection, version: int | None) -> int:
        """Insert the entries; claim the first ones if *version*, the number of the batch's version, is the requested one."""
        later_blocks = self._later_blocks
        if later_blocks is None:
            later_blocks = self._prepare_insert()
        if not self._claimed_blocks:
            return execute_blocks(connection, later_blocks)
        if version is None or self._request is None or self._request.want.version not in (None, version):
            return execute_blocks(connection, self._blocks(self._entries))
        self._claimed = self._claimable
        return execute_blocks(connection, self._claimed_blocks) + execute_blocks(connection, later_blocks)

    def _seqs_if_same(self, connection: sqlite3.Connection) -> Sequence[int] | None:
        """Return the seqs of the entries if all of them exist with the same payloads, otherwise None."""
        blocks = self._same_blocks
        if blocks is None:
            blocks = self._prepare_comparison()
        seqs: list[int | None] = []
        for statement, values in blocks:
            seqs += _Seqs.decode(long_step(connection, statement, values).fetchone()[1])
        same = [seq for seq in seqs[: len(self._entries)] if seq is not None]
        return same if len(same) == len(self._entries) else None

    def leaves_items(self, added: Added) -> bool:
        """Return whether the operation, which has returned *added*, leaves items that any worker may claim."""
        return added.changed > 0 or added.new > len(self._claimed)

    def with_claims(self, added: Added) -> Added:
        """Return *added*, what the operation has returned, with the claims of the items that it has claimed."""
        if not self._claimed:
            return added
        items: Iterable[tuple[int, NewItem]] = zip(added.seqs, self._claimed, strict=False)
        if added.existing:
            items = ((seq, entry) for seq, entry in _first_of_each(items) if seq > self._last)
        batch_id = self._batch_id
        claims = [Claim(seq, batch_id, entry.id, entry.payload, 1, 1, 0, None, None, entry.traceparent) for seq, entry in items]
        return added._replace(claims=claims)


def _claimable(entries: Sequence[NewItem], on_change: OnKnownKey, limit: int) -> int:
    """Return how many of the first *entries* the add may claim: all up to *limit*, or none.

    A turn would claim other items first if priorities differ. With a rerun, a later entry of the chunk may replace the payload
    of an earlier one.
    """
    if on_change in ("rerun", "run again") or limit <= 0 or not entries:
        return 0
    are_alike = {(entry.priority, entry.due_at) for entry in entries} == {(entries[0].priority, None)}
    return limit if are_alike else 0


def _first_of_each(items: Iterable[tuple[int, NewItem]]) -> Iterator[tuple[int, NewItem]]:
    """Yield the first entry of each seq: of several entries with one key, the first is stored."""
    firsts: dict[int, NewItem] = {}
    for seq, entry in items:
        firsts.setdefault(seq, entry)
    return iter(firsts.items())


_Stored: TypeAlias = "tuple[str, str, int, int]"
"""An item's key, payload, whether it is completed, and seq. A resumed batch builds one for each item, so it is a plain tuple."""


def _stored_if_all_exist(connection: sqlite3.Connection, batch_id: int, entries: Sequence[NewItem]) -> Sequence[_Stored] | None:
    """Return the stored items if all *entries* exist, as in a resumed batch; None if an entry must be inserted.

    A lookup costs half as much as an insert that finds the key.
    """
    stored = _stored(connection, batch_id, entries)
    keys = {key for key, _, _, _ in stored}
    return stored if all(entry.id in keys for entry in entries) else None


def _stored(connection: sqlite3.Connection, batch_id: int, entries: Sequence[NewItem]) -> Sequence[_Stored]:
    keys = msgspec.json.encode([entry.id for entry in entries]).decode()
    return connection.execute(sql.items.PAYLOADS_OF_KEYS, (batch_id, keys)).fetchall()


def _run_again(connection: sqlite3.Connection, batch_id: int, changed: Sequence[NewItem]) -> None:
    """Run the items again with their new payloads; those that a worker holds run once more after their current attempt."""
    rows = [
        (
            entry.payload,
            entry.priority,
            None if entry.due_at is None else to_text(entry.due_at),
            entry.traceparent,
            batch_id,
            entry.id,
        )
        for entry in changed
    ]
    connection.executemany(sql.items.REPLACE_PAYLOAD, rows)
    connection.executemany(sql.items.REQUEST_RERUN, rows)

"""Create and migrate the schema of the file. Table and column names are public: users query them.

A migration is one script; ``user_version`` is the number of migrations applied. All migrations run in one transaction, so
after a crash a file has the old schema or the new one, never a mixture. A released migration is never edited, because files
exist that were made with it; tests/sqlite/test_migrations.py has the checksum of each.

SQLite stores each CREATE statement with the comments inside it, so an older file keeps older comments. doctor compares the
statements without their comments.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from asyncrunner.errors import NotAStore, SchemaTooNew, StoreError

DAMAGED: Final = "is damaged; stop every program that uses it, keep a copy, and recover it with .recover in the sqlite3 shell"
APPLICATION_ID: Final = 0x4153524E  # "ASRN"

# Mark a new file as one of asyncrunner; the number is APPLICATION_ID.
SET_APPLICATION_ID: Final = "PRAGMA application_id = 1095979598"

# The mark of the program that made the file.
READ_APPLICATION_ID: Final = "PRAGMA application_id"

# The number of migrations applied to the file.
READ_VERSION: Final = "PRAGMA user_version"

# The number of existing tables among those that every version has.
COUNT_TABLES: Final = """
SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN ('batches', 'items', 'workers', 'failures', 'turns')"""

_FIRST: Final = """
CREATE TABLE batches (
    batch_id       INTEGER PRIMARY KEY,
    name           TEXT NOT NULL UNIQUE,
    handler        TEXT NOT NULL,
    options        TEXT NOT NULL,
    created_at     TEXT NOT NULL,
    total          INTEGER NOT NULL DEFAULT 0,  -- items in the batch; completed = total - what items_open holds
    turns          INTEGER NOT NULL DEFAULT 0,
    paused         INTEGER NOT NULL DEFAULT 0,
    cooldown_until TEXT,
    concurrency    INTEGER
) STRICT;

CREATE TABLE items (
    seq          INTEGER PRIMARY KEY,           -- input order
    batch_id     INTEGER NOT NULL REFERENCES batches,
    id           TEXT NOT NULL,                 -- the key
    status       TEXT NOT NULL DEFAULT 'pending'
                 CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
    attempts     INTEGER NOT NULL DEFAULT 0,
    crashes      INTEGER NOT NULL DEFAULT 0,
    claim        INTEGER NOT NULL DEFAULT -1,   -- the fence; -1 only in rows that a person inserts, see below
    worker_id    TEXT,
    priority     INTEGER NOT NULL DEFAULT 0,
    permanent    INTEGER NOT NULL DEFAULT 0,    -- of a failed item: retrying will not help
    due_at       TEXT,                          -- not started before; NULL: due now
    created_at   TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    started_at   TEXT,
    completed_at TEXT,                          -- when it became completed, failed or cancelled
    payload      TEXT NOT NULL,                 -- JSON
    result       TEXT,                          -- JSON
    error        TEXT,
    UNIQUE (batch_id, id)
) STRICT;

-- One partial index, not one per status: for each, every update evaluates the predicate twice.
CREATE INDEX items_open ON items (batch_id, status, due_at, priority DESC) WHERE status <> 'completed';

-- The runner adds to the total once per chunk; these triggers keep the total right when users insert or delete rows. The
-- WHEN skips the runner's inserts, which set claim.
CREATE TRIGGER items_inserted_by_hand AFTER INSERT ON items WHEN NEW.claim < 0 BEGIN
    UPDATE batches SET total = total + 1 WHERE batch_id = NEW.batch_id;
    UPDATE items SET claim = 0 WHERE seq = NEW.seq;
END;
CREATE TRIGGER items_deleted AFTER DELETE ON items BEGIN
    UPDATE batches SET total = total - 1 WHERE batch_id = OLD.batch_id;
END;

CREATE TABLE workers (
    worker_id       TEXT PRIMARY KEY,           -- random per start
    host            TEXT NOT NULL,
    pid             INTEGER NOT NULL,
    started_at      TEXT NOT NULL,
    last_heartbeat  TEXT NOT NULL,
    items_processed INTEGER NOT NULL DEFAULT 0,
    items_failed    INTEGER NOT NULL DEFAULT 0,
    ended_at        TEXT,
    lost            INTEGER NOT NULL DEFAULT 0  -- 1: declared lost by another worker
) STRICT;

CREATE TABLE failures (                         -- one row a failed attempt
    failure_id  INTEGER PRIMARY KEY,
    batch_id    INTEGER NOT NULL,
    id          TEXT NOT NULL,
    attempt     INTEGER NOT NULL,
    claim       INTEGER NOT NULL,
    failed_at   TEXT NOT NULL,
    error_type  TEXT NOT NULL,
    message     TEXT NOT NULL,
    traceback   TEXT NOT NULL,
    fingerprint TEXT NOT NULL
) STRICT;
CREATE INDEX failures_of_item ON failures (batch_id, id);

CREATE TABLE turns (                            -- the newest turns of each batch, for rates and durations
    batch_id  INTEGER NOT NULL,
    ring      INTEGER NOT NULL,
    number    INTEGER NOT NULL,
    at        TEXT NOT NULL,
    completed INTEGER NOT NULL,
    failed    INTEGER NOT NULL,
    retried   INTEGER NOT NULL,
    durations TEXT NOT NULL,                    -- JSON: status -> microseconds of each attempt
    PRIMARY KEY (batch_id, ring)
) STRICT, WITHOUT ROWID;
"""

_CHECKPOINTS_STOPS_AND_RATES: Final = """
ALTER TABLE items ADD COLUMN checkpoint TEXT;   -- JSON that an attempt saved for the next one
ALTER TABLE batches ADD COLUMN stopped TEXT;    -- why the failure limit stopped it; NULL: not stopped
ALTER TABLE batches ADD COLUMN rate_spent REAL; -- epoch seconds up to which the rate limit's starts are used
"""

_SUSPECTS_AND_BLOCKS: Final = """
-- The table is recreated with AUTOINCREMENT: the seq of a deleted row is never reused, so a late outcome changes no other item.
CREATE TABLE items_anew (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,  -- input order
    batch_id     INTEGER NOT NULL REFERENCES batches,
    id           TEXT NOT NULL,                 -- the key
    status       TEXT NOT NULL DEFAULT 'pending'
                 CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'cancelled')),
    attempts     INTEGER NOT NULL DEFAULT 0,
    crashes      INTEGER NOT NULL DEFAULT 0,
    claim        INTEGER NOT NULL DEFAULT -1,   -- the fence; -1 only in rows that a person inserts, see below
    worker_id    TEXT,
    priority     INTEGER NOT NULL DEFAULT 0,
    permanent    INTEGER NOT NULL DEFAULT 0,    -- of a failed item: retrying will not help
    due_at       TEXT,                          -- not started before; NULL: due now
    created_at   TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    started_at   TEXT,
    completed_at TEXT,                          -- when it became completed, failed or cancelled
    payload      TEXT NOT NULL,                 -- JSON
    result       TEXT,                          -- JSON
    error        TEXT,
    checkpoint   TEXT,                          -- JSON that an attempt saved for the next one
    suspect      INTEGER NOT NULL DEFAULT 0,    -- 1: its last attempts ended with their worker, so it runs alone
    UNIQUE (batch_id, id)
) STRICT;
INSERT INTO items_anew
SELECT seq, batch_id, id, status, attempts, crashes, claim, worker_id, priority, permanent, due_at, created_at, started_at,
    completed_at, payload, result, error, checkpoint, 0 FROM items;
DROP TABLE items;
ALTER TABLE items_anew RENAME TO items;

-- One partial index, not one per status: for each, every update evaluates the predicate twice.
CREATE INDEX items_open ON items (batch_id, status, due_at, priority DESC) WHERE status <> 'completed';

-- The runner adds to the total once per chunk; these triggers keep the total right when users insert or delete rows. The
-- WHEN skips the runner's inserts, which set claim.
CREATE TRIGGER items_inserted_by_hand AFTER INSERT ON items WHEN NEW.claim < 0 BEGIN
    UPDATE batches SET total = total + 1 WHERE batch_id = NEW.batch_id;
    UPDATE items SET claim = 0, due_at = strftime('%Y-%m-%d %H:%M:%f', due_at) WHERE seq = NEW.seq;
END;
CREATE TRIGGER items_deleted AFTER DELETE ON items BEGIN
    UPDATE batches SET total = total - 1 WHERE batch_id = OLD.batch_id;
END;

-- Users write times in other forms, and times are compared as text: '...T...' sorts after '... ...'. This trigger brings
-- due_at into the form of the runner; a text that is not a time becomes NULL, which means due now.
CREATE TRIGGER items_due_by_hand AFTER UPDATE OF due_at ON items WHEN NEW.due_at NOT GLOB
    '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9].[0-9][0-9][0-9]'
BEGIN
    UPDATE items SET due_at = strftime('%Y-%m-%d %H:%M:%f', NEW.due_at) WHERE seq = NEW.seq;
END;

ALTER TABLE workers ADD COLUMN loop_blocks INTEGER NOT NULL DEFAULT 0; -- blocks of its event loop of a second or more
ALTER TABLE workers ADD COLUMN longest_block REAL NOT NULL DEFAULT 0;  -- seconds
"""

_CAUSES_AND_SLOTS: Final = """
ALTER TABLE items ADD COLUMN fingerprint TEXT;  -- of a failed item's error: groups items by cause
UPDATE items SET fingerprint = (
    SELECT failures.fingerprint FROM failures
    WHERE failures.batch_id = items.batch_id AND failures.id = items.id ORDER BY failure_id DESC LIMIT 1)
WHERE batch_id IN (SELECT batch_id FROM batches) AND status = 'failed' AND status <> 'completed';
-- Failed items by cause, with the columns that searches use. It includes the status, because SQLite reads the row otherwise.
-- Only failures pay for this index; a completion evaluates its predicate twice, at no measurable cost.
CREATE INDEX items_failed ON items (batch_id, status, fingerprint, error) WHERE status = 'failed';
CREATE INDEX failures_of_cause ON failures (batch_id, fingerprint, failed_at);
ALTER TABLE workers ADD COLUMN slots INTEGER NOT NULL DEFAULT 0;       -- how many handlers it may run at the same time
ALTER TABLE workers ADD COLUMN slots_in_use INTEGER NOT NULL DEFAULT 0; -- how many handlers it ran at its last heartbeat
"""

_STOPS_FROM_OUTSIDE: Final = """
ALTER TABLE workers ADD COLUMN role TEXT NOT NULL DEFAULT '';        -- run, work or service
ALTER TABLE workers ADD COLUMN batches TEXT NOT NULL DEFAULT '[]';   -- JSON: the names of the batches that it has handlers for
ALTER TABLE workers ADD COLUMN stop INTEGER NOT NULL DEFAULT 0;      -- 1: asked to drain, 2: to cancel its handlers
"""

_RESULT_PIECES: Final = """
CREATE TABLE result_pieces (                     -- of results too large for one transaction; items.result is the empty text
    seq   INTEGER NOT NULL,
    claim INTEGER NOT NULL,
    piece INTEGER NOT NULL,                      -- 0, 1, ...
    text  TEXT NOT NULL,
    PRIMARY KEY (seq, claim, piece)
) STRICT;
"""

_PUT_OFFS_AND_SUSPICIONS: Final = """
-- Name the column that the foreign key of items refers to: Datasette answers 500 for a key without it. SQLite documents this
-- edit of a constraint; a new table would copy every item. See migrate() for a SQLite that refuses it. RESET reads the schema
-- again, because ALTER TABLE edits the text that SQLite has read, and the statements below make other connections read it.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema SET sql = replace(sql, 'NOT NULL REFERENCES batches,', 'NOT NULL REFERENCES batches (batch_id),')
WHERE type = 'table' AND name = 'items';
PRAGMA writable_schema = RESET;
ALTER TABLE items ADD COLUMN put_offs INTEGER NOT NULL DEFAULT 0; -- how often a service or the handler put it off
ALTER TABLE items ADD COLUMN put_off_at REAL;   -- epoch seconds of the first of the put-offs since its last failure
ALTER TABLE items ADD COLUMN rerun_payload TEXT; -- JSON: once its attempt has ended, it runs once more with this payload
ALTER TABLE batches ADD COLUMN put_offs INTEGER NOT NULL DEFAULT 0; -- how often its items were put off
-- The pending items that may have killed their workers; few items are ever in this index.
CREATE INDEX items_suspect ON items (batch_id, suspect, priority DESC) WHERE suspect > 0 AND status = 'pending';
-- The pending items with a due time, which are delayed or retried; other items cost nothing here.
CREATE INDEX items_due ON items (batch_id, priority DESC, due_at) WHERE status = 'pending' AND due_at IS NOT NULL;
ALTER TABLE batches ADD COLUMN replaced INTEGER NOT NULL DEFAULT 0; -- rows that the last insert by hand may have replaced
-- INSERT OR REPLACE deletes rows without a trigger, and only an insert that happens has an AFTER trigger. So the first of these
-- triggers counts the rows of the batch that are in the way, and the second one subtracts them.
CREATE TRIGGER items_replaced_by_hand BEFORE INSERT ON items WHEN NEW.claim < 0 BEGIN
    UPDATE batches SET replaced = (SELECT count(*) FROM items WHERE batch_id = NEW.batch_id AND id = NEW.id)
        + (SELECT count(*) FROM items WHERE seq = NEW.seq AND batch_id = NEW.batch_id AND id <> NEW.id)
    WHERE batch_id = NEW.batch_id;
END;
DROP TRIGGER items_inserted_by_hand;
CREATE TRIGGER items_inserted_by_hand AFTER INSERT ON items WHEN NEW.claim < 0 BEGIN
    UPDATE batches SET total = total + 1 - replaced WHERE batch_id = NEW.batch_id;
    UPDATE items SET claim = 0, due_at = strftime('%Y-%m-%d %H:%M:%f', due_at) WHERE seq = NEW.seq;
END;
ALTER TABLE workers ADD COLUMN process TEXT NOT NULL DEFAULT '';     -- random per process: its workers die together
ALTER TABLE workers ADD COLUMN throttles TEXT NOT NULL DEFAULT '{}'; -- JSON: batch -> its limit while a service puts items off
ALTER TABLE workers ADD COLUMN beats INTEGER NOT NULL DEFAULT 0;     -- heartbeats: it also grows while the clock stands still
-- The number of failed attempts of each cause: counting a million rows takes 50 ms. Only a failed attempt pays, with 1.3 us.
CREATE TABLE causes (
    batch_id    INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    attempts    INTEGER NOT NULL,                -- rows of failures with this fingerprint
    PRIMARY KEY (batch_id, fingerprint)
) STRICT, WITHOUT ROWID;
INSERT INTO causes SELECT batch_id, fingerprint, count(*) FROM failures GROUP BY batch_id, fingerprint;
CREATE TRIGGER failures_inserted AFTER INSERT ON failures BEGIN
    INSERT INTO causes VALUES (NEW.batch_id, NEW.fingerprint, 1) ON CONFLICT DO UPDATE SET attempts = attempts + 1;
END;
CREATE TRIGGER failures_deleted AFTER DELETE ON failures BEGIN
    UPDATE causes SET attempts = attempts - 1 WHERE batch_id = OLD.batch_id AND fingerprint = OLD.fingerprint;
    DELETE FROM causes WHERE batch_id = OLD.batch_id AND fingerprint = OLD.fingerprint AND attempts <= 0;
END;
CREATE TRIGGER failures_updated AFTER UPDATE OF batch_id, fingerprint ON failures BEGIN
    UPDATE causes SET attempts = attempts - 1 WHERE batch_id = OLD.batch_id AND fingerprint = OLD.fingerprint;
    DELETE FROM causes WHERE batch_id = OLD.batch_id AND fingerprint = OLD.fingerprint AND attempts <= 0;
    INSERT INTO causes VALUES (NEW.batch_id, NEW.fingerprint, 1) ON CONFLICT DO UPDATE SET attempts = attempts + 1;
END;
ALTER TABLE batches ADD COLUMN version TEXT;     -- the newest version of the handler; NULL: no run gave one
ALTER TABLE batches ADD COLUMN version_number INTEGER NOT NULL DEFAULT 0;  -- how often the version changed
ALTER TABLE batches ADD COLUMN version_applied INTEGER NOT NULL DEFAULT 0; -- the last change that made the items pending
ALTER TABLE workers ADD COLUMN versions TEXT NOT NULL DEFAULT '{}';  -- JSON: batch -> the version of its handler
ALTER TABLE items ADD COLUMN version INTEGER NOT NULL DEFAULT 0;     -- the batch's version_number at the newest claim
ALTER TABLE failures ADD COLUMN started_at TEXT; -- when the attempt started; NULL: an earlier version of asyncrunner recorded it
ALTER TABLE failures ADD COLUMN duration REAL;   -- seconds that the attempt took; NULL: see started_at
ALTER TABLE items ADD COLUMN result_claim INTEGER; -- of a result in pieces that a later attempt has not replaced: its claim
ALTER TABLE items ADD COLUMN traceparent TEXT;   -- the trace context of the submit; NULL without OpenTelemetry
-- The history of each batch: the attempts that ended in each minute. The running minute is in the row of the batch, which each
-- turn changes anyway; the first turn of another minute moves it to this table. A row here that each turn changes would add a
-- page to its transaction: 9 % of the CPU time of a turn with one item. The view has all minutes.
CREATE TABLE minutes (
    batch_id  INTEGER NOT NULL,
    minute    INTEGER NOT NULL,                  -- its beginning in epoch seconds
    completed INTEGER NOT NULL,
    failed    INTEGER NOT NULL,
    retried   INTEGER NOT NULL,
    seconds   REAL NOT NULL,                     -- the sum of the durations of these attempts
    PRIMARY KEY (batch_id, minute)
) STRICT, WITHOUT ROWID;
CREATE INDEX minutes_oldest ON minutes (minute); -- finds the old minutes of all batches
ALTER TABLE batches ADD COLUMN minute INTEGER;   -- of the newest turn, as in minutes; NULL: no turn since this column exists
ALTER TABLE batches ADD COLUMN minute_completed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN minute_failed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN minute_retried INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN minute_seconds REAL NOT NULL DEFAULT 0;
CREATE VIEW history AS
    SELECT batch_id, minute, completed, failed, retried, seconds FROM minutes
    UNION ALL
    SELECT batch_id, minute, minute_completed, minute_failed, minute_retried, minute_seconds FROM batches
    WHERE minute IS NOT NULL;
CREATE TABLE copies (                            -- the batches that `asyncrunner copy` has brought here, or still brings here
    batch_id    INTEGER PRIMARY KEY,
    source      TEXT NOT NULL,                   -- the location from which it comes
    identity    TEXT NOT NULL,                   -- its batch_id and created_at there
    reached     TEXT NOT NULL,                   -- the position up to which the rows are copied; 'restart': they are deleted
    copied      INTEGER NOT NULL DEFAULT 0,      -- how many items the copy has stored; other programs may have added more
    finished_at TEXT                             -- when it was complete; NULL: it is not
) STRICT;
CREATE TRIGGER batches_deleted AFTER DELETE ON batches BEGIN
    DELETE FROM minutes WHERE batch_id = OLD.batch_id;
    DELETE FROM copies WHERE batch_id = OLD.batch_id;
END;
"""

MIGRATIONS: Final[tuple[str, ...]] = (
    _FIRST,
    _CHECKPOINTS_STOPS_AND_RATES,
    _SUSPECTS_AND_BLOCKS,
    _CAUSES_AND_SLOTS,
    _STOPS_FROM_OUTSIDE,
    _RESULT_PIECES,
    _PUT_OFFS_AND_SUSPICIONS,
)

_TABLES: Final = ("batches", "items", "workers", "failures", "turns")  # every version has these tables


def verify(connection: sqlite3.Connection, location: str) -> int:
    """Return the schema version of the file, without a write.

    Raises NotAStore if another program made the file or a table is missing, SchemaTooNew, and StoreError if
    the file is damaged.
    """
    application_id = None
    try:
        application_id = connection.execute(READ_APPLICATION_ID).fetchone()[0]
        version = int(connection.execute(READ_VERSION).fetchone()[0])
        tables = connection.execute(COUNT_TABLES).fetchone()[0]
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        if application_id == APPLICATION_ID:
            raise StoreError(f"{location} {DAMAGED} ({error})") from error
        raise NotAStore(f"{location} is not an intact SQLite database ({error}); give another path") from error
    if application_id != APPLICATION_ID:
        raise NotAStore(f"{location} is a database of another program (application_id {application_id}); give another path")
    if tables != len(_TABLES):
        raise NotAStore(
            f"{location} is marked as a file of asyncrunner but lacks some of its tables ({', '.join(_TABLES)}): they were "
            "dropped or never created; restore a copy of the file, or give another path"
        )
    if version > len(MIGRATIONS):
        raise SchemaTooNew(
            f"{location} has schema {version}, but this asyncrunner supports schemas up to {len(MIGRATIONS)}; upgrade asyncrunner"
        )
    return version


def migrate(connection: sqlite3.Connection, version: int) -> None:
    """Upgrade the schema from *version* to the newest, in the caller's transaction.

    A SQLite in defensive mode, like that of macOS, refuses to edit the text of a statement in the schema. The text then stays;
    it means the same to SQLite.
    """
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in _statements(script):
            try:
                connection.execute(statement)
            except sqlite3.OperationalError as error:
                if "may not be modified" not in str(error):
                    raise
        set_version(connection, number)


def set_version(connection: sqlite3.Connection, version: int) -> None:
    """Record that *version* migrations were applied, in the caller's transaction."""
    connection.execute(f"PRAGMA user_version = {version}")  # a PRAGMA takes no parameters


def _statements(script: str) -> list[str]:
    # executescript() would commit the caller's transaction, and a crash could then leave an incomplete migration.
    statements: list[str] = []
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if statement.strip() and sqlite3.complete_statement(statement):
            statements.append(statement)
            statement = ""
    return statements

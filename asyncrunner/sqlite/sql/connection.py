"""The SQL of a connection: transactions, settings, WAL checkpoints."""

from __future__ import annotations

from typing import Final

# --- transactions -----------------------------------------------------------------------------------------------

# Begin a transaction that takes SQLite's locks only when it needs them, for example to read one snapshot.
BEGIN: Final = "BEGIN"

# Begin a transaction that writes. IMMEDIATE takes the write lock now: a later attempt to take the lock, after a read, can fail.
BEGIN_WRITE: Final = "BEGIN IMMEDIATE"

# Make the transaction durable.
COMMIT: Final = "COMMIT"

# Undo the transaction.
ROLLBACK: Final = "ROLLBACK"

# Mark the place in a turn to which a block of settlements can be undone.
BEGIN_SETTLEMENTS: Final = "SAVEPOINT settlements"

# Keep the settlements since the mark, and remove the mark.
KEEP_SETTLEMENTS: Final = "RELEASE settlements"

# Undo the settlements since the mark; the mark stays.
UNDO_SETTLEMENTS: Final = "ROLLBACK TO settlements"

# Mark the place in the caller's transaction to which a submission can be undone.
BEGIN_SUBMISSION: Final = "SAVEPOINT asyncrunner_submit"

# Keep the submission, and remove the mark.
KEEP_SUBMISSION: Final = "RELEASE asyncrunner_submit"

# Undo the submission; the mark and the caller's earlier changes stay.
UNDO_SUBMISSION: Final = "ROLLBACK TO asyncrunner_submit"

# --- settings ---------------------------------------------------------------------------------------------------

# Refuse to call unsafe functions from the schema, which another program may have changed.
DISTRUST_SCHEMA: Final = "PRAGMA trusted_schema = OFF"

# Turn off automatic WAL checkpoints: only the writer runs them, see file/wal.py.
NO_AUTOMATIC_CHECKPOINT: Final = "PRAGMA wal_autocheckpoint = 0"

# Sort in memory, not in temporary files.
SORT_IN_MEMORY: Final = "PRAGMA temp_store = MEMORY"

# Refuse every write on this connection.
READ_ONLY: Final = "PRAGMA query_only = ON"

# Use a write-ahead log, so that readers and the writer do not block each other.
USE_WAL: Final = "PRAGMA journal_mode = WAL"

# Leave the write-ahead log: the database's header then proves that a log beside the file belongs to another database.
USE_JOURNAL: Final = "PRAGMA journal_mode = DELETE"

# Keep the journal in memory: a kill during a write destroys the database.
ROLLBACK_IN_MEMORY: Final = "PRAGMA journal_mode = MEMORY"

# Write no journal, in a database that does not outlive the process.
NO_JOURNAL: Final = "PRAGMA journal_mode = OFF"

# Return from a commit when the disk has stored it.
SYNC_EACH_COMMIT: Final = "PRAGMA synchronous = FULL"

# Sync the WAL only before a WAL checkpoint: a power cut may lose the newest commits.
SYNC_EACH_CHECKPOINT: Final = "PRAGMA synchronous = NORMAL"

# How commits wait for the disk: 2 for FULL, 1 for NORMAL.
SYNC_LEVEL: Final = "PRAGMA synchronous"

# Never wait for the disk.
NO_SYNC: Final = "PRAGMA synchronous = OFF"

# Cache 16,000 KiB of pages, for the writer.
CACHE_16_MB: Final = "PRAGMA cache_size = -16000"

# Cache 32,000 KiB of pages, for the keys of a dry run.
CACHE_32_MB: Final = "PRAGMA cache_size = -32000"

# --- the file ---------------------------------------------------------------------------------------------------

# Copy the WAL into the database and truncate it; the first column is 1 if a reader or a writer prevented that.
WAL_CHECKPOINT: Final = "PRAGMA wal_checkpoint(TRUNCATE)"

# Return a number that changes when another connection commits.
DATA_VERSION: Final = "PRAGMA data_version"

# Return the names and files of the connection's databases.
DATABASES: Final = "PRAGMA database_list"

# Return the size of a page in bytes.
PAGE_SIZE: Final = "PRAGMA page_size"

# Return how many pages of the file are free.
FREE_PAGES: Final = "PRAGMA freelist_count"

# Rewrite the file without its free pages.
VACUUM: Final = "VACUUM"

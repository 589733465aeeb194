"""The SQL of reports: counts, turns, rates, history, failures by cause."""

from __future__ import annotations

from typing import Final

# When the next item becomes due that waits for a retry or a scheduled time.
NEXT_WAITING: Final = """
SELECT min(due_at) FROM items WHERE batch_id = ? AND status = 'pending' AND status <> 'completed' AND due_at > ?"""

# The number of items of a batch in each state. It is one statement, so that all counts come from one snapshot.
COUNTS: Final = """
SELECT
    (SELECT total FROM batches WHERE batch_id = :batch_id),
    (SELECT count(*) FROM items WHERE batch_id = :batch_id AND status = 'pending' AND status <> 'completed'),
    (SELECT count(*) FROM items
     WHERE batch_id = :batch_id AND status = 'pending' AND status <> 'completed' AND due_at > :now),
    (SELECT count(*) FROM items WHERE batch_id = :batch_id AND status = 'processing' AND status <> 'completed'),
    (SELECT count(*) FROM items WHERE batch_id = :batch_id AND status = 'failed' AND status <> 'completed'),
    (SELECT count(*) FROM items WHERE batch_id = :batch_id AND status = 'cancelled' AND status <> 'completed')"""

# Count a turn of a batch, add its attempts to the running minute, and return the turn's number; no row in another minute.
ADD_TURN: Final = """
UPDATE batches SET
    turns = turns + 1, minute_completed = min(minute_completed + ?, 9223372036854775807),
    minute_failed = min(minute_failed + ?, 9223372036854775807),
    minute_retried = min(minute_retried + ?, 9223372036854775807), minute_seconds = minute_seconds + ?
WHERE batch_id = ? AND minute = ? RETURNING turns"""

# Move the running minute of a batch to the table of minutes. It is there already if the clock was set back.
MOVE_MINUTE: Final = """
INSERT INTO minutes (batch_id, minute, completed, failed, retried, seconds)
SELECT batch_id, minute, minute_completed, minute_failed, minute_retried, minute_seconds FROM batches
WHERE batch_id = ? AND minute IS NOT NULL
ON CONFLICT DO UPDATE SET
    completed = min(completed + excluded.completed, 9223372036854775807),
    failed = min(failed + excluded.failed, 9223372036854775807),
    retried = min(retried + excluded.retried, 9223372036854775807), seconds = seconds + excluded.seconds"""

# Begin another minute of a batch.
BEGIN_MINUTE: Final = """
UPDATE batches SET minute = ?, minute_completed = 0, minute_failed = 0, minute_retried = 0, minute_seconds = 0
WHERE batch_id = ?"""

# Delete some of the minutes, of any batch, before a time.
DELETE_OLD_MINUTES: Final = """
DELETE FROM minutes WHERE (batch_id, minute) IN (
    SELECT batch_id, minute FROM minutes INDEXED BY minutes_oldest WHERE minute < ? ORDER BY minute LIMIT ?)"""

# The history of a batch between two times, in steps of some seconds; a step without attempts has no row.
HISTORY: Final = """
SELECT minute / :step * :step, sum(completed), sum(failed), sum(retried), sum(seconds) FROM history
WHERE batch_id = :batch_id AND minute >= :since AND minute < :until GROUP BY 1 ORDER BY 1"""

# Record the numbers of items that a turn settled, in place of the oldest recorded turn if the ring is full.
RECORD_TURN: Final = """
INSERT OR REPLACE INTO turns (batch_id, ring, number, at, completed, failed, retried, durations)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""

# The recorded turns of a batch, newest first.
RECENT_TURNS: Final = """
SELECT at, completed, failed, retried, durations FROM turns WHERE batch_id = ? ORDER BY number DESC"""

# Failed items by cause, the most frequent causes first. SQLite makes the groups from the index items_failed alone. Items that an
# operator set to failed have no fingerprint, so these items are grouped by error.
FAILURE_CAUSES: Final = """
SELECT cause, failed, id, error FROM (
    SELECT fingerprint AS cause, count(*) AS failed, min(seq) AS first FROM items INDEXED BY items_failed
    WHERE batch_id = ?1 AND status = 'failed' AND fingerprint IS NOT NULL GROUP BY fingerprint
    UNION ALL
    SELECT NULL, count(*), min(seq) FROM items INDEXED BY items_failed
    WHERE batch_id = ?1 AND status = 'failed' AND fingerprint IS NULL GROUP BY error
    ORDER BY 2 DESC, 3 LIMIT ?2) JOIN items ON seq = first
ORDER BY failed DESC, first"""

# The same, of the items with the given seqs.
FAILURE_CAUSES_OF_ITEMS: Final = """
SELECT cause, failed, id, error FROM (
    SELECT fingerprint AS cause, count(*) AS failed, min(seq) AS first FROM items INDEXED BY items_failed
    WHERE batch_id = ?1 AND status = 'failed' AND fingerprint IS NOT NULL AND seq IN (SELECT value FROM json_each(?3))
    GROUP BY fingerprint
    UNION ALL
    SELECT NULL, count(*), min(seq) FROM items INDEXED BY items_failed
    WHERE batch_id = ?1 AND status = 'failed' AND fingerprint IS NULL AND seq IN (SELECT value FROM json_each(?3))
    GROUP BY error
    ORDER BY 2 DESC, 3 LIMIT ?2) JOIN items ON seq = first
ORDER BY failed DESC, first"""

# Items whose processing started before a time and has not ended, the oldest first.
STUCK: Final = """
SELECT id, worker_id, started_at, attempts FROM items
WHERE batch_id = ? AND status = 'processing' AND status <> 'completed' AND started_at < ?
ORDER BY started_at LIMIT ?"""

# The items that may have killed their workers, the isolated ones first. Such an item ran in a slot of a lost worker, so there are
# few of them.
SUSPECTS: Final = """
SELECT id, suspect, crashes, 0, worker_id, started_at, due_at FROM items INDEXED BY items_suspect
WHERE batch_id = ?1 AND suspect > 0 AND status = 'pending'
UNION ALL
SELECT id, suspect, crashes, 1, worker_id, started_at, due_at FROM items
WHERE batch_id = ?1 AND status = 'processing' AND status <> 'completed' AND suspect > 0
ORDER BY 2 DESC LIMIT ?2"""

# The start times of the newest items in processing.
PROCESSING_STARTS: Final = """
SELECT started_at FROM items
WHERE batch_id = ? AND status = 'processing' AND status <> 'completed' ORDER BY seq DESC LIMIT ?"""

# --- failures and their causes, for operators --------------------------------------------------------------------

# The newest failures that ended an item: the last failure of each item that is failed. Tracebacks are left out, because the
# one-line output does not show them. Only the newest 10,000 failures of the file are searched; with a list of batch ids, only
# those of these batches.
NEWEST_FAILURES: Final = """
SELECT batches.name, id, attempt, failed_at, error_type, message, '', fingerprint, started_at, duration
FROM failures CROSS JOIN batches ON batches.batch_id = failures.batch_id
WHERE failure_id IN (
    SELECT failure_id FROM (SELECT failure_id, batch_id, id FROM failures ORDER BY failure_id DESC LIMIT 10000) AS newest
    WHERE (?1 IS NULL OR batch_id IN (SELECT value FROM json_each(?1)))
        AND EXISTS (SELECT 1 FROM items
                    WHERE items.batch_id = newest.batch_id AND items.id = newest.id AND items.status = 'failed')
        AND failure_id = (SELECT max(last.failure_id) FROM failures AS last
                          WHERE last.batch_id = newest.batch_id AND last.id = newest.id)
    LIMIT ?2)
ORDER BY failure_id DESC"""

# Whether a batch has more causes of failed attempts than a number.
HAS_MANY_CAUSES: Final = "SELECT EXISTS (SELECT 1 FROM causes WHERE batch_id = ? LIMIT 1 OFFSET ?)"

# The number of failed attempts of each cause.
ATTEMPTS_BY_CAUSE: Final = "SELECT fingerprint, attempts FROM causes WHERE batch_id = ? AND attempts > 0"

# The number of failed items of each cause, for few causes: each is a jump to the next fingerprint in the index, and a count of
# its range. This takes half of the time of GROUP BY, which compares the fingerprint of each entry.
ITEMS_BY_CAUSE: Final = """
WITH RECURSIVE causes (fingerprint) AS (
    SELECT (SELECT fingerprint FROM items INDEXED BY items_failed
            WHERE batch_id = ?1 AND status = 'failed' AND fingerprint IS NOT NULL ORDER BY fingerprint LIMIT 1)
    UNION ALL
    SELECT (SELECT items.fingerprint FROM items INDEXED BY items_failed
            WHERE batch_id = ?1 AND status = 'failed' AND items.fingerprint > causes.fingerprint
            ORDER BY items.fingerprint LIMIT 1)
    FROM causes WHERE fingerprint IS NOT NULL)
SELECT fingerprint, (SELECT count(*) FROM items INDEXED BY items_failed
                     WHERE batch_id = ?1 AND status = 'failed' AND items.fingerprint = causes.fingerprint)
FROM causes WHERE fingerprint IS NOT NULL"""

# The same for many causes.
ITEMS_BY_MANY_CAUSES: Final = """
SELECT fingerprint, count(*) FROM items INDEXED BY items_failed
WHERE batch_id = ? AND status = 'failed' AND fingerprint IS NOT NULL GROUP BY fingerprint"""

# The number of failed items of each error that has no fingerprint, because an operator set the items to failed.
ITEMS_BY_ERROR: Final = """
SELECT error, count(*) FROM items INDEXED BY items_failed
WHERE batch_id = ? AND status = 'failed' AND fingerprint IS NULL GROUP BY error"""

# A failed item of a cause, or of an error without a fingerprint.
ITEM_OF_CAUSE: Final = """
SELECT id, error FROM items INDEXED BY items_failed
WHERE batch_id = ? AND status = 'failed' AND fingerprint IS ?2 AND (?2 IS NOT NULL OR error IS ?3) LIMIT 1"""

# The time of the first failed attempt of a cause.
FIRST_OF_CAUSE: Final = """
SELECT failed_at FROM failures INDEXED BY failures_of_cause
WHERE batch_id = ? AND fingerprint = ? ORDER BY failed_at LIMIT 1"""

# The failed attempts of a cause in each minute from a time on, among the newest ones.
MINUTES_OF_CAUSE: Final = """
SELECT substr(failed_at, 1, 16), count(*) FROM (
    SELECT failed_at FROM failures INDEXED BY failures_of_cause
    WHERE batch_id = ? AND fingerprint = ? AND failed_at >= ? ORDER BY failed_at DESC LIMIT ?) GROUP BY 1"""

# The newest failed attempt of a cause, with the end of its traceback, which names the place.
NEWEST_OF_CAUSE: Final = """
SELECT failed_at, id, error_type, message, substr(traceback, -4000) FROM failures INDEXED BY failures_of_cause
WHERE batch_id = ? AND fingerprint = ? ORDER BY failed_at DESC LIMIT 1"""

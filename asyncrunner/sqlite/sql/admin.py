"""The SQL of operators: read items and their failures, change many items while workers run, and check a file.

A statement that reads many rows names its index, so that its plan never depends on SQLite's statistics of the file.
"""

from __future__ import annotations

from typing import Final

# --- reading items -----------------------------------------------------------------------------------------------
# :pattern is a LIKE pattern for the error, or NULL; :exact is the same text as a fingerprint. :before is a time, or NULL.
# An item's age counts from its latest change: from its end, from its start if it is in processing, otherwise from its arrival.

# Items with any status, or the completed ones: a scan of the table in input order.
LIST: Final = """
SELECT seq, id, status, attempts, crashes, priority, created_at, due_at, started_at, completed_at, worker_id, error
FROM items NOT INDEXED
WHERE seq > :after AND seq <= :newest AND batch_id = :batch_id AND (:status IS NULL OR status = :status)
    AND (:pattern IS NULL OR fingerprint = :exact OR error LIKE :pattern ESCAPE '\\')
    AND (:before IS NULL
        OR coalesce(completed_at, CASE status WHEN 'processing' THEN started_at END, created_at) < :before)
ORDER BY seq LIMIT :limit"""

# The same, the newest items first, down to a seq.
LIST_NEWEST: Final = """
SELECT seq, id, status, attempts, crashes, priority, created_at, due_at, started_at, completed_at, worker_id, error
FROM items NOT INDEXED
WHERE seq < :after AND seq <= :newest AND seq > :oldest AND batch_id = :batch_id AND (:status IS NULL OR status = :status)
    AND (:pattern IS NULL OR fingerprint = :exact OR error LIKE :pattern ESCAPE '\\')
    AND (:before IS NULL
        OR coalesce(completed_at, CASE status WHEN 'processing' THEN started_at END, created_at) < :before)
ORDER BY seq DESC LIMIT :limit"""

# The first item after a seq, with its arrival time.
NEXT_ARRIVAL: Final = "SELECT seq, created_at FROM items WHERE seq > ? ORDER BY seq LIMIT 1"

# Items with a status other than completed: a range of the index, which gives the first items in input order without a read of
# the rows.
LIST_OPEN: Final = """
SELECT seq, id, status, attempts, crashes, priority, created_at, due_at, started_at, completed_at, worker_id, error
FROM items WHERE seq IN (
    SELECT seq FROM items INDEXED BY items_open
    WHERE batch_id = :batch_id AND status = :status AND status <> 'completed' AND seq > :after
        AND (:pattern IS NULL OR fingerprint = :exact OR error LIKE :pattern ESCAPE '\\')
        AND (:before IS NULL
            OR coalesce(completed_at, CASE status WHEN 'processing' THEN started_at END, created_at) < :before)
    ORDER BY seq LIMIT :limit)
ORDER BY seq"""

# The same, the newest items first.
LIST_OPEN_NEWEST: Final = """
SELECT seq, id, status, attempts, crashes, priority, created_at, due_at, started_at, completed_at, worker_id, error
FROM items WHERE seq IN (
    SELECT seq FROM items INDEXED BY items_open
    WHERE batch_id = :batch_id AND status = :status AND status <> 'completed' AND seq < :after
        AND (:pattern IS NULL OR fingerprint = :exact OR error LIKE :pattern ESCAPE '\\')
        AND (:before IS NULL
            OR coalesce(completed_at, CASE status WHEN 'processing' THEN started_at END, created_at) < :before)
    ORDER BY seq DESC LIMIT :limit)
ORDER BY seq DESC"""

# Failed items by their error, which the index contains.
LIST_FAILED_LIKE: Final = """
SELECT seq, id, status, attempts, crashes, priority, created_at, due_at, started_at, completed_at, worker_id, error
FROM items WHERE seq IN (
    SELECT seq FROM items INDEXED BY items_failed
    WHERE batch_id = :batch_id AND status = 'failed' AND seq > :after
        AND (fingerprint = :exact OR error LIKE :pattern ESCAPE '\\')
        AND (:before IS NULL OR coalesce(completed_at, created_at) < :before)
    ORDER BY seq LIMIT :limit)
ORDER BY seq"""

# The same, the newest items first.
LIST_FAILED_LIKE_NEWEST: Final = """
SELECT seq, id, status, attempts, crashes, priority, created_at, due_at, started_at, completed_at, worker_id, error
FROM items WHERE seq IN (
    SELECT seq FROM items INDEXED BY items_failed
    WHERE batch_id = :batch_id AND status = 'failed' AND seq < :after
        AND (fingerprint = :exact OR error LIKE :pattern ESCAPE '\\')
        AND (:before IS NULL OR coalesce(completed_at, created_at) < :before)
    ORDER BY seq DESC LIMIT :limit)
ORDER BY seq DESC"""

# Whether each item of a list contains a text, in its id, payload, result or error, and how many bytes were searched; the newest
# items first. A large result, which is stored in pieces, is not searched.
SEARCH: Final = """
SELECT
    seq,
    id LIKE :pattern ESCAPE '\\' OR payload LIKE :pattern ESCAPE '\\' OR coalesce(result LIKE :pattern ESCAPE '\\', 0)
        OR coalesce(error LIKE :pattern ESCAPE '\\', 0),
    length(CAST(payload AS BLOB)) + coalesce(length(CAST(result AS BLOB)), 0)
FROM items WHERE seq IN (SELECT value FROM json_each(:seqs)) ORDER BY seq DESC"""

# The seq of an item by its id.
SEQ_OF_ID: Final = "SELECT seq FROM items WHERE batch_id = ? AND id = ?"

# One item without its JSON texts, which are read in part; first its seq, and the claim of the pieces of a large result.
ITEM: Final = """
SELECT
    seq, coalesce(result_claim, claim), id, status, attempts, crashes, priority, permanent, suspect, created_at, due_at,
    started_at, completed_at, worker_id, error, fingerprint, put_offs, put_off_at
FROM items WHERE batch_id = ? AND id = ?"""

# Which JSON texts an item has; typeof() reads no text.
TEXTS_OF_ITEM: Final = """
SELECT
    typeof(payload) = 'text', typeof(rerun_payload) = 'text', typeof(result) = 'text', typeof(checkpoint) = 'text'
FROM items WHERE seq = ?"""

# The newest failed attempts of one item.
FAILURES_OF_ITEM: Final = """
SELECT id, attempt, failed_at, error_type, message, traceback, fingerprint, started_at, duration
FROM failures INDEXED BY failures_of_item
WHERE batch_id = ? AND id = ? ORDER BY failure_id DESC LIMIT ?"""

# The names of the batches that have an item with an id.
BATCHES_WITH_ID: Final = """
SELECT name FROM batches WHERE EXISTS (SELECT 1 FROM items WHERE items.batch_id = batches.batch_id AND items.id = ?)
ORDER BY batch_id"""

# The ids just after an id that does not exist, in the order of ids.
IDS_FROM: Final = "SELECT id FROM items WHERE batch_id = ? AND id >= ? ORDER BY id LIMIT ?"

# The newest ids of a batch, among the items of the file after a number.
NEWEST_IDS: Final = "SELECT id FROM items WHERE +batch_id = ? AND seq > ? ORDER BY seq DESC LIMIT ?"

# The ids just before an id that does not exist, in reverse order.
IDS_BEFORE: Final = "SELECT id FROM items WHERE batch_id = ? AND id < ? ORDER BY id DESC LIMIT ?"

# A page of items in input order, with the columns of an export and each result joined from its pieces. A text in place of
# a result reports missing pieces.
EXPORT: Final = """
SELECT
    seq, id, status, attempts, crashes, priority, created_at, due_at, started_at, completed_at, payload,
    CASE WHEN result = '' THEN (
        SELECT CASE WHEN count(*) = max(piece) + 1 THEN group_concat(text, '')
            ELSE 'the result is incomplete: rows of result_pieces were deleted' END
        FROM (
            SELECT piece, text FROM result_pieces
            WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim)
            ORDER BY piece)
    ) ELSE result END,
    error, fingerprint, checkpoint, put_offs, rerun_payload
FROM items NOT INDEXED
WHERE seq > ? AND batch_id = ? AND (?3 IS NULL OR status IN (SELECT value FROM json_each(?3))) ORDER BY seq LIMIT ?"""

# The items of a list of seqs, in its order, with the columns of EXPORT; only those that have one of the statuses, unless the
# statuses are NULL.
EXPORT_SELECTED: Final = """
SELECT
    items.seq, items.id, status, attempts, crashes, priority, created_at, due_at, started_at, completed_at, payload,
    CASE WHEN result = '' THEN (
        SELECT CASE WHEN count(*) = max(piece) + 1 THEN group_concat(text, '')
            ELSE 'the result is incomplete: rows of result_pieces were deleted' END
        FROM (
            SELECT piece, text FROM result_pieces
            WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim)
            ORDER BY piece)
    ) ELSE result END,
    error, fingerprint, checkpoint, put_offs, rerun_payload
FROM json_each(?1) AS selected CROSS JOIN items ON items.seq = selected.value
WHERE ?2 IS NULL OR status IN (SELECT value FROM json_each(?2)) ORDER BY selected.key"""

# The ids of the items of a list of seqs, in its order; only of those that have one of the statuses, unless these are NULL.
IDS_OF_SEQS: Final = """
SELECT items.id FROM json_each(?1) AS selected CROSS JOIN items ON items.seq = selected.value
WHERE ?2 IS NULL OR status IN (SELECT value FROM json_each(?2)) ORDER BY selected.key"""

# --- reading work ------------------------------------------------------------------------------------------------

# How many items each worker holds, in one batch or in all.
HOLDINGS: Final = """
SELECT worker_id, count(*) FROM batches CROSS JOIN items INDEXED BY items_open
    ON items.batch_id = batches.batch_id AND items.status = 'processing' AND items.status <> 'completed'
WHERE ?1 IS NULL OR batches.batch_id = ?1 GROUP BY worker_id"""

# The first item, in input order, that is pending without a due time: a jump in the index to the first item of each priority, of
# the 1,000 highest ones. Reading all entries of a million pending items takes 137 ms.
OLDEST_PENDING: Final = """
WITH RECURSIVE firsts (priority, seq) AS (
    SELECT * FROM (
        SELECT priority, seq FROM items INDEXED BY items_open
        WHERE batch_id = ?1 AND status = 'pending' AND status <> 'completed' AND due_at IS NULL
        ORDER BY priority DESC, seq LIMIT 1)
    UNION ALL
    SELECT items.priority, items.seq FROM firsts CROSS JOIN items ON items.seq = (
        SELECT next.seq FROM items AS next INDEXED BY items_open
        WHERE next.batch_id = ?1 AND next.status = 'pending' AND next.status <> 'completed' AND next.due_at IS NULL
            AND next.priority < firsts.priority
        ORDER BY next.priority DESC, next.seq LIMIT 1)
    LIMIT 1000)
SELECT id, created_at FROM items WHERE seq = (SELECT min(seq) FROM firsts)"""

# --- changing: items are selected first, without a lock, and then changed in small transactions -------------------

# The failed items whose error matches a pattern, or whose fingerprint equals a text.
FAILED_SEQS_LIKE: Final = """
SELECT seq FROM items INDEXED BY items_failed
WHERE batch_id = :batch_id AND status = 'failed' AND (fingerprint = :exact OR error LIKE :pattern ESCAPE '\\')"""

# The items with a status other than completed whose error matches a pattern, or whose fingerprint equals a text.
OPEN_SEQS_LIKE: Final = """
SELECT seq FROM items INDEXED BY items_open
WHERE batch_id = :batch_id AND status = :status AND status <> 'completed'
    AND (fingerprint = :exact OR error LIKE :pattern ESCAPE '\\')"""

# The pending items of a list that arrived before a time.
PENDING_BEFORE: Final = """
SELECT seq FROM items WHERE seq IN (SELECT value FROM json_each(?)) AND status = 'pending' AND created_at < ?"""

# The next items in input order that have one of the statuses, whose latest change was before a time, and whose error matches a
# pattern.
NEXT_SELECTED: Final = """
SELECT seq, status FROM items NOT INDEXED
WHERE seq > :after AND batch_id = :batch_id AND status IN (SELECT value FROM json_each(:statuses))
    AND (:pattern IS NULL OR fingerprint = :exact OR error LIKE :pattern ESCAPE '\\')
    AND coalesce(completed_at, CASE status WHEN 'processing' THEN started_at END, created_at) < :before
ORDER BY seq LIMIT :limit"""

# Pause a batch.
PAUSE: Final = "UPDATE batches SET paused = 1 WHERE batch_id = ? AND paused = 0"

# End a batch's pause, its stop by a guardrail and its cool-down.
RESUME: Final = """
UPDATE batches SET paused = 0, stopped = NULL, cooldown_until = NULL
WHERE batch_id = ?1 AND (paused OR stopped IS NOT NULL OR cooldown_until > ?2)"""

# Set how many handlers of a batch run at the same time in one worker.
SET_CONCURRENCY: Final = "UPDATE batches SET concurrency = ? WHERE batch_id = ?"

# --- a backup ----------------------------------------------------------------------------------------------------

# Release the items that workers hold, as if each worker had left: the original's workers do not work on the copy.
RELEASE_HELD: Final = """
UPDATE items SET status = 'pending', worker_id = NULL, started_at = NULL, attempts = max(attempts - 1, 0)
WHERE seq IN (
    SELECT items.seq FROM batches CROSS JOIN items INDEXED BY items_open
        ON items.batch_id = batches.batch_id AND items.status = 'processing' AND items.status <> 'completed'
    WHERE items.worker_id IN (SELECT worker_id FROM workers WHERE ended_at IS NULL))"""

# The seqs of those held items that run once more with another payload. No worker will end their attempts on the copy.
HELD_RERUNS: Final = """
SELECT json_group_array(items.seq) FROM batches CROSS JOIN items INDEXED BY items_open
    ON items.batch_id = batches.batch_id AND items.status = 'processing' AND items.status <> 'completed'
WHERE items.rerun_payload IS NOT NULL AND items.worker_id IN (SELECT worker_id FROM workers WHERE ended_at IS NULL)"""

# Record that all workers have left.
END_WORKERS: Final = "UPDATE workers SET ended_at = ? WHERE ended_at IS NULL"

# For a backup of one batch: delete the rows of all others, and all workers.
DELETE_OTHER_BATCHES: Final = (
    "DELETE FROM failures WHERE batch_id <> ?",
    "DELETE FROM turns WHERE batch_id <> ?",
    "DELETE FROM minutes WHERE batch_id <> ?",
    "DELETE FROM items WHERE batch_id <> ?",
    "DELETE FROM batches WHERE batch_id <> ?",
    "DELETE FROM copies WHERE batch_id <> ?",
    "DELETE FROM workers",
)

# --- a dry run: the keys of its input are in a temporary database -------------------------------------------------

# Create the table of the keys read so far, each with a digest of its payload.
CREATE_SEEN_KEYS: Final = "CREATE TABLE seen (key TEXT PRIMARY KEY, payload BLOB NOT NULL) WITHOUT ROWID"

# The recorded keys that are in a list.
SEEN_KEYS: Final = "SELECT key, payload FROM seen WHERE key IN (SELECT value FROM json_each(?))"

# Record a key.
INSERT_SEEN_KEY: Final = "INSERT INTO seen (key, payload) VALUES (?, ?)"

# The items of the store that have a key of a list, and whether a run with a version would run them again because another version
# completed them.
KNOWN_ITEMS: Final = """
SELECT
    id, coalesce(rerun_payload, payload), status, permanent, attempts,
    ?3 IS NOT NULL AND status = 'completed' AND (
        SELECT batches.version IS NOT ?3 OR items.version <> version_number FROM batches WHERE batches.batch_id = items.batch_id)
FROM items
WHERE batch_id = ?1 AND id IN (SELECT value FROM json_each(?2))"""

# How many items a version with another number completed; an interrupted change of the version leaves some.
OF_OTHER_VERSION: Final = """
SELECT count(*) FROM items NOT INDEXED WHERE batch_id = ? AND status = 'completed' AND version <> ?"""

# How many failed items have attempts left and no permanent error.
REOPENABLE: Final = """
SELECT count(*) FROM items
WHERE batch_id = ? AND status = 'failed' AND status <> 'completed' AND permanent = 0 AND attempts < ?"""

# --- checking a file ---------------------------------------------------------------------------------------------
# ``asyncrunner doctor`` reads these rows, and ``doctor --fix`` corrects totals.

# Tables, indexes and triggers with the text that created them.
SCHEMA_OBJECTS: Final = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"

# All tables, indexes, triggers and views, with the table of each, without SQLite's own.
SCHEMA_NAMES: Final = "SELECT type, name, tbl_name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY rowid"

# Indexes and triggers with the text that creates them again.
INDEXES_AND_TRIGGERS: Final = """
SELECT type, name, sql FROM sqlite_schema WHERE type IN ('index', 'trigger') AND sql IS NOT NULL"""

# Check the pages of the file. Return at most 10 messages, because a damaged file has thousands.
QUICK_CHECK: Final = "PRAGMA quick_check(10)"

# Check the pages, and each index against its table, which takes minutes for a large file. Return at most 10 messages.
INTEGRITY_CHECK: Final = "PRAGMA integrity_check(10)"

# Rows that refer to a missing row.
FOREIGN_KEY_CHECK: Final = "PRAGMA foreign_key_check"

# Batches whose stored total differs from their number of items.
WRONG_TOTALS: Final = """
SELECT name, total, counted FROM (
    SELECT name, total, (SELECT count(*) FROM items WHERE items.batch_id = batches.batch_id) AS counted
    FROM batches WHERE ?1 IS NULL OR name = ?1)
WHERE total <> counted"""

# For each batch, how many causes the table causes counts otherwise than the table failures.
WRONG_CAUSES: Final = """
SELECT batch_id, coalesce((SELECT name FROM batches WHERE batches.batch_id = wrong.batch_id), ''), count(*) FROM (
    SELECT batch_id, fingerprint FROM (
        SELECT batch_id, fingerprint, attempts FROM causes
        UNION ALL
        SELECT batch_id, fingerprint, -count(*) FROM failures INDEXED BY failures_of_cause GROUP BY batch_id, fingerprint)
    GROUP BY batch_id, fingerprint HAVING sum(attempts) <> 0) AS wrong
WHERE ?1 IS NULL OR batch_id = (SELECT batch_id FROM batches WHERE name = ?1)
GROUP BY batch_id"""

# Delete the counted causes of a batch.
CLEAR_CAUSES: Final = "DELETE FROM causes WHERE batch_id = ?"

# Count the failed attempts of a batch by cause.
COUNT_CAUSES: Final = """
INSERT INTO causes SELECT batch_id, fingerprint, count(*) FROM failures INDEXED BY failures_of_cause
WHERE batch_id = ? GROUP BY fingerprint"""

# Items whose claim is so large that a person wrote it.
HUGE_CLAIMS: Final = """
SELECT name, id, claim FROM items NOT INDEXED JOIN batches USING (batch_id) WHERE claim >= ?"""

# Items whose result lacks pieces. If only the last pieces are missing, their number is unknown, so such items are not found.
INCOMPLETE_RESULTS: Final = """
SELECT name, id FROM items NOT INDEXED JOIN batches USING (batch_id)
WHERE result = '' AND status <> 'processing' AND (
    SELECT count(*) = 0 OR count(*) <> max(piece) + 1 FROM result_pieces
    WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim))"""

# Correct the stored total of a batch.
CORRECT_TOTAL: Final = """
UPDATE batches SET total = (SELECT count(*) FROM items WHERE items.batch_id = batches.batch_id) WHERE name = ?"""

# Workers that have not left, with the number of items that each holds.
WORKERS_AND_HOLDINGS: Final = """
SELECT worker_id, host, pid,
    (SELECT count(*) FROM batches CROSS JOIN items
        ON items.batch_id = batches.batch_id AND items.status = 'processing' AND items.status <> 'completed'
     WHERE items.worker_id = workers.worker_id)
FROM workers WHERE ended_at IS NULL ORDER BY started_at"""

# Batches that start no items, because an operator paused them or a guardrail stopped them.
PAUSED_OR_STOPPED: Final = """
SELECT name, paused, stopped FROM batches
WHERE (paused OR stopped IS NOT NULL) AND (?1 IS NULL OR name = ?1)
    AND batch_id NOT IN (SELECT batch_id FROM copies WHERE finished_at IS NULL)"""

"""The SQL of operators' reports: batches, their state and history, workers, failures and their causes.

Statements about several batches read each of them by an index, in the order of a list of batch ids.
"""

from __future__ import annotations

from typing import Final

# --- batches -----------------------------------------------------------------------------------------------------

# All batches, in the order of their creation, with their live controls, and the source of a copy that is not complete.
BATCHES: Final = """
SELECT batch_id, name, handler, utc_text(created_at), paused, utc_text(cooldown_until), concurrency, stopped,
    (SELECT coalesce(sum(put_offs), 0)::bigint FROM tallies WHERE tallies.batch_id = batches.batch_id), version,
    (SELECT source FROM copies WHERE copies.batch_id = batches.batch_id AND finished_at IS NULL)
FROM batches ORDER BY batch_id"""

# The number of items of batches in each state, in the order of Counts, and when the next item becomes due that waits.
COUNTS: Final = """
SELECT asked.batch_id, tally.pending,
    (SELECT count(*) FROM waiting WHERE waiting.batch_id = asked.batch_id AND due_at > to_timestamp($2))
    + (SELECT count(*) FROM suspects WHERE suspects.batch_id = asked.batch_id AND due_at > to_timestamp($2)),
    tally.processing, tally.completed, tally.failed, tally.cancelled,
    utc_text(least(
        (SELECT min(due_at) FROM waiting WHERE waiting.batch_id = asked.batch_id AND due_at > to_timestamp($2)),
        (SELECT min(due_at) FROM suspects WHERE suspects.batch_id = asked.batch_id AND due_at > to_timestamp($2))))
FROM unnest($1::bigint[]) AS asked (batch_id) CROSS JOIN LATERAL (
    SELECT coalesce(sum(pending), 0)::bigint AS pending, coalesce(sum(processing), 0)::bigint AS processing,
        coalesce(sum(completed), 0)::bigint AS completed, coalesce(sum(failed), 0)::bigint AS failed,
        coalesce(sum(cancelled), 0)::bigint AS cancelled
    FROM tallies WHERE tallies.batch_id = asked.batch_id) AS tally"""

# The number of items of one batch in each state.
TALLY: Final = """
SELECT coalesce(sum(pending), 0)::bigint AS pending, coalesce(sum(processing), 0)::bigint AS processing,
    coalesce(sum(completed), 0)::bigint AS completed, coalesce(sum(failed), 0)::bigint AS failed,
    coalesce(sum(cancelled), 0)::bigint AS cancelled
FROM tallies WHERE batch_id = $1"""

# The recorded turns of batches, newest first.
RECENT_TURNS: Final = """
SELECT asked.batch_id, recent.* FROM unnest($1::bigint[]) AS asked (batch_id) CROSS JOIN LATERAL (
    SELECT extract(epoch FROM at)::double precision, completed, failed, retried, durations FROM turns
    WHERE turns.batch_id = asked.batch_id ORDER BY number DESC LIMIT $2) AS recent"""

# The history of batches between two times, in steps of some seconds; a step without attempts has no row.
HISTORY: Final = """
SELECT batch_id, minute / $4::bigint * $4::bigint, least(sum(completed), 9223372036854775807)::bigint,
    least(sum(failed), 9223372036854775807)::bigint, least(sum(retried), 9223372036854775807)::bigint, sum(seconds)
FROM history WHERE batch_id = ANY ($1::bigint[]) AND minute >= $2 AND minute < $3 GROUP BY 1, 2 ORDER BY 1, 2"""

# The first item of batches, in input order, that is pending without a due time: a jump in the index to the first item of each
# priority, of the 1,000 highest ones.
OLDEST_PENDING: Final = """
SELECT asked.batch_id, items.id, utc_text(items.created_at)
FROM unnest($1::bigint[]) AS asked (batch_id) CROSS JOIN LATERAL (
    WITH RECURSIVE firsts (rank, seq) AS (
        (SELECT rank, seq FROM ready WHERE ready.batch_id = asked.batch_id ORDER BY rank, seq LIMIT 1)
        UNION ALL
        SELECT next.rank, next.seq FROM firsts CROSS JOIN LATERAL (
            SELECT rank, seq FROM ready WHERE ready.batch_id = asked.batch_id AND ready.rank > firsts.rank
            ORDER BY rank, seq LIMIT 1) AS next)
    SELECT min(seq) AS seq FROM (
        SELECT seq FROM (SELECT seq FROM firsts LIMIT 1000) AS some_firsts
        UNION ALL
        SELECT seq FROM suspects WHERE suspects.batch_id = asked.batch_id AND due_at IS NULL) AS candidates) AS oldest
JOIN items ON items.seq = oldest.seq"""

# --- items in processing -----------------------------------------------------------------------------------------

# The start times of the newest items in processing of batches.
PROCESSING_STARTS: Final = """
SELECT batch_id, utc_text(started_at) FROM (
    SELECT held.batch_id, started_at, held.seq, row_number() OVER (PARTITION BY held.batch_id ORDER BY held.seq DESC) AS position
    FROM held JOIN items ON items.seq = held.seq WHERE held.batch_id = ANY ($1::bigint[])) AS numbered
WHERE position <= $2 ORDER BY batch_id, position"""

# Items of batches whose processing started before a time and has not ended, the oldest of each batch first.
STUCK: Final = """
SELECT numbered.batch_id, batches.name, id, worker_id, utc_text(started_at), attempts FROM (
    SELECT held.batch_id, items.id, items.worker_id, started_at, attempts,
        row_number() OVER (PARTITION BY held.batch_id ORDER BY started_at, held.seq) AS position
    FROM held JOIN items ON items.seq = held.seq
    WHERE held.batch_id = ANY ($1::bigint[]) AND started_at < to_timestamp($2)) AS numbered
JOIN batches ON batches.batch_id = numbered.batch_id
WHERE position <= $3 ORDER BY numbered.batch_id, position"""

# The items of all batches that may have killed their workers, the isolated ones of each batch first. Such an item was held by a
# lost worker, so there are few of them.
SUSPECTS: Final = """
SELECT batch_id, id, suspect, crashes, is_running, worker_id, utc_text(started_at), utc_text(due_at) FROM (
    SELECT *, row_number() OVER (PARTITION BY batch_id ORDER BY suspect DESC, is_running, seq) AS position FROM (
        SELECT items.batch_id, items.seq, id, items.suspect, crashes, false AS is_running, worker_id, started_at, items.due_at
        FROM suspects JOIN items ON items.seq = suspects.seq
        UNION ALL
        SELECT items.batch_id, items.seq, id, suspect, crashes, true, items.worker_id, started_at, due_at
        FROM held JOIN items ON items.seq = held.seq WHERE suspect > 0) AS found) AS numbered
WHERE position <= $1 ORDER BY batch_id, position"""

# --- workers -----------------------------------------------------------------------------------------------------

# The workers that have not left, the oldest first, with the number of items that each holds, of one batch or of all, and whether
# a session holds its liveness lock.
WORKERS: Final = """
WITH holdings AS MATERIALIZED (
    SELECT worker_id, count(*) AS items FROM held WHERE $1::bigint IS NULL OR batch_id = $1 GROUP BY worker_id)
SELECT
    worker_id, host, pid, role, batches, workers.lock_key IN (SELECT lock_key FROM liveness_locks),
    utc_text(started_at), utc_text(last_heartbeat), coalesce(holdings.items, 0), items_processed, items_failed, loop_blocks,
    longest_block, slots, slots_in_use, throttles, beats::text
FROM workers LEFT JOIN holdings USING (worker_id)
WHERE ended_at IS NULL AND ($1::bigint IS NULL OR holdings.items > 0) ORDER BY workers.started_at, worker_id"""

# The pulse of each worker whose lock is free. The statement writes as a heartbeat does, so it waits where a heartbeat waits.
PULSES: Final = """
UPDATE workers SET stop = stop
WHERE ended_at IS NULL AND workers.lock_key NOT IN (SELECT lock_key FROM liveness_locks)
RETURNING worker_id, beats::text"""

# Whether an item in processing, of one batch or of any, is held by no worker that has not left.
HAS_ORPHANS: Final = """
SELECT EXISTS (
    SELECT FROM held
    WHERE ($1::bigint IS NULL OR batch_id = $1)
        AND NOT EXISTS (SELECT FROM workers WHERE workers.worker_id = held.worker_id AND workers.ended_at IS NULL))"""

# --- failures and their causes -----------------------------------------------------------------------------------

# The newest failures that ended an item: the last failure of each item that is failed. Tracebacks are left out, because the
# one-line output does not show them. Only the newest 10,000 failures of the store are searched; with a list of batch ids, only
# those of these batches. Scalar subqueries: the planner would join whole tables, and walk over the failures of all items without
# "+ 0".
NEWEST_FAILURES: Final = """
SELECT (SELECT name FROM batches WHERE batches.batch_id = newest.batch_id), id, attempt, utc_text(failed_at), error_type, message,
    '', fingerprint, utc_text(started_at), duration
FROM (SELECT * FROM failures ORDER BY failure_id DESC LIMIT 10000) AS newest
WHERE ($1::bigint[] IS NULL OR batch_id = ANY ($1))
    AND (SELECT status FROM items WHERE items.batch_id = newest.batch_id AND items.id = newest.id) = 'failed'
    AND failure_id = (SELECT max(last.failure_id + 0) FROM failures AS last
                      WHERE last.batch_id = newest.batch_id AND last.id = newest.id)
ORDER BY failure_id DESC LIMIT $2"""

# The number of failed attempts of each cause.
ATTEMPTS_BY_CAUSE: Final = """
SELECT fingerprint, sum(attempts)::bigint FROM causes WHERE batch_id = $1 GROUP BY fingerprint HAVING sum(attempts) > 0"""

# The number of failed items of each cause.
ITEMS_BY_CAUSE: Final = """
SELECT fingerprint, count(*) FROM ended
WHERE batch_id = $1 AND status = 'failed' AND fingerprint IS NOT NULL GROUP BY fingerprint"""

# The number of failed items of each error that has no fingerprint, because an operator set the items to failed.
ITEMS_BY_ERROR: Final = """
SELECT error, count(*) FROM ended JOIN items ON items.seq = ended.seq
WHERE ended.batch_id = $1 AND ended.status = 'failed' AND ended.fingerprint IS NULL GROUP BY error"""

# A failed item of a cause.
ITEM_OF_CAUSE: Final = """
SELECT id, error FROM ended JOIN items ON items.seq = ended.seq
WHERE ended.batch_id = $1 AND ended.status = 'failed' AND ended.fingerprint = $2 LIMIT 1"""

# A failed item of an error without a fingerprint.
ITEM_OF_ERROR: Final = """
SELECT id, error FROM ended JOIN items ON items.seq = ended.seq
WHERE ended.batch_id = $1 AND ended.status = 'failed' AND ended.fingerprint IS NULL AND error IS NOT DISTINCT FROM $2::text
ORDER BY ended.seq LIMIT 1"""

# The time of the first failed attempt of a cause.
FIRST_OF_CAUSE: Final = """
SELECT utc_text(failed_at) FROM failures WHERE batch_id = $1 AND fingerprint = $2 ORDER BY failed_at LIMIT 1"""

# The failed attempts of a cause in each minute from a time on, among the newest ones.
MINUTES_OF_CAUSE: Final = """
SELECT substr(utc_text(minute), 1, 16), count(*) FROM (
    SELECT date_trunc('minute', failed_at, 'UTC') AS minute FROM failures
    WHERE batch_id = $1 AND fingerprint = $2 AND failed_at >= $3 ORDER BY failed_at DESC LIMIT $4) AS newest GROUP BY minute"""

# The newest failed attempt of a cause, with the end of its traceback, which names the place.
NEWEST_OF_CAUSE: Final = """
SELECT utc_text(failed_at), id, error_type, message, right(traceback, 4000) FROM failures
WHERE batch_id = $1 AND fingerprint = $2 ORDER BY failed_at DESC LIMIT 1"""

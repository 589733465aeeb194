"""The SQL of workers: join, heartbeat, liveness, recovery, and times after the clock was set back."""

from __future__ import annotations

from typing import Final

# Insert a worker, and its turn mark. If a worker joins again, mark its row as active.
INSERT_WORKER: Final = """
WITH mark AS (INSERT INTO turn_marks (worker_id, turn) VALUES ($1, 0) ON CONFLICT DO NOTHING)
INSERT INTO workers (worker_id, lock_key, host, pid, process, role, batches, started_at, last_heartbeat)
VALUES ($1, $2, $3, $4, $5, $6, $7, to_timestamp($8), to_timestamp($8))
ON CONFLICT (worker_id) DO UPDATE SET ended_at = NULL, lost = false"""

# Record a heartbeat and the worker's statistics. Returns whether the worker had ended, the requested stop, the newest heartbeat
# before, and the server's time.
BEAT: Final = """
UPDATE workers SET
    last_heartbeat = to_timestamp($2), items_processed = $3, items_failed = $4, loop_blocks = $5, longest_block = $6, slots = $7,
    slots_in_use = $8, throttles = $9, beats = workers.beats + 1, ended_at = NULL, lost = false
FROM (
    SELECT ended_at IS NOT NULL AS had_ended,
        (SELECT extract(epoch FROM max(last_heartbeat))::double precision FROM workers) AS newest
    FROM workers WHERE worker_id = $1) AS before
WHERE worker_id = $1
RETURNING had_ended, stop, newest, extract(epoch FROM clock_timestamp())::double precision"""

# Show the other workers that a worker has acquired its lock again.
SHOW_LOCKED_AGAIN: Final = "UPDATE workers SET beats = beats + 1 WHERE worker_id = $1 AND ended_at IS NULL"

# Add up the tallies, see version_1/workers.sql.
FOLD: Final = "SELECT fold($1)"

# Acquire a liveness lock, which lasts as long as the session.
LOCK: Final = "SELECT pg_advisory_lock($1)"

# Release a liveness lock.
UNLOCK: Final = "SELECT pg_advisory_unlock($1)"

# When the server started. A restart frees every lock.
SERVER_START: Final = "SELECT pg_postmaster_start_time()"

# Notify the other programs of changed batches.
NOTIFY: Final = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"

# The other workers that have not left, with whether a session holds their liveness lock.
PEERS: Final = """
SELECT worker_id, beats::text, host, pid, workers.lock_key IN (SELECT lock_key FROM liveness_locks)
FROM workers WHERE ended_at IS NULL AND worker_id <> $1"""

# The other workers that have not left and run another version of a batch's handler, with whether their lock is held.
RIVALS: Final = """
SELECT worker_id, host, pid, role, version.value, workers.lock_key IN (SELECT lock_key FROM liveness_locks)
FROM workers CROSS JOIN LATERAL json_each_text(versions::json) AS version
WHERE ended_at IS NULL AND worker_id <> $1 AND version.key = $2 AND version.value <> $3 ORDER BY started_at"""

# Record the version of a batch's handler that a worker runs.
RECORD_VERSION: Final = """
UPDATE workers SET versions = (versions::jsonb || jsonb_build_object($2::text, $3::text))::text WHERE worker_id = $1"""

# Release the items of a worker and record that it has left, see version_1/workers.sql.
RELEASE: Final = "SELECT release_worker($1, $2)"

# Settle the items of a lost worker, see version_1/workers.sql.
RECOVER: Final = "SELECT recover_worker($1, $2, $3, $4) AS recovered"

# Settle orphaned items, see version_1/workers.sql.
RECOVER_ORPHANS: Final = "SELECT recover_orphans($1, $2) AS recovered"

# The items that a worker holds: the columns of a Claim, and started_at. Payload and checkpoint are empty, because recovery does
# not need them.
HELD_BY: Final = """
SELECT items.seq, items.batch_id, items.id, '', items.claim, items.attempts, items.crashes, NULL, items.put_off_at, NULL,
    items.suspect, extract(epoch FROM items.started_at)::double precision
FROM held JOIN items ON items.seq = held.seq
WHERE held.worker_id = $1 AND items.status = 'processing' ORDER BY items.seq"""

# The items in processing that no active worker holds, with the columns of HELD_BY.
ORPHANS: Final = """
SELECT items.seq, items.batch_id, items.id, '', items.claim, items.attempts, items.crashes, NULL, items.put_off_at, NULL,
    items.suspect, extract(epoch FROM items.started_at)::double precision
FROM held JOIN items ON items.seq = held.seq
WHERE items.status = 'processing'
    AND NOT EXISTS (SELECT FROM workers WHERE workers.worker_id = held.worker_id AND workers.ended_at IS NULL)
ORDER BY items.seq"""

# The number of other workers of the same process that died with this worker.
OTHER_WORKERS_LOST: Final = """
SELECT count(*) FROM workers AS lost JOIN workers AS other
    ON other.process = lost.process AND other.process <> '' AND other.worker_id <> lost.worker_id
WHERE lost.worker_id = $1 AND (other.ended_at IS NULL OR other.lost)"""

# When workers ran that have not ended before a time, with the names of their batches.
WORKER_SPANS: Final = """
SELECT batches, extract(epoch FROM started_at)::double precision, extract(epoch FROM last_heartbeat)::double precision,
    extract(epoch FROM ended_at)::double precision, lost
FROM workers WHERE coalesce(ended_at, last_heartbeat) >= to_timestamp($1)"""

# Delete the rows of workers that left or were lost long ago.
DELETE_OLD_WORKERS: Final = """
WITH old AS (DELETE FROM workers WHERE ended_at < to_timestamp($1) RETURNING worker_id)
DELETE FROM turn_marks USING old WHERE turn_marks.worker_id = old.worker_id"""

# After the clock was set back: move the due times of retries and put-offs earlier by the same time, if the attempt ended "in the
# future". Due times stay if an operator set them, or if the attempt ended after the change of the clock.
SET_BACK_RETRIES: Final = """
UPDATE items SET
    due_at = due_at - make_interval(secs => $2),
    put_off_at = CASE WHEN put_off_at > $1 THEN put_off_at - $2 ELSE put_off_at END
WHERE seq = ANY (ARRAY(
        SELECT seq FROM waiting WHERE due_at > to_timestamp($1) UNION SELECT seq FROM suspects WHERE due_at > to_timestamp($1)))
    AND status = 'pending' AND due_at > to_timestamp($1)
    AND (put_off_at > $1 OR (put_off_at IS NOT NULL AND started_at > to_timestamp($1))
        OR EXISTS (SELECT FROM failures
                   WHERE failures.batch_id = items.batch_id AND failures.id = items.id AND failed_at > to_timestamp($1)))"""

# After the clock was set back: move cool-downs and rate limits back.
SET_BACK_BATCHES: Final = """
UPDATE batches SET
    cooldown_until = CASE WHEN cooldown_until > to_timestamp($1) THEN cooldown_until - make_interval(secs => $2)
                     ELSE cooldown_until END,
    rate_spent = CASE WHEN rate_spent > $1 THEN rate_spent - $2 ELSE rate_spent END"""

# After the clock was set back: set the times of workers that are in the future to now.
SET_BACK_WORKERS: Final = """
UPDATE workers SET last_heartbeat = least(last_heartbeat, to_timestamp($1)), started_at = least(started_at, to_timestamp($1))"""

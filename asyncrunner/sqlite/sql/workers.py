"""The SQL of workers: join, heartbeat, recovery, and times after the clock was set back."""

from __future__ import annotations

from typing import Final

# Insert a worker. If a worker joins again, mark its row as active.
INSERT_WORKER: Final = """
INSERT INTO workers (worker_id, host, pid, process, role, batches, started_at, last_heartbeat) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (worker_id) DO UPDATE SET ended_at = NULL, lost = 0"""

# Record a heartbeat and the worker's statistics; return the requested stop.
BEAT: Final = """
UPDATE workers SET
    last_heartbeat = ?, items_processed = ?, items_failed = ?, loop_blocks = ?, longest_block = ?, slots = ?, slots_in_use = ?,
    throttles = ?, beats = beats + 1, ended_at = NULL, lost = 0
WHERE worker_id = ?
RETURNING stop"""

# Request a stop of workers. An earlier request for a stronger stop stays.
REQUEST_STOP: Final = """
UPDATE workers SET stop = max(stop, ?) WHERE worker_id IN (SELECT value FROM json_each(?)) AND ended_at IS NULL"""

# The other workers that have not left and run another version of a batch's handler.
RIVALS: Final = """
SELECT worker_id, host, pid, role, version.value
FROM workers CROSS JOIN json_each(CASE WHEN json_valid(versions) THEN versions ELSE '{}' END) AS version
WHERE ended_at IS NULL AND worker_id <> ?1 AND version.key = ?2 AND version.value <> ?3 ORDER BY started_at"""

# Record the version of a batch's handler that a worker runs.
RECORD_VERSION: Final = """
UPDATE workers SET versions = json_patch(CASE WHEN json_valid(versions) THEN versions ELSE '{}' END, json_object(?2, ?3))
WHERE worker_id = ?1"""

# Whether a worker was declared lost or has left.
IS_OUTCAST: Final = "SELECT ended_at IS NOT NULL FROM workers WHERE worker_id = ?"

# The time of the newest heartbeat of all workers.
NEWEST_BEAT: Final = "SELECT max(last_heartbeat) FROM workers"

# After the clock was set back: move the due times of retries and put-offs earlier by the same time, if the attempt ended "in the
# future". Due times stay if an operator set them, or if the attempt ended after the change of the clock. A put-off has no row in
# failures, so it is recognized by its own times.
SET_BACK_RETRIES: Final = """
UPDATE items SET
    due_at = strftime('%Y-%m-%d %H:%M:%f', due_at, :modifier),
    put_off_at = CASE WHEN put_off_at > :instant THEN put_off_at - :seconds ELSE put_off_at END
WHERE batch_id IN (SELECT batch_id FROM batches) AND status = 'pending' AND status <> 'completed' AND due_at > :now
    AND (put_off_at > :instant OR (put_off_at IS NOT NULL AND started_at > :now)
        OR EXISTS (SELECT 1 FROM failures
                   WHERE failures.batch_id = items.batch_id AND failures.id = items.id AND failed_at > :now))"""

# After the clock was set back: move cool-downs and rate limits back.
SET_BACK_BATCHES: Final = """
UPDATE batches SET
    cooldown_until = CASE WHEN cooldown_until > :now THEN strftime('%Y-%m-%d %H:%M:%f', cooldown_until, :modifier)
                     ELSE cooldown_until END,
    rate_spent = CASE WHEN rate_spent > :instant THEN rate_spent - :seconds ELSE rate_spent END"""

# After the clock was set back: set the times of workers that are in the future to now.
SET_BACK_WORKERS: Final = """
UPDATE workers SET last_heartbeat = min(last_heartbeat, :now), started_at = min(started_at, :now)"""

# Record that a worker has left.
END_WORKER: Final = "UPDATE workers SET ended_at = ?, lost = ? WHERE worker_id = ? AND ended_at IS NULL"

# Declare a worker lost. With a pulse, do so only if the worker's last heartbeat is still that pulse.
LOSE_WORKER: Final = """
UPDATE workers SET ended_at = ?, lost = 1
WHERE worker_id = ? AND ended_at IS NULL AND last_heartbeat || ' ' || beats = coalesce(?, last_heartbeat || ' ' || beats)"""

# When workers ran that have not ended before a time, with the names of their batches.
WORKER_SPANS: Final = """
SELECT batches, started_at, last_heartbeat, ended_at, lost FROM workers WHERE coalesce(ended_at, last_heartbeat) >= ?"""

# Delete the rows of workers that left long ago.
DELETE_OLD_WORKERS: Final = "DELETE FROM workers WHERE ended_at < ?"

# The other workers that have not left. The pulse has the number of heartbeats, because the clock may stand still.
PEERS: Final = """
SELECT worker_id, last_heartbeat || ' ' || beats, host, pid FROM workers WHERE ended_at IS NULL AND worker_id <> ?"""

# The items that a worker holds: the columns of a Claim, and started_at. Payload and checkpoint are empty, because release and
# recovery do not need them.
HELD_BY: Final = """
SELECT
    items.seq, items.batch_id, items.id, '', items.claim, items.attempts, items.crashes, NULL, items.put_off_at, NULL,
    items.suspect,
    items.started_at
FROM batches CROSS JOIN items
    ON items.batch_id = batches.batch_id AND items.status = 'processing' AND items.status <> 'completed'
WHERE items.worker_id = ?"""

# The number of other workers of the same process that died with this worker.
OTHER_WORKERS_LOST: Final = """
SELECT count(*) FROM workers AS lost JOIN workers AS other
    ON other.process = lost.process AND other.process <> '' AND other.worker_id <> lost.worker_id
WHERE lost.worker_id = ? AND (other.ended_at IS NULL OR other.lost = 1)"""

# The items in processing that no known worker holds, with the columns of HELD_BY.
ORPHANS: Final = """
SELECT
    items.seq, items.batch_id, items.id, '', items.claim, items.attempts, items.crashes, NULL, items.put_off_at, NULL,
    items.suspect,
    items.started_at
FROM batches CROSS JOIN items
    ON items.batch_id = batches.batch_id AND items.status = 'processing' AND items.status <> 'completed'
WHERE items.worker_id IS NULL
    OR items.worker_id NOT IN (SELECT worker_id FROM workers WHERE ended_at IS NULL)"""

# The workers that have not left, the oldest first.
WORKERS: Final = """
SELECT
    worker_id, host, pid, role, batches, started_at, last_heartbeat, items_processed, items_failed, loop_blocks, longest_block,
    slots, slots_in_use, throttles, last_heartbeat || ' ' || beats
FROM workers
WHERE ended_at IS NULL ORDER BY started_at"""

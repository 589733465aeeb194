"""The SQL of batches: options, versions, live controls."""

from __future__ import annotations

from typing import Final

# Create a batch, or update its handler and options and end its stop; return its id. No row: its copy is not complete.
UPSERT_BATCH: Final = """
INSERT INTO batches (name, handler, options, created_at) VALUES ($1, $2, $3, to_timestamp($4))
ON CONFLICT (name) DO UPDATE SET handler = excluded.handler, options = excluded.options, stopped = NULL
WHERE NOT EXISTS (SELECT FROM copies WHERE copies.batch_id = batches.batch_id AND finished_at IS NULL)
RETURNING batch_id"""

# The id of a batch by its name.
BATCH_ID: Final = "SELECT batch_id FROM batches WHERE name = $1"

# The names of all batches.
BATCH_NAMES: Final = "SELECT name FROM batches ORDER BY name"

# The names and the sources of those batches of a list whose copy is not complete.
INCOMPLETE_COPIES: Final = """
SELECT name, source FROM copies JOIN batches USING (batch_id) WHERE finished_at IS NULL AND name = ANY ($1::text[])"""

# The options of batches.
OPTIONS: Final = "SELECT batch_id, options FROM batches WHERE batch_id = ANY ($1::bigint[])"

# The name of a batch.
NAME: Final = "SELECT name FROM batches WHERE batch_id = $1"

# The controls that running workers obey. A deleted batch has no row.
LIVE_CONTROLS: Final = """
SELECT batch_id, paused OR stopped IS NOT NULL, concurrency FROM batches WHERE batch_id = ANY ($1::bigint[])"""

# Stop a batch. A batch that is already stopped keeps its reason.
STOP: Final = "UPDATE batches SET stopped = $2 WHERE batch_id = $1 AND stopped IS NULL"

# Start no items until a time, or until the stored time if that is later.
COOL_DOWN: Final = """
UPDATE batches SET cooldown_until = greatest(cooldown_until, to_timestamp($2)) WHERE batch_id = $1"""

# The name of a batch, its version and the numbers of that version. The lock lasts until the version is set.
VERSION: Final = """
SELECT name, version, version_number, version_applied FROM batches WHERE batch_id = $1 FOR NO KEY UPDATE"""

# Give a batch another version.
SET_VERSION: Final = "UPDATE batches SET version = $1, version_number = version_number + 1 WHERE batch_id = $2"

# Record that the items which another version completed are pending, unless the version has changed again.
VERSION_APPLIED: Final = "UPDATE batches SET version_applied = $1 WHERE batch_id = $2 AND version_number = $1"

# Request that the items of a batch that workers hold run once more, after their attempt. An earlier request stays.
RUN_HELD_AGAIN: Final = """
UPDATE items SET rerun_payload = payload
WHERE seq = ANY (ARRAY(SELECT seq FROM held WHERE batch_id = $1)) AND status = 'processing' AND rerun_payload IS NULL"""

# The last seq of a window of items in input order, and the seqs of the items in it that another version of the batch completed.
COMPLETED_BY_OTHER_VERSION: Final = """
SELECT max(seq), array_agg(seq) FILTER (WHERE batch_id = $1 AND status = 'completed' AND version <> $2)
FROM (SELECT seq, batch_id, status, version FROM items WHERE seq > $3 ORDER BY seq LIMIT $4) AS in_window"""

# Make pending the items of a list that another version completed, unless the version has changed since.
RUN_AGAIN_OTHER_VERSION: Final = """
UPDATE items SET
    status = 'pending', due_at = NULL, worker_id = NULL, started_at = NULL, completed_at = NULL, attempts = 0, crashes = 0,
    permanent = false, suspect = 0, error = NULL, checkpoint = NULL, put_off_at = NULL
WHERE seq = ANY ($1::bigint[]) AND status = 'completed' AND version <> $2
    AND (SELECT version_number FROM batches WHERE batches.batch_id = items.batch_id) = $2"""

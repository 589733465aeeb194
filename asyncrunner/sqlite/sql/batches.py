"""The SQL of batches: options, totals, live controls."""

from __future__ import annotations

from typing import Final

# Create a batch, or update its handler and options and end its stop; return its id.
UPSERT_BATCH: Final = """
INSERT INTO batches (name, handler, options, created_at) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET handler = excluded.handler, options = excluded.options, stopped = NULL
RETURNING batch_id"""

# The id of a batch by its name.
BATCH_ID: Final = "SELECT batch_id FROM batches WHERE name = ?"

# The names of all batches.
BATCH_NAMES: Final = "SELECT name FROM batches ORDER BY name"

# The name and the options of a batch by its id.
BATCH_BY_ID: Final = "SELECT name, options FROM batches WHERE batch_id = ?"

# All batches, or one by its name, with their live controls.
BATCHES: Final = """
SELECT batch_id, name, handler, created_at, paused, cooldown_until, concurrency, stopped, put_offs, version FROM batches
WHERE ?1 IS NULL OR name = ?1 ORDER BY batch_id"""

# Add new items to the stored total of a batch.
ADD_TO_TOTAL: Final = "UPDATE batches SET total = total + ? WHERE batch_id = ?"

# The controls that a turn must obey, and the number of the batch's version.
CONTROLS: Final = """
SELECT paused, stopped, cooldown_until, concurrency, rate_spent, version_number FROM batches WHERE batch_id = ?"""

# The controls that running workers obey: whether to start no items, and the concurrency. A deleted batch has no row.
LIVE_CONTROLS: Final = """
SELECT batch_id, paused OR stopped IS NOT NULL, concurrency FROM batches
WHERE batch_id IN (SELECT value FROM json_each(?))"""

# The name of a batch, its version and the numbers of that version.
VERSION: Final = "SELECT name, version, version_number, version_applied FROM batches WHERE batch_id = ?"

# Give a batch another version.
SET_VERSION: Final = "UPDATE batches SET version = ?, version_number = version_number + 1 WHERE batch_id = ?"

# Record that the items which another version completed are pending, unless the version has changed again.
VERSION_APPLIED: Final = "UPDATE batches SET version_applied = ?1 WHERE batch_id = ?2 AND version_number = ?1"

# Stop a batch. A batch that is already stopped keeps its reason.
STOP: Final = "UPDATE batches SET stopped = ? WHERE batch_id = ? AND stopped IS NULL"

# Record the time up to which the starts of the rate limit are used.
SPEND_RATE: Final = "UPDATE batches SET rate_spent = ? WHERE batch_id = ?"

# Count put-offs of a batch's items.
COUNT_PUT_OFFS: Final = "UPDATE batches SET put_offs = put_offs + ? WHERE batch_id = ?"

# Start no items until a time, or until the stored time if that is later.
COOL_DOWN: Final = """
UPDATE batches SET cooldown_until = max(coalesce(cooldown_until, ''), ?) WHERE batch_id = ?"""

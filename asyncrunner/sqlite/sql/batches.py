"""The SQL of batches: options, totals, live controls."""

from __future__ import annotations

from typing import Final

# --- batches ----------------------------------------------------------------------------------------------------

UPSERT_BATCH: Final = """
INSERT INTO batches (name, handler, options, created_at) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET handler = excluded.handler, options = excluded.options, stopped = NULL
RETURNING batch_id"""

BATCH_ID: Final = "SELECT batch_id FROM batches WHERE name = ?"

BATCH_NAMES: Final = "SELECT name FROM batches ORDER BY name"

BATCH_BY_ID: Final = "SELECT name, options FROM batches WHERE batch_id = ?"

ADD_TO_TOTAL: Final = "UPDATE batches SET total = total + ? WHERE batch_id = ?"

CONTROLS: Final = "SELECT paused, stopped, cooldown_until, concurrency, rate_spent FROM batches WHERE batch_id = ?"

STOP: Final = "UPDATE batches SET stopped = ? WHERE batch_id = ? AND stopped IS NULL"

SPEND_RATE: Final = "UPDATE batches SET rate_spent = ? WHERE batch_id = ?"

COOL_DOWN: Final = """
UPDATE batches SET cooldown_until = max(coalesce(cooldown_until, ''), ?) WHERE batch_id = ?"""

# The controls that operators set for running workers. A deleted batch has no row.
BATCH_CONTROLS: Final = """
SELECT batch_id, paused OR stopped IS NOT NULL, concurrency FROM batches
WHERE batch_id IN (SELECT value FROM json_each(?))"""

# Batches whose stored total differs from their number of items; doctor reports them.
RECOUNT: Final = """
SELECT name, total, counted FROM (
    SELECT name, total, (SELECT count(*) FROM items WHERE items.batch_id = batches.batch_id) AS counted
    FROM batches WHERE ?1 IS NULL OR name = ?1)
WHERE total <> counted"""

SET_TOTAL: Final = """
UPDATE batches SET total = (SELECT count(*) FROM items WHERE items.batch_id = batches.batch_id) WHERE name = ?"""

BATCHES: Final = """
SELECT batch_id, name, handler, created_at, paused, cooldown_until, concurrency, stopped FROM batches
WHERE ?1 IS NULL OR name = ?1 ORDER BY batch_id"""

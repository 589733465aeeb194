"""The SQL of ``asyncrunner doctor``: facts about the server and the rights, and whether the side tables agree with items."""

from __future__ import annotations

from typing import Final

# Doctor reads whole tables, so its transactions use the plans that the other ones avoid.
WHOLE_TABLES: Final = "SELECT set_config(name, 'on', true) FROM unnest(ARRAY['enable_seqscan', 'enable_mergejoin']) AS name"

# The server: its version, the current and the maximal number of connections, whether it is a replica, the settings of durability,
# the connected replicas and the names of the synchronous ones, and its time.
SERVER: Final = """
SELECT current_setting('server_version'), current_setting('server_version_num')::integer,
    (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend'),
    current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer,
    pg_is_in_recovery(), current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',
    (SELECT count(*) FROM pg_catalog.pg_stat_replication), current_setting('synchronous_standby_names'),
    current_setting('server_encoding'), extract(epoch FROM clock_timestamp())::double precision"""

# Whether autovacuum runs, and the tables of the schema for which it is disabled.
AUTOVACUUM: Final = """
SELECT current_setting('autovacuum') = 'on' AND current_setting('track_counts') = 'on',
    ARRAY(SELECT relname::text FROM pg_catalog.pg_class
          WHERE relnamespace = current_schema()::regnamespace
              AND reloptions && ARRAY['autovacuum_enabled=false', 'autovacuum_enabled=off']
          ORDER BY relname)"""

# Whether this session is one over the network, and which of some settings have another value, with that value.
KEEPALIVES: Final = """
SELECT inet_client_addr() IS NOT NULL, (
    SELECT string_agg(name || ' = ' || actual.setting, ', ' ORDER BY name) FROM pg_catalog.pg_settings AS actual
    JOIN unnest($1::text[], $2::text[]) AS expected (name, setting) USING (name) WHERE actual.setting <> expected.setting)"""

# The tables of the schema on which this user lacks a right that a worker needs.
MISSING_RIGHTS: Final = """
SELECT relname, string_agg(privilege, ', ' ORDER BY privilege)
FROM pg_catalog.pg_class CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname <> 'meta'
    AND NOT has_table_privilege(pg_class.oid, privilege)
GROUP BY relname ORDER BY relname"""

# The triggers on items and failures that do not run, because a person disabled them.
DISABLED_TRIGGERS: Final = """
SELECT tgname, relname FROM pg_catalog.pg_trigger JOIN pg_catalog.pg_class ON pg_class.oid = tgrelid
WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal AND tgenabled IN ('D', 'R') ORDER BY tgname"""

# How many triggers of asyncrunner exist in the schema.
TRIGGERS: Final = """
SELECT count(*) FROM pg_catalog.pg_trigger JOIN pg_catalog.pg_class ON pg_class.oid = tgrelid
WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal"""

_EXPECTED: Final = {
    "ready": "SELECT batch_id, ~priority AS rank, seq FROM items WHERE status = 'pending' AND suspect <= 0 AND due_at IS NULL",
    "waiting": """SELECT batch_id, ~priority AS rank, due_at, seq FROM items
        WHERE status = 'pending' AND suspect <= 0 AND due_at IS NOT NULL""",
    "suspects": """SELECT batch_id, suspect, ~priority AS rank, seq, due_at FROM items
        WHERE status = 'pending' AND suspect > 0""",
    "held": "SELECT seq, batch_id, coalesce(worker_id, '') AS worker_id FROM items WHERE status = 'processing'",
    "ended": """SELECT batch_id, status, seq, CASE status WHEN 'failed' THEN fingerprint END AS fingerprint FROM items
        WHERE status IN ('failed', 'cancelled')""",
}
_COLUMNS: Final = {
    "ready": "batch_id, rank, seq",
    "waiting": "batch_id, rank, due_at, seq",
    "suspects": "batch_id, suspect, rank, seq, due_at",
    "held": "seq, batch_id, worker_id",
    "ended": "batch_id, status, seq, fingerprint",
}


def _filled(statement: str, table: str) -> str:
    for name, part in (("table", table), ("columns", _COLUMNS[table]), ("expected", _EXPECTED[table])):
        statement = statement.replace(f"<{name}>", part)
    return statement


# How many rows of a side table are missing, and how many are not as items has them.
DIFFERENCES: Final = {
    table: _filled(
        """
SELECT (SELECT count(*) FROM (<expected> EXCEPT SELECT <columns> FROM <table>) AS missing),
    (SELECT count(*) FROM (SELECT <columns> FROM <table> EXCEPT <expected>) AS surplus)""",
        table,
    )
    for table in _EXPECTED
}

# Prevent changes of items and of the side tables until the end of the transaction.
LOCK: Final = """
LOCK TABLE turn_marks, ready, waiting, suspects, held, ended, tallies, causes, items, failures IN SHARE ROW EXCLUSIVE MODE"""

# Delete the rows of a side table that are not as items has them, then insert the missing ones.
CORRECTIONS: Final = {
    table: (
        _filled(
            """
DELETE FROM <table> WHERE (seq, batch_id) IN (
    SELECT seq, batch_id FROM (SELECT <columns> FROM <table> EXCEPT <expected>) AS surplus)""",
            table,
        ),
        _filled("INSERT INTO <table> (<columns>) SELECT <columns> FROM (<expected>) AS expected ON CONFLICT DO NOTHING", table)
        if table != "held"
        else """
INSERT INTO held (seq, batch_id, worker_id, turn) SELECT seq, batch_id, coalesce(worker_id, ''), 0 FROM items
WHERE status = 'processing' ON CONFLICT DO NOTHING""",
    )
    for table in _EXPECTED
}

_COUNT_DIFFERENCES: Final = """
SELECT batch_id, sum(pending)::bigint AS pending, sum(processing)::bigint AS processing, sum(completed)::bigint AS completed,
    sum(failed)::bigint AS failed, sum(cancelled)::bigint AS cancelled
FROM (
    SELECT batch_id, count(*) FILTER (WHERE status = 'pending') AS pending,
        count(*) FILTER (WHERE status = 'processing') AS processing, count(*) FILTER (WHERE status = 'completed') AS completed,
        count(*) FILTER (WHERE status = 'failed') AS failed, count(*) FILTER (WHERE status = 'cancelled') AS cancelled
    FROM items GROUP BY batch_id
    UNION ALL
    SELECT batch_id, -pending, -processing, -completed, -failed, -cancelled FROM tallies) AS rows
GROUP BY batch_id
HAVING sum(pending) <> 0 OR sum(processing) <> 0 OR sum(completed) <> 0 OR sum(failed) <> 0 OR sum(cancelled) <> 0"""

# The batches whose counts differ from the number of their items, with the differences.
WRONG_COUNTS: Final = """
SELECT coalesce(name, ''), pending, processing, completed, failed, cancelled
FROM (<differences>) AS wrong LEFT JOIN batches USING (batch_id)
WHERE $1::text IS NULL OR name = $1 ORDER BY name""".replace("<differences>", _COUNT_DIFFERENCES)

# Add these differences to the counts.
CORRECT_COUNTS: Final = "INSERT INTO tallies (batch_id, pending, processing, completed, failed, cancelled)" + _COUNT_DIFFERENCES

_CAUSE_DIFFERENCES: Final = """
SELECT batch_id, fingerprint, sum(attempts)::bigint AS attempts FROM (
    SELECT batch_id, fingerprint, count(*) AS attempts FROM failures GROUP BY batch_id, fingerprint
    UNION ALL
    SELECT batch_id, fingerprint, -attempts FROM causes) AS rows
GROUP BY batch_id, fingerprint HAVING sum(attempts) <> 0"""

# For each batch, how many causes the table causes counts otherwise than the table failures.
WRONG_CAUSES: Final = """
SELECT coalesce(name, ''), count(*) FROM (<differences>) AS wrong LEFT JOIN batches USING (batch_id)
WHERE $1::text IS NULL OR name = $1 GROUP BY name ORDER BY name""".replace("<differences>", _CAUSE_DIFFERENCES)

# Add these differences to the causes.
CORRECT_CAUSES: Final = "INSERT INTO causes (batch_id, fingerprint, attempts)" + _CAUSE_DIFFERENCES

# Items whose result lacks pieces. If only the last pieces are missing, their number is unknown, so such items are not found.
INCOMPLETE_RESULTS: Final = """
SELECT name, id FROM items JOIN batches USING (batch_id)
WHERE result = '' AND status <> 'processing' AND (
    SELECT count(*) = 0 OR count(*) <> max(piece) + 1 FROM result_pieces
    WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim))
LIMIT 10"""

# The number of pieces that no item uses.
ORPHANED_PIECES: Final = """
SELECT count(*) FROM result_pieces AS pieces
WHERE NOT EXISTS (
    SELECT FROM items WHERE items.seq = pieces.seq AND (
        (items.claim = pieces.claim AND status = 'processing')
        OR (coalesce(items.result_claim, items.claim) = pieces.claim AND result = '')))"""

# Batches that start no items, because an operator paused them or a guardrail stopped them.
PAUSED_OR_STOPPED: Final = """
SELECT name, paused, stopped FROM batches
WHERE (paused OR stopped IS NOT NULL) AND ($1::text IS NULL OR name = $1)
    AND batch_id NOT IN (SELECT batch_id FROM copies WHERE finished_at IS NULL)"""

# The newest heartbeat of all workers.
NEWEST_BEAT: Final = "SELECT extract(epoch FROM max(last_heartbeat))::double precision FROM workers"

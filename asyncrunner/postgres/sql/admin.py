"""The SQL of operators: read items and their failures, and change many items while workers run.

items has no index on its status, so the items of a state are found in ready, waiting, suspects, held and ended. Where a statement
walks the items in input order, ``batch_id + 0`` keeps the planner from the index of keys, whose rows it would have to sort.
"""

from __future__ import annotations

from typing import Final

from asyncrunner.domain.item import Status

# --- the items of a state ----------------------------------------------------------------------------------------

_SOURCES: Final = {
    Status.PENDING: """
        SELECT seq FROM ready WHERE batch_id = $1
        UNION ALL SELECT seq FROM waiting WHERE batch_id = $1
        UNION ALL SELECT seq FROM suspects WHERE batch_id = $1""",
    Status.PROCESSING: "SELECT seq FROM held WHERE batch_id = $1",
    Status.FAILED: "SELECT seq FROM ended WHERE batch_id = $1 AND status = 'failed'",
    Status.CANCELLED: "SELECT seq FROM ended WHERE batch_id = $1 AND status = 'cancelled'",
}

# Whether an item has an error that matches a pattern, or a fingerprint; and whether its latest change was before a time: its end,
# else its start if it is in processing, else its arrival. Only ASCII letters match without regard to case.
_MATCHES: Final = """
    ({pattern}::text IS NULL OR fingerprint = {exact}::text OR lower(error COLLATE "C") LIKE lower({pattern} COLLATE "C"))
    AND ({before}::double precision IS NULL
        OR coalesce(completed_at, CASE status WHEN 'processing' THEN started_at END, created_at) < to_timestamp({before}))"""

_COLUMNS: Final = """seq, id, status, attempts, crashes, priority, utc_text(created_at), utc_text(due_at), utc_text(started_at),
    utc_text(completed_at), worker_id, error, substr(payload, 1, 200)"""


def _filled(statement: str, **parts: str) -> str:
    for name, part in parts.items():
        statement = statement.replace(f"<{name}>", part)
    return statement


_MATCHES_3: Final = _MATCHES.replace("{pattern}", "$2").replace("{exact}", "$3").replace("{before}", "$4")

# The seqs of a batch's items in one state, in no order. $2 to $4: pattern, fingerprint and time, see above; or NULL.
_SEQS: Final = """
SELECT seq FROM (<source>) AS listed
WHERE ($2::text IS NULL AND $4::double precision IS NULL)
    OR EXISTS (SELECT FROM items WHERE items.seq = listed.seq AND <matches>)"""

# The first of these items in input order, or backwards, between the seqs $5 and $6.
_LIST: Final = """
SELECT <columns> FROM items WHERE seq = ANY (ARRAY(
    SELECT seq FROM (<source>) AS listed
    WHERE seq BETWEEN $5 AND $6 AND (($2::text IS NULL AND $4::double precision IS NULL)
        OR EXISTS (SELECT FROM items WHERE items.seq = listed.seq AND <matches>))
    ORDER BY seq <direction> LIMIT $7)) AND batch_id = $1 ORDER BY seq <direction>"""

# The same of items in any state, or of completed ones: a walk over all items in input order. $8: the status, or NULL.
_WALK: Final = """
SELECT <columns> FROM items
WHERE seq BETWEEN $5 AND $6 AND batch_id + 0 = $1 AND ($8::text IS NULL OR status = $8) AND <matches>
ORDER BY seq <direction> LIMIT $7"""

SEQS: Final = {state: _filled(_SEQS, source=source, matches=_MATCHES_3) for state, source in _SOURCES.items()}
LIST: Final = {
    (state, newest): _filled(_LIST, source=source, matches=_MATCHES_3, columns=_COLUMNS, direction="DESC" if newest else "ASC")
    for state, source in _SOURCES.items()
    for newest in (False, True)
}
WALK: Final = {
    newest: _filled(_WALK, matches=_MATCHES_3, columns=_COLUMNS, direction="DESC" if newest else "ASC")
    for newest in (False, True)
}

# The next items in input order that have one of the statuses $6, after the seq $5.
NEXT_SELECTED: Final = _filled(
    """
SELECT seq, status FROM items
WHERE seq > $5 AND batch_id + 0 = $1 AND status = ANY ($6::text[]) AND <matches>
ORDER BY seq LIMIT $7""",
    matches=_MATCHES_3,
)

# --- reading items -----------------------------------------------------------------------------------------------

# The seq of the newest item, or 0.
NEWEST_SEQ: Final = "SELECT coalesce(max(seq), 0) FROM items"

# The first item after a seq, with its arrival time.
NEXT_ARRIVAL: Final = """
SELECT seq, extract(epoch FROM created_at)::double precision FROM items WHERE seq > $1 ORDER BY seq LIMIT 1"""

# The seq of an item by its id.
SEQ_OF_ID: Final = "SELECT seq FROM items WHERE batch_id = $1 AND id = $2"

# Whether each item of a list contains a text, in its id, payload, result or error, and how many bytes were searched; the newest
# items first. A large result, which is stored in pieces, is not searched.
SEARCH: Final = """
SELECT
    lower(id COLLATE "C") LIKE sought.pattern OR lower(payload COLLATE "C") LIKE sought.pattern
        OR coalesce(lower(result COLLATE "C") LIKE sought.pattern, false)
        OR coalesce(lower(error COLLATE "C") LIKE sought.pattern, false),
    octet_length(payload) + coalesce(octet_length(result), 0)
FROM items CROSS JOIN (SELECT lower($2::text COLLATE "C") AS pattern) AS sought
WHERE seq = ANY ($1::bigint[]) ORDER BY seq DESC"""

# One item: its seq, the claim of the pieces of a large result, its columns, then size and start of each JSON text. A text is
# stored without compression, so only its start is read.
ITEM: Final = """
SELECT
    seq, coalesce(result_claim, claim), id, status, attempts, crashes, priority, permanent, suspect, utc_text(created_at),
    utc_text(due_at), utc_text(started_at), utc_text(completed_at), worker_id, error, fingerprint, put_offs, put_off_at,
    octet_length(payload), substr(payload, 1, $3::integer), octet_length(rerun_payload), substr(rerun_payload, 1, $3::integer),
    octet_length(result), substr(result, 1, $3::integer), octet_length(checkpoint), substr(checkpoint, 1, $3::integer)
FROM items WHERE batch_id = $1 AND id = $2"""

# The pieces of a large result, with the size of each, and the start of those among the first bytes of the result.
PIECES: Final = """
SELECT piece, octet_length(text),
    CASE WHEN sum(octet_length(text)) OVER (ORDER BY piece) - octet_length(text) < $3::integer
        THEN substr(text, 1, $3::integer) ELSE '' END
FROM result_pieces WHERE seq = $1 AND claim = $2 ORDER BY piece"""

# The newest failed attempts of one item. Without "+ 0", the planner may walk over the failures of all items.
FAILURES_OF_ITEM: Final = """
SELECT id, attempt, utc_text(failed_at), error_type, message, traceback, fingerprint, utc_text(started_at), duration
FROM failures WHERE batch_id = $1 AND id = $2 ORDER BY failure_id + 0 DESC LIMIT $3"""

# The name of a batch and its options.
NAME_AND_OPTIONS: Final = "SELECT name, options FROM batches WHERE batch_id = $1"

# The names of the batches that have an item with an id.
BATCHES_WITH_ID: Final = """
SELECT name FROM batches WHERE EXISTS (SELECT FROM items WHERE items.batch_id = batches.batch_id AND items.id = $1)
ORDER BY batch_id"""

# The ids just after an id that does not exist, in the order of ids.
IDS_FROM: Final = "SELECT id FROM items WHERE batch_id = $1 AND id >= $2 ORDER BY id LIMIT $3"

# The ids just before an id that does not exist, in reverse order.
IDS_BEFORE: Final = "SELECT id FROM items WHERE batch_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3"

# The newest ids of a batch, among the items of the store after a number.
NEWEST_IDS: Final = "SELECT id FROM items WHERE batch_id + 0 = $1 AND seq > $2 ORDER BY seq DESC LIMIT $3"

# The items of a list of keys that exist, in the order of the list.
EXISTING_KEYS: Final = """
SELECT items.seq, items.id, items.status FROM unnest($2::text[]) WITH ORDINALITY AS requested (id, position)
JOIN items ON items.batch_id = $1 AND items.id = requested.id ORDER BY requested.position"""

_RECORD: Final = """items.seq, items.id, status, attempts, crashes, priority, utc_text(created_at), utc_text(due_at),
    utc_text(started_at), utc_text(completed_at), payload,
    CASE WHEN result = '' THEN (
        SELECT CASE WHEN count(*) = max(piece) + 1 THEN string_agg(text, '' ORDER BY piece)
            ELSE 'the result is incomplete: rows of result_pieces were deleted' END
        FROM result_pieces
        WHERE result_pieces.seq = items.seq AND result_pieces.claim = coalesce(items.result_claim, items.claim)
    ) ELSE result END,
    error, fingerprint, checkpoint, put_offs, rerun_payload"""

# A page of items in input order, with the columns of an export and each result joined from its pieces. A text in place of
# a result reports missing pieces.
EXPORT: Final = _filled(
    """
SELECT <record> FROM items
WHERE seq > $1 AND batch_id + 0 = $2 AND ($3::text[] IS NULL OR status = ANY ($3)) ORDER BY seq LIMIT $4""",
    record=_RECORD,
)

# The items of a list of seqs, in its order, with the columns of EXPORT; only those that have one of the statuses, unless the
# statuses are NULL.
EXPORT_SELECTED: Final = _filled(
    """
SELECT <record> FROM unnest($1::bigint[]) WITH ORDINALITY AS selected (seq, position) JOIN items ON items.seq = selected.seq
WHERE $2::text[] IS NULL OR status = ANY ($2) ORDER BY selected.position""",
    record=_RECORD,
)

# The ids of the items of a list of seqs, in its order; only of those that have one of the statuses, unless these are NULL.
IDS_OF_SEQS: Final = """
SELECT items.id FROM unnest($1::bigint[]) WITH ORDINALITY AS selected (seq, position) JOIN items ON items.seq = selected.seq
WHERE $2::text[] IS NULL OR status = ANY ($2) ORDER BY selected.position"""

# --- a dry run ---------------------------------------------------------------------------------------------------

# The items of the store that have a key of a list, and whether a run with a version would run them again because another version
# completed them.
KNOWN_ITEMS: Final = """
SELECT
    id, coalesce(rerun_payload, payload), status, permanent, attempts,
    $3::text IS NOT NULL AND status = 'completed' AND (
        SELECT batches.version IS DISTINCT FROM $3 OR items.version <> version_number FROM batches
        WHERE batches.batch_id = items.batch_id)
FROM items WHERE batch_id = $1 AND id = ANY ($2::text[])"""

# The version of a batch, the number of that version, the last number whose change was applied, and how many items are completed.
VERSION: Final = """
SELECT version, version_number, version_applied,
    (SELECT coalesce(sum(completed), 0)::bigint FROM tallies WHERE tallies.batch_id = batches.batch_id)
FROM batches WHERE batch_id = $1"""

# How many items a version with another number completed; an interrupted change of the version leaves some.
OF_OTHER_VERSION: Final = """
SELECT count(*) FROM items WHERE batch_id + 0 = $1 AND status = 'completed' AND version <> $2"""

# How many failed items have attempts left and no permanent error.
REOPENABLE: Final = """
SELECT count(*) FROM ended JOIN items ON items.seq = ended.seq
WHERE ended.batch_id = $1 AND ended.status = 'failed' AND NOT permanent AND attempts < $2"""

# --- changing: items are selected first, and then changed in small transactions -----------------------------------
# These are changes by hand, so triggers keep the other tables right and notify the workers.

# Reset items to pending, with fresh attempts, if they still have one of the statuses.
REOPEN: Final = """
UPDATE items SET
    status = 'pending', due_at = NULL, worker_id = NULL, completed_at = NULL, attempts = 0, crashes = 0, permanent = false,
    suspect = 0, put_off_at = NULL
WHERE seq = ANY ($1::bigint[]) AND status = ANY ($2::text[])"""

# Make finished items pending, with fresh attempts and without a checkpoint, if they still have one of the statuses. The earlier
# result stays until a new one replaces it.
RUN_AGAIN: Final = """
UPDATE items SET
    status = 'pending', due_at = NULL, worker_id = NULL, started_at = NULL, completed_at = NULL, attempts = 0, crashes = 0,
    permanent = false, suspect = 0, error = NULL, checkpoint = NULL, put_off_at = NULL
WHERE seq = ANY ($1::bigint[]) AND status = ANY ($2::text[]) AND status <> 'processing'"""

# Request that items run once more, with the same payload, after their current attempt. An earlier request stays.
RUN_AGAIN_AFTER_ATTEMPT: Final = """
UPDATE items SET rerun_payload = payload
WHERE seq = ANY ($1::bigint[]) AND status = 'processing' AND 'processing' = ANY ($2::text[]) AND rerun_payload IS NULL"""

# Cancel items that still have one of the statuses. The new claim number fences off a worker that holds the item now. A requested
# rerun is cancelled too. An earlier result in pieces keeps its claim.
CANCEL: Final = """
UPDATE items SET
    status = 'cancelled', claim = claim % 9223372036854775807 + 1, worker_id = NULL, due_at = NULL,
    completed_at = to_timestamp($3), rerun_payload = NULL,
    result_claim = CASE WHEN result = '' THEN coalesce(result_claim, claim) END
WHERE seq = ANY ($1::bigint[]) AND status = ANY ($2::text[])"""

# Delete items that still have one of the statuses and are older than a time (NULL: of any age), with the records of their
# failures and the pieces of their results.
PURGE: Final = """
WITH purged AS (
    DELETE FROM items WHERE seq = ANY ($1::bigint[]) AND status = ANY ($2::text[])
        AND ($3::double precision IS NULL OR coalesce(completed_at, created_at) < to_timestamp($3))
    RETURNING seq, batch_id, id),
purged_failures AS (
    DELETE FROM failures USING purged WHERE failures.batch_id = purged.batch_id AND failures.id = purged.id),
purged_pieces AS (DELETE FROM result_pieces USING purged WHERE result_pieces.seq = purged.seq)
SELECT count(*) FROM purged"""

# Pause a batch.
PAUSE: Final = "UPDATE batches SET paused = true WHERE batch_id = $1 AND NOT paused"

# End a batch's pause, its stop by a guardrail and its cool-down.
RESUME: Final = """
UPDATE batches SET paused = false, stopped = NULL, cooldown_until = NULL
WHERE batch_id = $1 AND (paused OR stopped IS NOT NULL OR cooldown_until > to_timestamp($2))"""

# Set how many handlers of a batch run at the same time in one worker.
SET_CONCURRENCY: Final = "UPDATE batches SET concurrency = $2 WHERE batch_id = $1"

# Request a stop of workers. An earlier request for a stronger stop stays.
REQUEST_STOP: Final = """
UPDATE workers SET stop = greatest(stop, $1) WHERE worker_id = ANY ($2::text[]) AND ended_at IS NULL"""

-- The functions that store outcomes.
--
-- The fence is in the WHERE: only the holder of the current claim changes a row. PostgreSQL evaluates it again after a wait for
-- another transaction's change of the row, so of a settlement, a recovery and a cancellation one takes effect.

-- Store the results of completed items. Returns the numbers of the settled items.
CREATE FUNCTION settle_completed(
    at double precision, seqs bigint[], claims bigint[], starts double precision[], ends double precision[], results text[])
RETURNS bigint[] LANGUAGE plpgsql AS $function$
DECLARE
    settled bigint[];
    step integer := (cardinality(seqs) + 99) / 100;
BEGIN
    WITH done AS (
        UPDATE items SET
            status = 'completed', started_at = to_timestamp(entry.started), completed_at = to_timestamp(entry.ended),
            result = entry.result, result_claim = NULL, error = NULL
        FROM unnest(seqs, claims, starts, ends, results) WITH ORDINALITY AS entry (seq, claim, started, ended, result, position)
        WHERE items.seq = entry.seq AND items.claim = entry.claim AND status = 'processing' AND rerun_payload IS NULL
        RETURNING items.seq, items.batch_id, greatest(entry.ended - entry.started, 0) AS seconds, entry.position),
    unheld AS (DELETE FROM held USING done WHERE held.seq = done.seq),
    counted AS (
        INSERT INTO tallies (batch_id, processing, completed, minute, minute_completed, minute_seconds)
        SELECT batch_id, -count(*), count(*), floor(at / 60)::bigint * 60, count(*), sum(seconds) FROM done GROUP BY batch_id),
    recorded AS (
        INSERT INTO turns (batch_id, at, completed, failed, retried, durations)
        SELECT batch_id, to_timestamp(at), count(*), 0, 0, json_build_object('completed', coalesce(
            json_agg((seconds * 1e6)::bigint) FILTER (WHERE (position - 1) % step = 0), '[]'))
        FROM done GROUP BY batch_id)
    SELECT coalesce(array_agg(seq), '{}') INTO settled FROM done;
    RETURN settled;
END $function$;

-- Store the outcomes that are not completions. Returns the numbers of the settled items.
CREATE FUNCTION settle_others(at double precision, outcomes json) RETURNS bigint[] LANGUAGE plpgsql AS $function$
DECLARE
    settled bigint[];
BEGIN
    WITH outcome AS MATERIALIZED (
        SELECT * FROM json_to_recordset(outcomes) AS entry (
            kind text, seq bigint, claim bigint, started double precision, ended double precision, due double precision,
            error text, crashed boolean, suspect integer, refunded integer, permanent boolean, attempt bigint,
            error_type text, message text, traceback text, fingerprint text, pause double precision)),
    done AS (
        UPDATE items SET
            status = CASE kind WHEN 'failed' THEN 'failed' WHEN 'cancelled' THEN 'cancelled' ELSE 'pending' END,
            worker_id = CASE WHEN kind IN ('failed', 'cancelled') THEN worker_id END,
            started_at = CASE WHEN kind <> 'released' THEN to_timestamp(started) END,
            completed_at = CASE WHEN kind IN ('failed', 'cancelled') THEN to_timestamp(ended) ELSE completed_at END,
            due_at = CASE WHEN kind IN ('retrying', 'put_off') THEN to_timestamp(due) ELSE due_at END,
            error = CASE WHEN kind IN ('retrying', 'put_off', 'failed') THEN outcome.error ELSE items.error END,
            permanent = CASE kind WHEN 'failed' THEN outcome.permanent ELSE items.permanent END,
            fingerprint = CASE kind WHEN 'failed' THEN outcome.fingerprint ELSE items.fingerprint END,
            crashes = least(crashes, 9223372036854775806) + coalesce(outcome.crashed, false)::integer,
            suspect = CASE kind
                WHEN 'retrying' THEN outcome.suspect WHEN 'put_off' THEN 0
                WHEN 'failed' THEN 2 * outcome.crashed::integer ELSE items.suspect END,
            attempts = greatest(attempts - CASE kind
                WHEN 'retrying' THEN outcome.refunded WHEN 'put_off' THEN 1 WHEN 'released' THEN 1 ELSE 0 END, 0),
            put_offs = least(put_offs, 9223372036854775806) + (kind = 'put_off')::integer,
            put_off_at = CASE
                WHEN kind = 'put_off' THEN coalesce(put_off_at, at)
                WHEN kind = 'failed' OR kind = 'retrying' AND NOT outcome.crashed THEN NULL
                ELSE put_off_at END,
            rerun_payload = CASE WHEN kind = 'cancelled' THEN NULL ELSE rerun_payload END
        FROM outcome
        WHERE items.seq = outcome.seq AND items.claim = outcome.claim AND status = 'processing'
            AND (rerun_payload IS NULL OR kind = 'cancelled')
        RETURNING items.seq, items.batch_id, items.priority, items.due_at, items.suspect, items.status, items.fingerprint,
            outcome.kind, outcome.crashed, greatest(outcome.ended - outcome.started, 0) AS seconds, outcome.ended, outcome.pause),
    unheld AS (DELETE FROM held USING done WHERE held.seq = done.seq),
    listed_ready AS (
        INSERT INTO ready (batch_id, rank, seq)
        SELECT batch_id, ~priority, seq FROM done WHERE status = 'pending' AND suspect <= 0 AND due_at IS NULL
        ON CONFLICT DO NOTHING),
    listed_waiting AS (
        INSERT INTO waiting (batch_id, rank, due_at, seq)
        SELECT batch_id, ~priority, due_at, seq FROM done WHERE status = 'pending' AND suspect <= 0 AND due_at IS NOT NULL
        ON CONFLICT DO NOTHING),
    listed_suspects AS (
        INSERT INTO suspects (batch_id, suspect, rank, seq, due_at)
        SELECT batch_id, suspect, ~priority, seq, due_at FROM done WHERE status = 'pending' AND suspect > 0
        ON CONFLICT (batch_id, suspect, rank, seq) DO UPDATE SET due_at = excluded.due_at),
    listed_ended AS (
        INSERT INTO ended (batch_id, status, seq, fingerprint)
        SELECT batch_id, status, seq, CASE status WHEN 'failed' THEN fingerprint END FROM done
        WHERE status IN ('failed', 'cancelled')
        ON CONFLICT (batch_id, status, seq) DO UPDATE SET fingerprint = excluded.fingerprint),
    counted AS (
        INSERT INTO tallies (batch_id, processing, pending, failed, cancelled, put_offs,
            minute, minute_failed, minute_retried, minute_seconds)
        SELECT batch_id, -count(*), count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'failed'),
            count(*) FILTER (WHERE status = 'cancelled'), count(*) FILTER (WHERE kind = 'put_off'),
            floor(at / 60)::bigint * 60, count(*) FILTER (WHERE kind = 'failed'), count(*) FILTER (WHERE kind = 'retrying'),
            coalesce(sum(seconds) FILTER (WHERE kind IN ('failed', 'retrying') AND NOT crashed), 0)
        FROM done GROUP BY batch_id),
    recorded AS (
        INSERT INTO turns (batch_id, at, completed, failed, retried, durations)
        SELECT batch_id, to_timestamp(at), 0, count(*) FILTER (WHERE kind = 'failed'), count(*) FILTER (WHERE kind = 'retrying'),
            json_build_object(
                'failed', coalesce(json_agg((seconds * 1e6)::bigint) FILTER (WHERE kind = 'failed'), '[]'),
                'cancelled', coalesce(json_agg((seconds * 1e6)::bigint) FILTER (WHERE kind = 'cancelled'), '[]'),
                'retried', coalesce(json_agg((seconds * 1e6)::bigint) FILTER (WHERE kind = 'retrying'), '[]'))
        FROM done WHERE kind IN ('failed', 'cancelled', 'retrying') GROUP BY batch_id),
    cooled AS (
        UPDATE batches SET cooldown_until = greatest(cooldown_until, to_timestamp(pauses.until))
        FROM (SELECT batch_id, max(ended + pause) AS until FROM done WHERE pause IS NOT NULL GROUP BY batch_id) AS pauses
        WHERE batches.batch_id = pauses.batch_id)
    SELECT coalesce(array_agg(seq), '{}') INTO settled FROM done;
    RETURN settled;
END $function$;

-- Run items once more, in place of any outcome of their current attempt, because a rerun was requested meanwhile. The request has
-- set priority and due_at. An earlier result stays if its payload does. Returns the numbers of these items.
CREATE FUNCTION rerun_requested(seqs bigint[], claims bigint[]) RETURNS bigint[] LANGUAGE plpgsql AS $function$
DECLARE
    rerun bigint[];
BEGIN
    WITH again AS (
        UPDATE items SET
            payload = rerun_payload, rerun_payload = NULL, status = 'pending', attempts = 0, crashes = 0, permanent = false,
            suspect = 0, worker_id = NULL, started_at = NULL, completed_at = NULL,
            result = CASE WHEN rerun_payload = payload THEN result END, error = NULL, checkpoint = NULL, put_off_at = NULL
        FROM unnest(seqs, claims) AS entry (seq, claim)
        WHERE items.seq = entry.seq AND items.claim = entry.claim AND status = 'processing' AND rerun_payload IS NOT NULL
        RETURNING items.seq, items.batch_id, items.priority, items.due_at),
    unheld AS (DELETE FROM held USING again WHERE held.seq = again.seq),
    listed_ready AS (
        INSERT INTO ready (batch_id, rank, seq) SELECT batch_id, ~priority, seq FROM again WHERE due_at IS NULL
        ON CONFLICT DO NOTHING),
    listed_waiting AS (
        INSERT INTO waiting (batch_id, rank, due_at, seq)
        SELECT batch_id, ~priority, due_at, seq FROM again WHERE due_at IS NOT NULL
        ON CONFLICT DO NOTHING),
    counted AS (
        INSERT INTO tallies (batch_id, processing, pending) SELECT batch_id, -count(*), count(*) FROM again GROUP BY batch_id)
    SELECT coalesce(array_agg(seq), '{}') INTO rerun FROM again;
    RETURN rerun;
END $function$;

-- Settle outcomes of any kind. Returns the claims whose outcomes were dropped, and whether the item runs again instead.
CREATE FUNCTION settle(
    at double precision, c_seqs bigint[], c_claims bigint[], c_starts double precision[], c_ends double precision[],
    c_results text[], outcomes json)
RETURNS TABLE (dropped_seq bigint, dropped_claim bigint, is_rerun boolean) LANGUAGE plpgsql AS $function$
DECLARE
    settled bigint[] := '{}';
    o_seqs bigint[] := '{}';
    o_claims bigint[] := '{}';
    rerun bigint[];
BEGIN
    IF cardinality(c_seqs) > 0 THEN
        settled := settle_completed(at, c_seqs, c_claims, c_starts, c_ends, c_results);
    END IF;
    IF outcomes IS NOT NULL THEN
        settled := settled || settle_others(at, outcomes);
        SELECT array_agg(seq), array_agg(claim) INTO o_seqs, o_claims
        FROM json_to_recordset(outcomes) AS entry (seq bigint, claim bigint);
        INSERT INTO failures (batch_id, id, attempt, claim, failed_at, error_type, message, traceback, fingerprint,
            started_at, duration)
        SELECT items.batch_id, items.id, attempt, entry.claim, to_timestamp(at), error_type, message, traceback, entry.fingerprint,
            to_timestamp(started), greatest(ended - started, 0)
        FROM json_to_recordset(outcomes) AS entry (
            kind text, seq bigint, claim bigint, started double precision, ended double precision, attempt bigint,
            error_type text, message text, traceback text, fingerprint text)
        JOIN items ON items.seq = entry.seq
        WHERE kind IN ('retrying', 'failed') AND (
            entry.seq = ANY (settled)
            OR (items.claim = entry.claim AND items.status = 'processing' AND items.rerun_payload IS NOT NULL))
        ORDER BY entry.seq;
    END IF;
    IF cardinality(settled) = cardinality(c_seqs) + cardinality(o_seqs) THEN
        RETURN;
    END IF;
    rerun := rerun_requested(c_seqs || o_seqs, c_claims || o_claims);
    RETURN QUERY
        SELECT entry.seq, entry.claim, entry.seq = ANY (rerun)
        FROM unnest(c_seqs || o_seqs, c_claims || o_claims) AS entry (seq, claim)
        WHERE entry.seq <> ALL (settled);
END $function$;

-- The functions for workers that leave, are lost, or send a heartbeat.

-- Settle the items of a lost worker, and mark it as lost. outcomes: of the items that the caller knows it to hold. Returns NULL, and
-- changes nothing, if the worker holds other items, so that the caller reads them again; -1 if the worker has ended or has sent
-- another heartbeat; else the number of recovered items.
CREATE FUNCTION recover_worker(worker text, at double precision, pulse text, outcomes json)
RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
#variable_conflict use_column
DECLARE
    dropped bigint;
    expected bigint;
BEGIN
    PERFORM FROM turn_marks WHERE worker_id = worker FOR UPDATE;
    PERFORM FROM workers
    WHERE worker_id = worker AND ended_at IS NULL AND (pulse IS NULL OR workers.beats::text = pulse) FOR UPDATE;
    IF NOT FOUND THEN
        RETURN -1;
    END IF;
    SELECT count(*) INTO expected FROM json_to_recordset(outcomes) AS entry (seq bigint);
    IF (SELECT count(*) FROM held JOIN items ON items.seq = held.seq
        WHERE held.worker_id = worker AND items.status = 'processing') <> expected THEN
        RETURN NULL;
    END IF;
    SELECT count(*) INTO dropped FROM settle(at, '{}', '{}', '{}', '{}', '{}', outcomes) WHERE NOT is_rerun;
    IF dropped > 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'AR003', MESSAGE = 'an item of the worker has changed';
    END IF;
    UPDATE workers SET ended_at = to_timestamp(at), lost = true WHERE worker_id = worker;
    RETURN expected;
END $function$;

-- Settle orphaned items. Returns how many of them were settled; the others have changed meanwhile.
CREATE FUNCTION recover_orphans(at double precision, outcomes json)
RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
DECLARE
    dropped bigint;
    expected bigint;
BEGIN
    SELECT count(*) INTO expected FROM json_to_recordset(outcomes) AS entry (seq bigint);
    SELECT count(*) INTO dropped FROM settle(at, '{}', '{}', '{}', '{}', '{}', outcomes) WHERE NOT is_rerun;
    RETURN expected - dropped;
END $function$;

-- Release the items of a worker that leaves, and record its end.
CREATE FUNCTION release_worker(worker text, at double precision)
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
#variable_conflict use_column
DECLARE
    outcomes json;
BEGIN
    PERFORM FROM turn_marks WHERE worker_id = worker FOR UPDATE;
    SELECT json_agg(json_build_object(
        'kind', 'released', 'seq', items.seq, 'claim', items.claim, 'started', at, 'ended', at)) INTO outcomes
    FROM held JOIN items ON items.seq = held.seq
    WHERE held.worker_id = worker AND items.status = 'processing';
    IF outcomes IS NOT NULL THEN
        PERFORM FROM settle(at, '{}', '{}', '{}', '{}', '{}', outcomes);
    END IF;
    UPDATE workers SET ended_at = to_timestamp(at), lost = false WHERE worker_id = worker AND ended_at IS NULL;
    DELETE FROM turn_marks WHERE worker_id = worker;
END $function$;

-- Replace the rows of tallies and causes by their sums, move the minutes to their table, and delete what is old. Of several callers,
-- one does it.
CREATE FUNCTION fold(at double precision)
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
#variable_conflict use_column
BEGIN
    IF NOT pg_try_advisory_xact_lock(7242, hashtext(current_schema())) THEN
        RETURN;
    END IF;
    WITH folded AS (DELETE FROM tallies RETURNING *),
    history_rows AS (
        INSERT INTO minutes (batch_id, minute, completed, failed, retried, seconds)
        SELECT batch_id, minute, sum(minute_completed), sum(minute_failed), sum(minute_retried), sum(minute_seconds)
        FROM folded WHERE minute IS NOT NULL GROUP BY batch_id, minute
        ON CONFLICT (batch_id, minute) DO UPDATE SET
            completed = minutes.completed + excluded.completed, failed = minutes.failed + excluded.failed,
            retried = minutes.retried + excluded.retried, seconds = minutes.seconds + excluded.seconds)
    INSERT INTO tallies (batch_id, pending, processing, completed, failed, cancelled, put_offs)
    SELECT batch_id, sum(pending), sum(processing), sum(completed), sum(failed), sum(cancelled), sum(put_offs)
    FROM folded GROUP BY batch_id;
    WITH folded AS (DELETE FROM causes RETURNING *)
    INSERT INTO causes (batch_id, fingerprint, attempts)
    SELECT batch_id, fingerprint, sum(attempts) FROM folded GROUP BY batch_id, fingerprint HAVING sum(attempts) > 0;
    DELETE FROM minutes WHERE minute < floor(at / 60)::bigint * 60 - 14 * 86400;
    DELETE FROM turns USING (
        SELECT batch_id, (SELECT number FROM turns WHERE turns.batch_id = batches.batch_id ORDER BY number DESC LIMIT 1 OFFSET 1000)
            AS newest_old
        FROM batches) AS old_turns
    WHERE turns.batch_id = old_turns.batch_id AND turns.number <= old_turns.newest_old;
    DELETE FROM calls WHERE called_at < to_timestamp(at) - interval '1 day';
END $function$;

-- The turn of a worker: it settles outcomes and claims items.

-- Move items whose due time has passed from waiting to ready, the highest priorities first: it jumps from each priority of the
-- waiting items to the next lower one, up to 1,000 times. If none of these has a due item, those that became due first follow.
-- An item that a change by hand has moved meanwhile stays where that change has listed it.
CREATE FUNCTION promote_due(batch bigint, at timestamptz, most integer) RETURNS boolean LANGUAGE plpgsql AS $function$
DECLARE
    remaining integer := most;
    level bigint;
    moved integer;
BEGIN
    IF NOT EXISTS (SELECT FROM waiting WHERE batch_id = batch AND due_at <= at) THEN
        RETURN false;
    END IF;
    SELECT min(rank) INTO level FROM waiting WHERE batch_id = batch;
    FOR attempt IN 1..1000 LOOP
        EXIT WHEN level IS NULL OR remaining <= 0;
        WITH due AS (
            DELETE FROM waiting WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM waiting WHERE batch_id = batch AND rank = level AND due_at <= at
                ORDER BY due_at LIMIT remaining FOR UPDATE SKIP LOCKED))
            RETURNING seq),
        changed AS (
            UPDATE items SET due_at = NULL FROM due
            WHERE items.seq = due.seq AND batch_id + 0 = batch AND status = 'pending' AND items.due_at <= at AND suspect <= 0
            RETURNING items.seq, priority)
        INSERT INTO ready (batch_id, rank, seq) SELECT batch, ~priority, seq FROM changed ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS moved = ROW_COUNT;
        remaining := remaining - moved;
        SELECT min(rank) INTO level FROM waiting WHERE batch_id = batch AND rank > level;
    END LOOP;
    IF remaining = most THEN
        WITH due AS (
            DELETE FROM waiting WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM waiting WHERE batch_id = batch AND due_at <= at
                ORDER BY due_at LIMIT remaining FOR UPDATE SKIP LOCKED))
            RETURNING seq),
        changed AS (
            UPDATE items SET due_at = NULL FROM due
            WHERE items.seq = due.seq AND batch_id + 0 = batch AND status = 'pending' AND items.due_at <= at AND suspect <= 0
            RETURNING items.seq, priority)
        INSERT INTO ready (batch_id, rank, seq) SELECT batch, ~priority, seq FROM changed ON CONFLICT DO NOTHING;
    END IF;
    RETURN true;
END $function$;

-- The next suspect to claim: the least suspicious one that is due, because only isolated suspects delay other items.
CREATE FUNCTION next_suspect(batch bigint, at timestamptz, only_given boolean) RETURNS suspects LANGUAGE plpgsql AS $function$
DECLARE
    first_one suspects;
BEGIN
    IF only_given THEN  -- in a statement of its own, because the table exists only in a session that was given items
        SELECT suspects.* INTO first_one FROM suspects JOIN pg_temp.given ON given.seq = suspects.seq
        WHERE batch_id = batch AND (due_at IS NULL OR due_at <= at) ORDER BY suspect, rank, suspects.seq LIMIT 1;
    ELSE
        SELECT * INTO first_one FROM suspects
        WHERE batch_id = batch AND (due_at IS NULL OR due_at <= at) ORDER BY suspect, rank, seq LIMIT 1;
    END IF;
    RETURN first_one;
END $function$;

-- Take items that this session was given, the highest priorities of a window that begins with the items that were added first,
-- and remove from the given items those of the window that have ended. Returns the numbers of items that are now in no list.
CREATE FUNCTION take_given(batch bigint, at timestamptz, most integer) RETURNS bigint[] LANGUAGE plpgsql AS $function$
DECLARE
    window_size integer := greatest(most, 2000);
    candidates bigint[];
    taken bigint[];
BEGIN
    DELETE FROM pg_temp.given WHERE given.seq = ANY (ARRAY(
        SELECT first_ones.seq FROM (SELECT given.seq FROM pg_temp.given ORDER BY given.seq LIMIT window_size) AS first_ones
        WHERE NOT EXISTS (
            SELECT FROM items WHERE items.seq = first_ones.seq AND items.status IN ('pending', 'processing'))));
    SELECT array_agg(seq) INTO candidates FROM (
        SELECT seq FROM (
            SELECT items.seq, items.priority FROM pg_temp.given JOIN items ON items.seq = given.seq
            WHERE items.batch_id = batch AND items.status = 'pending' AND (items.due_at IS NULL OR items.due_at <= at)
                AND items.suspect <= 0
            ORDER BY given.seq LIMIT window_size) AS in_window
        ORDER BY priority DESC, seq LIMIT most) AS first_ones;
    WITH from_ready AS (
        DELETE FROM ready WHERE ctid = ANY (ARRAY(
            SELECT ready.ctid FROM items JOIN ready
                ON ready.batch_id = items.batch_id AND ready.rank = ~items.priority AND ready.seq = items.seq
            WHERE items.seq = ANY (candidates) FOR UPDATE OF ready SKIP LOCKED))
        RETURNING ready.seq),
    from_waiting AS (
        DELETE FROM waiting WHERE ctid = ANY (ARRAY(
            SELECT waiting.ctid FROM items JOIN waiting
                ON waiting.batch_id = items.batch_id AND waiting.rank = ~items.priority AND waiting.due_at = items.due_at
                AND waiting.seq = items.seq
            WHERE items.seq = ANY (candidates) FOR UPDATE OF waiting SKIP LOCKED))
        RETURNING waiting.seq)
    SELECT coalesce(array_agg(seq), '{}') INTO taken
    FROM (SELECT seq FROM from_ready UNION ALL SELECT seq FROM from_waiting) AS removed;
    RETURN taken;
END $function$;

CREATE TYPE turn_row AS (
    kind text,                   -- claim, dropped, state, outcast, no worker, no batch
    seq bigint, batch_id bigint, id text, payload text, claim bigint, attempt bigint, crashes bigint, checkpoint text,
    put_off_at double precision, traceparent text, suspect integer,
    info text                    -- JSON
);

-- One turn of one worker: store checkpoints, settle outcomes, claim items. number: of the turn; it grows with each turn of the
-- worker. wants: JSON, with the fields of Want, its rate, and the mark: the position in ready from which to look first, past the
-- index entries of the items that were claimed before it. They stay until a vacuum, and an open snapshot may prevent that.
CREATE FUNCTION turn(
    worker text, number bigint, at double precision, c_seqs bigint[], c_claims bigint[], c_starts double precision[],
    c_ends double precision[], c_results text[], outcomes json, checkpoints json, wants json)
RETURNS SETOF turn_row LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
#variable_conflict use_column
DECLARE
    answer turn_row;
    dropped_claims json;
    has_ended boolean;
    has_mark boolean;
    want record;
    batch batches;
    moment timestamptz := to_timestamp(at);
    resting_until double precision;
    spent double precision;      -- up to where the starts of the rate limit are used
    requested integer;
    allowed integer;
    suspect_row suspects;
    next_suspicion integer;
    taken bigint[];
    more bigint[];
    claimed integer;
    unfinished boolean;
    next_due timestamptz;
    from_rank bigint;
    from_seq bigint;
BEGIN
    -- The lock on this row lasts until the commit. The recovery of this worker takes it too, see turn_marks.
    UPDATE turn_marks SET turn = number, dropped = NULL WHERE worker_id = worker AND turn < number;
    has_mark := FOUND;
    IF NOT has_mark AND EXISTS (SELECT FROM turn_marks WHERE worker_id = worker) THEN
        RAISE EXCEPTION USING ERRCODE = 'AR002', MESSAGE = 'a later turn of the worker has begun';
    END IF;
    SELECT ended_at IS NOT NULL INTO has_ended FROM workers WHERE worker_id = worker;
    IF NOT FOUND OR has_ended OR NOT has_mark THEN
        answer.kind := CASE WHEN has_ended THEN 'outcast' ELSE 'no worker' END;
        RETURN NEXT answer;
        RETURN;
    END IF;

    IF checkpoints IS NOT NULL THEN
        WITH entry AS MATERIALIZED (
            SELECT * FROM json_to_recordset(checkpoints) AS fields (seq bigint, claim bigint, checkpoint text)),
        saved AS (
            UPDATE items SET checkpoint = entry.checkpoint FROM entry
            WHERE items.seq = entry.seq AND items.claim = entry.claim AND status = 'processing'
            RETURNING items.seq, items.claim)
        SELECT json_agg(json_build_array(entry.seq, entry.claim, 'lost')) INTO dropped_claims
        FROM entry WHERE NOT EXISTS (SELECT FROM saved WHERE saved.seq = entry.seq AND saved.claim = entry.claim);
    END IF;
    IF cardinality(c_seqs) > 0 OR outcomes IS NOT NULL THEN
        SELECT coalesce(json_agg(entry), dropped_claims) INTO dropped_claims FROM (
            SELECT value AS entry FROM json_array_elements(dropped_claims)
            UNION ALL
            SELECT json_build_array(dropped_seq, dropped_claim, CASE WHEN is_rerun THEN 'rerun' ELSE 'lost' END)
            FROM settle(at, c_seqs, c_claims, c_starts, c_ends, c_results, outcomes)) AS entries;
    END IF;
    IF dropped_claims IS NOT NULL THEN
        UPDATE turn_marks SET dropped = dropped_claims::text WHERE worker_id = worker;
        answer.kind := 'dropped';
        answer.info := dropped_claims;
        RETURN NEXT answer;
    END IF;

    FOR want IN
        SELECT * FROM json_to_recordset(wants) AS fields (
            batch_id bigint, n integer, max_attempts bigint, suspicion integer, version bigint, only_given boolean,
            per_second double precision, burst integer, mark_rank bigint, mark_seq bigint)
    LOOP
        IF want.per_second IS NULL THEN
            SELECT * INTO batch FROM batches WHERE batches.batch_id = want.batch_id;
        ELSE
            SELECT * INTO batch FROM batches WHERE batches.batch_id = want.batch_id FOR NO KEY UPDATE;
        END IF;
        IF NOT FOUND THEN
            answer.kind := 'no batch';
            answer.batch_id := want.batch_id;
            RETURN NEXT answer;
            RETURN;
        END IF;
        IF want.version <> batch.version_number THEN
            answer := NULL;
            answer.kind := 'state';
            answer.batch_id := want.batch_id;
            answer.info := json_build_object('concurrency', batch.concurrency, 'other_version', true);
            RETURN NEXT answer;
            CONTINUE;
        END IF;
        resting_until := CASE
            WHEN batch.paused OR batch.stopped IS NOT NULL THEN 'infinity'
            WHEN batch.cooldown_until > moment THEN extract(epoch FROM batch.cooldown_until) END;
        requested := want.n + (want.suspicion > 0)::integer;
        allowed := requested;
        IF want.per_second IS NOT NULL THEN  -- the formulas of domain/rate_limit.py
            spent := CASE WHEN batch.rate_spent <= at + (want.burst + 1) / want.per_second THEN greatest(batch.rate_spent, at)
                ELSE at END;
            allowed := least(requested, trunc((at + want.burst / want.per_second - spent) * want.per_second + 1e-6)::integer);
        END IF;
        taken := '{}';
        next_suspicion := 0;
        from_rank := NULL;
        IF resting_until IS NULL AND allowed > 0 THEN
            IF want.suspicion > 0 THEN
                suspect_row := next_suspect(want.batch_id, moment, want.only_given);
                IF suspect_row.suspect IS NOT NULL AND least(suspect_row.suspect, 2) <= want.suspicion THEN
                    WITH first_one AS (
                        DELETE FROM suspects WHERE ctid = ANY (ARRAY(
                            SELECT ctid FROM suspects
                            WHERE suspects.batch_id = want.batch_id AND suspects.suspect = suspect_row.suspect
                                AND rank = suspect_row.rank AND suspects.seq = suspect_row.seq
                            FOR UPDATE SKIP LOCKED))
                        RETURNING suspects.seq)
                    SELECT coalesce(array_agg(first_one.seq), '{}') INTO taken FROM first_one;
                END IF;
            END IF;
            allowed := least(want.n + cardinality(taken), allowed);
            IF allowed > cardinality(taken) AND want.only_given THEN
                more := take_given(want.batch_id, moment, allowed - cardinality(taken));
                taken := taken || more;
            ELSIF allowed > cardinality(taken) THEN
                from_rank := want.mark_rank;
                from_seq := want.mark_seq;
                IF promote_due(want.batch_id, moment, greatest(allowed, 500)) THEN
                    from_rank := NULL;
                END IF;
                LOOP  -- from the mark on; then, if that was too little, from the first item on
                    WITH first_ones AS MATERIALIZED (
                        SELECT ctid FROM ready
                        WHERE ready.batch_id = want.batch_id
                            AND (rank, ready.seq) > (coalesce(from_rank, -9223372036854775808), coalesce(from_seq, 0))
                        ORDER BY rank, ready.seq LIMIT allowed - cardinality(taken) FOR UPDATE SKIP LOCKED),
                    removed AS (
                        DELETE FROM ready WHERE ctid IN (SELECT ctid FROM first_ones) RETURNING ready.seq)
                    SELECT coalesce(array_agg(removed.seq), '{}') INTO more FROM removed;
                    taken := taken || more;
                    EXIT WHEN from_rank IS NULL OR cardinality(taken) >= allowed;
                    from_rank := NULL;
                END LOOP;
            END IF;
        END IF;
        claimed := 0;
        IF cardinality(taken) > 0 THEN
            RETURN QUERY
                WITH claimed AS (
                    UPDATE items SET
                        status = 'processing', attempts = least(attempts, want.max_attempts - 1) + 1,
                        claim = claim % 9223372036854775807 + 1, worker_id = worker, started_at = moment, completed_at = NULL,
                        due_at = NULL, permanent = false, version = batch.version_number,
                        result_claim = CASE WHEN result = '' THEN coalesce(result_claim, claim) END
                    WHERE items.seq = ANY (taken) AND status = 'pending'
                        AND items.batch_id + 0 = want.batch_id  -- not the index of keys, where it would read the whole batch
                        AND (due_at IS NULL OR due_at <= moment)
                    RETURNING items.seq, id, payload, claim, attempts, crashes, checkpoint, put_off_at, traceparent, suspect,
                        priority),
                listed AS (
                    INSERT INTO held (seq, batch_id, worker_id, turn)
                    SELECT claimed.seq, want.batch_id, worker, number FROM claimed
                    ON CONFLICT (seq) DO UPDATE SET worker_id = excluded.worker_id, turn = excluded.turn),
                counted AS (
                    INSERT INTO tallies (batch_id, pending, processing)
                    SELECT want.batch_id, -count(*), count(*) FROM claimed HAVING count(*) > 0)
                SELECT 'claim', claimed.seq, want.batch_id, claimed.id, claimed.payload, claimed.claim, claimed.attempts,
                    claimed.crashes, claimed.checkpoint, claimed.put_off_at, claimed.traceparent, claimed.suspect,
                    claimed.priority::text
                FROM claimed ORDER BY claimed.suspect DESC, claimed.priority DESC, claimed.seq;
            GET DIAGNOSTICS claimed = ROW_COUNT;
        END IF;
        IF resting_until IS NULL AND allowed > 0 THEN
            IF want.suspicion = 0 OR suspect_row.suspect IS NOT NULL THEN  -- else it was none before the claims
                suspect_row := next_suspect(want.batch_id, moment, want.only_given);
            END IF;
            next_suspicion := CASE WHEN suspect_row.suspect IS NULL THEN 0 ELSE least(suspect_row.suspect, 2) END;
        END IF;
        IF want.per_second IS NOT NULL THEN
            spent := spent + claimed / want.per_second;
            IF claimed > 0 THEN
                UPDATE batches SET rate_spent = spent WHERE batches.batch_id = want.batch_id;
            END IF;
            IF claimed = allowed AND allowed < requested AND resting_until IS NULL THEN
                resting_until := spent - (want.burst - greatest(1, want.burst / 2)) / want.per_second;
            END IF;
        END IF;
        IF claimed < requested OR next_suspicion > 0 THEN
            IF claimed = requested THEN
                unfinished := true;
                next_due := NULL;
            ELSIF want.only_given THEN
                SELECT count(*) > 0, min(items.due_at) FILTER (WHERE items.status = 'pending' AND items.due_at > moment)
                INTO unfinished, next_due
                FROM pg_temp.given JOIN items ON items.seq = given.seq
                WHERE items.batch_id = want.batch_id AND items.status IN ('pending', 'processing');
            ELSE
                SELECT sum(pending + processing) > 0 INTO unfinished FROM tallies WHERE tallies.batch_id = want.batch_id;
                SELECT least(
                    (SELECT min(due_at) FROM waiting WHERE waiting.batch_id = want.batch_id),
                    (SELECT min(due_at) FROM suspects WHERE suspects.batch_id = want.batch_id)) INTO next_due;
            END IF;
            answer := NULL;
            answer.kind := 'state';
            answer.batch_id := want.batch_id;
            answer.info := json_build_object(
                'unfinished', coalesce(unfinished, false), 'next_due', extract(epoch FROM next_due)::double precision,
                'resting_until', CASE WHEN resting_until < 'infinity' THEN resting_until END,
                'rests', resting_until IS NOT NULL, 'concurrency', batch.concurrency, 'stopped', batch.stopped,
                'suspicion', coalesce(next_suspicion, 0));
            RETURN NEXT answer;
        END IF;
    END LOOP;
END $function$;

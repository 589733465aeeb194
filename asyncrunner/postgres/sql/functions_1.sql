-- The functions and triggers of schema 1. They run with the search_path that is set while they are created, with which the
-- triggers for changes by hand do nothing.
--
-- Each verb of a worker is one call: a transaction of several statements would hold its locks while the network, or a suspended
-- process, delays the next statement. Each statement in a function sees what other transactions have committed before it.

-- A time as text in UTC, as the rows of a SQLite file have it.
CREATE FUNCTION utc_text(moment timestamptz) RETURNS text LANGUAGE sql STABLE AS $function$
    SELECT to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')
$function$;

-- --- changes by hand ------------------------------------------------------------------------------------------------
-- A claim locks the row of ready before the row of items, and a change by hand has locked the row of items. So these functions
-- skip locked rows: the claim that holds such a row deletes it, and claims the item only if it is still pending.

CREATE FUNCTION list_item(item items) RETURNS void LANGUAGE plpgsql AS $function$
BEGIN
    IF item.status = 'processing' THEN
        INSERT INTO held (seq, batch_id, worker_id, turn) VALUES (item.seq, item.batch_id, coalesce(item.worker_id, ''), 0)
        ON CONFLICT (seq) DO UPDATE SET batch_id = excluded.batch_id, worker_id = excluded.worker_id;
    ELSIF item.status = 'pending' AND item.suspect > 0 THEN
        INSERT INTO suspects (batch_id, suspect, rank, seq, due_at)
        VALUES (item.batch_id, item.suspect, ~item.priority, item.seq, item.due_at)
        ON CONFLICT (batch_id, suspect, rank, seq) DO UPDATE SET due_at = excluded.due_at;
    ELSIF item.status = 'pending' AND item.due_at IS NULL THEN
        INSERT INTO ready (batch_id, rank, seq) VALUES (item.batch_id, ~item.priority, item.seq) ON CONFLICT DO NOTHING;
    ELSIF item.status = 'pending' THEN
        INSERT INTO waiting (batch_id, rank, due_at, seq) VALUES (item.batch_id, ~item.priority, item.due_at, item.seq)
        ON CONFLICT DO NOTHING;
    ELSIF item.status IN ('failed', 'cancelled') THEN
        INSERT INTO ended (batch_id, status, seq, fingerprint)
        VALUES (item.batch_id, item.status, item.seq, CASE item.status WHEN 'failed' THEN item.fingerprint END)
        ON CONFLICT (batch_id, status, seq) DO UPDATE SET fingerprint = excluded.fingerprint;
    END IF;
END $function$;

CREATE FUNCTION unlist_item(item items) RETURNS void LANGUAGE plpgsql AS $function$
BEGIN
    DELETE FROM held WHERE held.seq = item.seq;
    IF item.status <> 'pending' THEN
        DELETE FROM ended WHERE batch_id = item.batch_id AND status = item.status AND seq = item.seq;
        RETURN;
    END IF;
    DELETE FROM ready WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM ready WHERE batch_id = item.batch_id AND rank = ~item.priority AND seq = item.seq FOR UPDATE SKIP LOCKED));
    DELETE FROM suspects WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM suspects
        WHERE batch_id = item.batch_id AND suspect = item.suspect AND rank = ~item.priority AND seq = item.seq
        FOR UPDATE SKIP LOCKED));
    DELETE FROM waiting WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM waiting
        WHERE batch_id = item.batch_id AND rank = ~item.priority AND due_at = item.due_at AND seq = item.seq
        FOR UPDATE SKIP LOCKED));
END $function$;

-- Add a difference of one item to the counts of a batch.
CREATE FUNCTION tally_item(item items, difference integer) RETURNS void LANGUAGE sql AS $function$
    INSERT INTO tallies (batch_id, pending, processing, completed, failed, cancelled) VALUES (
        item.batch_id,
        CASE item.status WHEN 'pending' THEN difference ELSE 0 END,
        CASE item.status WHEN 'processing' THEN difference ELSE 0 END,
        CASE item.status WHEN 'completed' THEN difference ELSE 0 END,
        CASE item.status WHEN 'failed' THEN difference ELSE 0 END,
        CASE item.status WHEN 'cancelled' THEN difference ELSE 0 END)
$function$;

-- Raise foreign_key_violation if the batch does not exist, and let no transaction delete it before this one ends. A foreign key of
-- items would do the same once for each item, for a third of the cost of an addition.
CREATE FUNCTION check_batch(batch bigint) RETURNS void LANGUAGE plpgsql AS $function$
BEGIN
    PERFORM FROM batches WHERE batch_id = batch FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE foreign_key_violation USING MESSAGE = format('there is no batch %s', batch), TABLE = 'items', COLUMN = 'batch_id';
    END IF;
END $function$;

-- Whether a change leaves the item in the same row of the same table; that row is then updated in place. A settlement that waited
-- for the change would not see a row that the change has inserted; and a claim that has deleted the row of ready, and waits
-- for the change, must not wait for an insertion of the same row.
CREATE FUNCTION is_listed_the_same(old items, new items) RETURNS boolean LANGUAGE sql IMMUTABLE AS $function$
    SELECT old.seq = new.seq AND old.batch_id = new.batch_id AND old.status = new.status AND (
        new.status <> 'pending'
        OR old.priority = new.priority AND greatest(old.suspect, 0) = greatest(new.suspect, 0)
        AND old.due_at IS NOT DISTINCT FROM new.due_at)
$function$;

CREATE FUNCTION items_changed_by_hand() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
BEGIN
    IF TG_OP = 'UPDATE' AND is_listed_the_same(OLD, NEW) THEN
        UPDATE held SET worker_id = coalesce(NEW.worker_id, '') WHERE seq = NEW.seq AND NEW.status = 'processing';
        UPDATE ended SET fingerprint = NEW.fingerprint
        WHERE batch_id = NEW.batch_id AND status = NEW.status AND seq = NEW.seq AND NEW.status = 'failed';
    ELSE
        IF TG_OP <> 'INSERT' THEN
            PERFORM unlist_item(OLD);
        END IF;
        IF TG_OP <> 'DELETE' THEN
            PERFORM check_batch(NEW.batch_id);
            PERFORM list_item(NEW);
        END IF;
    END IF;
    IF TG_OP = 'INSERT' THEN
        PERFORM tally_item(NEW, 1);
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM tally_item(OLD, -1);
    ELSIF OLD.status <> NEW.status OR OLD.batch_id <> NEW.batch_id THEN
        PERFORM tally_item(OLD, -1);
        PERFORM tally_item(NEW, 1);
    END IF;
    -- Workers, and programs that wait for a result, hear of it once the transaction is committed. "first": a turn looks from the
    -- first item on, because an item may be before those that it has claimed.
    PERFORM pg_notify(TG_TABLE_SCHEMA, coalesce(NEW.batch_id, OLD.batch_id) || ' first');
    RETURN NULL;
END $function$;

-- The search_path of this package's functions is a mark: it ends with a schema that does not exist. A setting of its own could be
-- the mark of a function only where a superuser creates it. The comparison of two texts for equality is the cheapest one.
DO $triggers$ BEGIN
    EXECUTE format($trigger$
        CREATE TRIGGER items_inserted_by_hand AFTER INSERT ON items FOR EACH ROW
            WHEN (current_setting('search_path') <> %1$L) EXECUTE FUNCTION items_changed_by_hand();
        CREATE TRIGGER items_updated_by_hand
            AFTER UPDATE OF seq, batch_id, status, worker_id, priority, suspect, due_at, fingerprint ON items FOR EACH ROW
            WHEN (current_setting('search_path') <> %1$L
                AND (OLD.seq, OLD.batch_id, OLD.status, OLD.worker_id, OLD.priority, OLD.suspect, OLD.due_at, OLD.fingerprint)
                IS DISTINCT FROM (
                    NEW.seq, NEW.batch_id, NEW.status, NEW.worker_id, NEW.priority, NEW.suspect, NEW.due_at, NEW.fingerprint))
            EXECUTE FUNCTION items_changed_by_hand();
        CREATE TRIGGER items_deleted_by_hand AFTER DELETE ON items FOR EACH ROW
            WHEN (current_setting('search_path') <> %1$L) EXECUTE FUNCTION items_changed_by_hand()
        $trigger$, current_setting('search_path'));
END $triggers$;

CREATE FUNCTION items_truncated() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
BEGIN
    TRUNCATE ready, waiting, suspects, held, ended;
    INSERT INTO tallies (batch_id, pending, processing, completed, failed, cancelled)
    SELECT batch_id, -sum(pending), -sum(processing), -sum(completed), -sum(failed), -sum(cancelled) FROM tallies
    GROUP BY batch_id;
    RETURN NULL;
END $function$;
CREATE TRIGGER items_truncated AFTER TRUNCATE ON items EXECUTE FUNCTION items_truncated();

CREATE FUNCTION batches_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM tallies WHERE batch_id = OLD.batch_id;
        DELETE FROM minutes WHERE batch_id = OLD.batch_id;
        DELETE FROM copies WHERE batch_id = OLD.batch_id;
    ELSE
        PERFORM pg_notify(TG_TABLE_SCHEMA, NEW.batch_id::text);
    END IF;
    RETURN NULL;
END $function$;
CREATE FUNCTION batches_kept() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.batch_id = OLD.batch_id OR NOT EXISTS (SELECT FROM items WHERE batch_id = OLD.batch_id) THEN
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    RAISE foreign_key_violation USING MESSAGE = format('batch %s has items; delete them first', OLD.batch_id), TABLE = 'items';
END $function$;
CREATE TRIGGER batches_kept BEFORE DELETE OR UPDATE OF batch_id ON batches FOR EACH ROW EXECUTE FUNCTION batches_kept();

CREATE TRIGGER batches_deleted AFTER DELETE ON batches FOR EACH ROW EXECUTE FUNCTION batches_changed();
DO $triggers$ BEGIN
    EXECUTE format($trigger$
        CREATE TRIGGER batches_resumed AFTER UPDATE OF paused, stopped, cooldown_until, concurrency ON batches FOR EACH ROW
            WHEN (current_setting('search_path') <> %1$L) EXECUTE FUNCTION batches_changed()
        $trigger$, current_setting('search_path'));
END $triggers$;

CREATE FUNCTION failures_changed() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO causes SELECT batch_id, fingerprint, -count(*) FROM old_failures GROUP BY batch_id, fingerprint;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO causes SELECT batch_id, fingerprint, count(*) FROM new_failures GROUP BY batch_id, fingerprint;
    END IF;
    RETURN NULL;
END $function$;
CREATE TRIGGER failures_inserted AFTER INSERT ON failures REFERENCING NEW TABLE AS new_failures
    FOR EACH STATEMENT EXECUTE FUNCTION failures_changed();
CREATE TRIGGER failures_updated AFTER UPDATE ON failures REFERENCING OLD TABLE AS old_failures NEW TABLE AS new_failures
    FOR EACH STATEMENT EXECUTE FUNCTION failures_changed();
CREATE TRIGGER failures_deleted AFTER DELETE ON failures REFERENCING OLD TABLE AS old_failures
    FOR EACH STATEMENT EXECUTE FUNCTION failures_changed();

CREATE FUNCTION failures_truncated() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
BEGIN
    TRUNCATE causes;
    RETURN NULL;
END $function$;
CREATE TRIGGER failures_truncated AFTER TRUNCATE ON failures EXECUTE FUNCTION failures_truncated();

-- --- adding items ---------------------------------------------------------------------------------------------------

-- Add a chunk. Returns one row: for each entry, the number of the item with its key, and whether the key existed before.
--
-- mode "any" accepts every payload of a known key. "same" raises AR001, and stores nothing, if a known key has a payload that differs
-- as text: only the caller can compare JSON. "new" raises AR001 if any key is known.
CREATE FUNCTION add_items(
    batch bigint, ids text[], payloads text[], priorities bigint[], due_times double precision[], trace text, at double precision,
    mode text, OUT seqs bigint[], OUT known boolean[])
LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
DECLARE
    added bigint[] := '{}';
    differing boolean;
BEGIN
    PERFORM check_batch(batch);
    IF NOT EXISTS (SELECT FROM items WHERE batch_id = batch AND id = ids[1])
        OR (SELECT count(DISTINCT id) FROM items WHERE batch_id = batch AND id = ANY (ids)) < cardinality(ids) THEN
        WITH new_items AS (
            INSERT INTO items (batch_id, id, payload, priority, due_at, created_at, traceparent)
            SELECT batch, entry.id, entry.payload, entry.priority, to_timestamp(entry.due), to_timestamp(at), trace
            FROM unnest(ids, payloads, priorities, due_times) WITH ORDINALITY AS entry (id, payload, priority, due, position)
            ORDER BY entry.position
            ON CONFLICT ON CONSTRAINT items_key DO NOTHING
            RETURNING seq, priority, due_at),
        new_ready AS (
            INSERT INTO ready (batch_id, rank, seq) SELECT batch, ~priority, seq FROM new_items WHERE due_at IS NULL),
        new_waiting AS (
            INSERT INTO waiting (batch_id, rank, due_at, seq)
            SELECT batch, ~priority, due_at, seq FROM new_items WHERE due_at IS NOT NULL),
        new_tallies AS (
            INSERT INTO tallies (batch_id, pending) SELECT batch, count(*) FROM new_items HAVING count(*) > 0)
        SELECT coalesce(array_agg(seq), '{}') INTO added FROM new_items;
    END IF;
    IF cardinality(added) = cardinality(ids) THEN
        seqs := added;
        known := array_fill(false, ARRAY[cardinality(ids)]);
        RETURN;
    END IF;
    IF mode = 'new' THEN
        RAISE EXCEPTION USING ERRCODE = 'AR001', MESSAGE = 'a key exists';
    END IF;
    -- This statement sees the items that other transactions have added meanwhile.
    SELECT array_agg(items.seq ORDER BY entry.position), array_agg(items.seq <> ALL (added) ORDER BY entry.position),
        bool_or(coalesce(items.rerun_payload, items.payload) <> entry.payload)
    INTO seqs, known, differing
    FROM unnest(ids, payloads) WITH ORDINALITY AS entry (id, payload, position)
    JOIN items ON items.batch_id = batch AND items.id = entry.id;
    IF mode = 'same' AND differing THEN
        RAISE EXCEPTION USING ERRCODE = 'AR001', MESSAGE = 'a key exists with another payload';
    END IF;
END $function$;

-- The next functions are for a transaction of a caller, with any driver and any search_path: they take and return JSON as text.

-- What tells this database from every other one: of its server, and of a copy of its files. NULL without the right to read it.
CREATE FUNCTION server_identity() RETURNS text LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
BEGIN
    IF has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') THEN
        RETURN (SELECT system_identifier FROM pg_catalog.pg_control_system())
            || '/' || (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database());
    END IF;
    RETURN NULL;
END $function$;

-- Add a chunk, see add_items, to the batch with the id "batch_id", or with the name "batch", which is created if it is new.
-- "notify": notify the workers once the transaction is committed. Raises AR004 if the database has another identity than
-- "server", and AR005 if the schema has another version than "version".
CREATE FUNCTION submit_items(request text) RETURNS text LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
DECLARE
    fields json := request;
    batch bigint := fields ->> 'batch_id';
    version_here integer := (SELECT version FROM meta WHERE product = 'asyncrunner');
    ids text[];
    payloads text[];
    priorities bigint[];
    due_times double precision[];
    answer record;
BEGIN
    IF fields ->> 'server' <> server_identity() THEN
        RAISE EXCEPTION USING ERRCODE = 'AR004', MESSAGE = 'the database is another one';
    ELSIF (fields ->> 'version')::integer <> version_here THEN
        RAISE EXCEPTION USING ERRCODE = 'AR005', MESSAGE = format('the schema has version %s', version_here);
    END IF;
    IF batch IS NULL THEN
        SELECT batch_id INTO batch FROM batches WHERE name = fields ->> 'batch';
    END IF;
    IF batch IS NULL THEN
        INSERT INTO batches (name, handler, options) VALUES (fields ->> 'batch', fields ->> 'handler', fields ->> 'options')
        ON CONFLICT (name) DO NOTHING RETURNING batch_id INTO batch;
    END IF;
    IF batch IS NULL THEN  -- another transaction has created it meanwhile
        SELECT batch_id INTO STRICT batch FROM batches WHERE name = fields ->> 'batch';
    END IF;
    SELECT array_agg(id ORDER BY position), array_agg(payload ORDER BY position), array_agg(priority ORDER BY position),
        array_agg(due_at ORDER BY position)
    INTO ids, payloads, priorities, due_times
    FROM ROWS FROM (json_to_recordset(fields -> 'entries') AS (
        id text, payload text, priority bigint, due_at double precision)) WITH ORDINALITY
        AS entry (id, payload, priority, due_at, position);
    answer := add_items(batch, ids, payloads, priorities, due_times, fields ->> 'traceparent',
        coalesce((fields ->> 'now')::double precision, extract(epoch FROM clock_timestamp())), fields ->> 'mode');
    IF (fields ->> 'notify')::boolean THEN
        PERFORM pg_notify(current_schema(), batch || ' first');
    END IF;
    RETURN json_build_object(
        'batch_id', batch, 'seqs', to_json(answer.seqs), 'known', to_json(answer.known), 'database', current_database());
END $function$;

-- The payload, whether it is completed, and the seq of each item with one of the keys; locked until the caller has compared
-- them. A requested rerun has the newest payload.
CREATE FUNCTION stored_items(request text) RETURNS text LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
DECLARE
    fields json := request;
    answer text;
BEGIN
    WITH locked AS (
        SELECT id, coalesce(rerun_payload, payload) AS payload, status = 'completed' AS completed, seq FROM items
        WHERE batch_id = (fields ->> 'batch_id')::bigint
            AND id = ANY (ARRAY(SELECT value FROM json_array_elements_text(fields -> 'ids') AS keys (value)))
        ORDER BY seq FOR UPDATE)
    SELECT coalesce(json_agg(json_build_array(id, payload, completed, seq)), '[]') INTO answer FROM locked;
    RETURN answer;
END $function$;

-- Store other payloads of known keys, and run these items again: an item that a worker holds, after its current attempt. The
-- triggers for changes by hand list the items.
CREATE FUNCTION replace_payloads(request text) RETURNS text LANGUAGE plpgsql SET search_path FROM CURRENT AS $function$
DECLARE
    fields json := request;
BEGIN
    PERFORM set_config('search_path', current_schema() || ', pg_temp', true);  -- the function's end restores it
    UPDATE items SET rerun_payload = entry.payload, priority = entry.priority, due_at = to_timestamp(entry.due_at),
        traceparent = entry.traceparent
    FROM json_to_recordset(fields -> 'entries') AS entry (
        id text, payload text, priority bigint, due_at double precision, traceparent text)
    WHERE batch_id = (fields ->> 'batch_id')::bigint AND items.id = entry.id AND status = 'processing';
    UPDATE items SET
        payload = entry.payload, priority = entry.priority, due_at = to_timestamp(entry.due_at), status = 'pending', attempts = 0,
        crashes = 0, claim = claim % 9223372036854775807 + 1, permanent = false, suspect = 0, worker_id = NULL, started_at = NULL,
        completed_at = NULL, result = NULL, error = NULL, checkpoint = NULL, put_off_at = NULL, rerun_payload = NULL,
        traceparent = entry.traceparent
    FROM json_to_recordset(fields -> 'entries') AS entry (
        id text, payload text, priority bigint, due_at double precision, traceparent text)
    WHERE batch_id = (fields ->> 'batch_id')::bigint AND items.id = entry.id AND status <> 'processing';
    RETURN NULL;
END $function$;

-- --- settling -------------------------------------------------------------------------------------------------------
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

-- --- claiming -------------------------------------------------------------------------------------------------------

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
    kind text,                   -- claim, dropped, state, mark, outcast, no worker, no batch
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
    dropped json;
    has_ended boolean;
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
    IF NOT FOUND AND EXISTS (SELECT FROM turn_marks WHERE worker_id = worker) THEN
        RAISE EXCEPTION USING ERRCODE = 'AR002', MESSAGE = 'a later turn of the worker has begun';
    END IF;
    SELECT ended_at IS NOT NULL INTO has_ended FROM workers WHERE worker_id = worker;
    IF NOT FOUND OR has_ended OR NOT EXISTS (SELECT FROM turn_marks WHERE worker_id = worker) THEN
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
        SELECT json_agg(json_build_array(entry.seq, entry.claim, 'lost')) INTO dropped
        FROM entry WHERE NOT EXISTS (SELECT FROM saved WHERE saved.seq = entry.seq AND saved.claim = entry.claim);
    END IF;
    IF cardinality(c_seqs) > 0 OR outcomes IS NOT NULL THEN
        SELECT coalesce(json_agg(entry), dropped) INTO dropped FROM (
            SELECT value AS entry FROM json_array_elements(dropped)
            UNION ALL
            SELECT json_build_array(dropped_seq, dropped_claim, CASE WHEN is_rerun THEN 'rerun' ELSE 'lost' END)
            FROM settle(at, c_seqs, c_claims, c_starts, c_ends, c_results, outcomes)) AS entries;
    END IF;
    IF dropped IS NOT NULL THEN
        UPDATE turn_marks SET dropped = turn_dropped.entries FROM (SELECT dropped::text AS entries) AS turn_dropped
        WHERE worker_id = worker;
        answer.kind := 'dropped';
        answer.info := dropped;
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
            suspect_row := next_suspect(want.batch_id, moment, want.only_given);
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

-- --- workers --------------------------------------------------------------------------------------------------------

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

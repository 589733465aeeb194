-- The functions that add items.

-- Add a chunk. Returns one row: for each entry, the number of the item with its key, and whether the key existed before.
-- priorities, due_times: NULL if all are the usual ones, 0 and none.
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
    is_first_known boolean := EXISTS (SELECT FROM items WHERE batch_id = batch AND id = ids[1]);
BEGIN
    PERFORM check_batch(batch);
    -- Probably all keys of a large chunk are new; then a check of each key before its insertion only costs time. The block is a
    -- subtransaction, and a transaction of a caller with more than 64 of them would slow the server down.
    IF NOT is_first_known AND cardinality(ids) > 50 THEN
        BEGIN
            WITH new_items AS (
                INSERT INTO items (batch_id, id, payload, priority, due_at, created_at, traceparent)
                SELECT batch, entry.id, entry.payload, coalesce(entry.priority, 0), to_timestamp(entry.due), to_timestamp(at), trace
                FROM unnest(ids, payloads, priorities, due_times) WITH ORDINALITY AS entry (id, payload, priority, due, position)
                ORDER BY entry.position
                RETURNING seq, priority, due_at),
            new_ready AS (
                INSERT INTO ready (batch_id, rank, seq) SELECT batch, ~priority, seq FROM new_items WHERE due_at IS NULL),
            new_waiting AS (
                INSERT INTO waiting (batch_id, rank, due_at, seq)
                SELECT batch, ~priority, due_at, seq FROM new_items WHERE due_at IS NOT NULL),
            new_tallies AS (INSERT INTO tallies (batch_id, pending) SELECT batch, count(*) FROM new_items)
            SELECT array_agg(seq) INTO seqs FROM new_items;
            known := array_fill(false, ARRAY[cardinality(ids)]);
            RETURN;
        EXCEPTION WHEN unique_violation THEN
            NULL;  -- a key exists, or is twice in the chunk
        END;
    END IF;
    IF NOT is_first_known
        OR (SELECT count(DISTINCT id) FROM items WHERE batch_id = batch AND id = ANY (ids)) < cardinality(ids) THEN
        WITH new_items AS (
            INSERT INTO items (batch_id, id, payload, priority, due_at, created_at, traceparent)
            SELECT batch, entry.id, entry.payload, coalesce(entry.priority, 0), to_timestamp(entry.due), to_timestamp(at), trace
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

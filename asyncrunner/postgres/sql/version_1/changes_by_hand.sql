-- The triggers that keep the tables beside the items right when a person or another program changes rows.

-- A time as text in UTC, as the rows of a SQLite file have it.
CREATE FUNCTION utc_text(moment timestamptz) RETURNS text LANGUAGE sql STABLE AS $function$
    SELECT to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')
$function$;

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
    IF item.status = 'processing' THEN
        DELETE FROM held WHERE held.seq = item.seq;
    ELSIF item.status IN ('failed', 'cancelled') THEN
        DELETE FROM ended WHERE batch_id = item.batch_id AND status = item.status AND seq = item.seq;
    END IF;
    IF item.status <> 'pending' THEN
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

-- Count an item of a batch in another state. NULL: in none, before its insertion or after its deletion.
CREATE FUNCTION tally_item(batch bigint, before text, after text) RETURNS void LANGUAGE plpgsql AS $function$
BEGIN
    INSERT INTO tallies (batch_id, pending, processing, completed, failed, cancelled) VALUES (
        batch,
        (after IS NOT DISTINCT FROM 'pending')::integer - (before IS NOT DISTINCT FROM 'pending')::integer,
        (after IS NOT DISTINCT FROM 'processing')::integer - (before IS NOT DISTINCT FROM 'processing')::integer,
        (after IS NOT DISTINCT FROM 'completed')::integer - (before IS NOT DISTINCT FROM 'completed')::integer,
        (after IS NOT DISTINCT FROM 'failed')::integer - (before IS NOT DISTINCT FROM 'failed')::integer,
        (after IS NOT DISTINCT FROM 'cancelled')::integer - (before IS NOT DISTINCT FROM 'cancelled')::integer);
END $function$;

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
            IF TG_OP = 'INSERT' OR NEW.batch_id <> OLD.batch_id THEN
                PERFORM check_batch(NEW.batch_id);
            END IF;
            PERFORM list_item(NEW);
        END IF;
    END IF;
    IF TG_OP = 'INSERT' THEN
        PERFORM tally_item(NEW.batch_id, NULL, NEW.status);
    ELSIF TG_OP = 'DELETE' THEN
        PERFORM tally_item(OLD.batch_id, OLD.status, NULL);
    ELSIF OLD.batch_id <> NEW.batch_id THEN
        PERFORM tally_item(OLD.batch_id, OLD.status, NULL);
        PERFORM tally_item(NEW.batch_id, NULL, NEW.status);
    ELSIF OLD.status <> NEW.status THEN
        PERFORM tally_item(NEW.batch_id, OLD.status, NEW.status);
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

-- Partitions the outbox and the dedup rows by id, so that old rows are dropped as whole tables. The primary key
-- (consumer, outbox_id) stays unique over all partitions, which partitions by time would not allow.
--
--     outbox_p0 | outbox_p1000000 | outbox_p2000000 | …    each has ids from its number up to the next one's
--
-- The old table becomes partition p0. There is no DEFAULT partition: PostgreSQL would scan it for each new partition, and
-- could not detach partitions concurrently.

-- How many ids a new partition has, and the id below which rows were dropped (the watermark). One row.
CREATE TABLE IF NOT EXISTS retention (
    one            boolean PRIMARY KEY DEFAULT true CHECK (one),
    partition_rows bigint NOT NULL DEFAULT 1000000 CHECK (partition_rows BETWEEN 1000 AND 1000000000),
    dropped_below  bigint NOT NULL DEFAULT 0
);

-- The partitions of a table by the catalog, in the order of their ids. `lower` null: from the beginning on.
CREATE OR REPLACE FUNCTION partitions_of("table" text)
RETURNS TABLE (name regclass, lower bigint, upper bigint) LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT part.oid::regclass, substring(part.bound FROM 'FROM \(''?(-?\d+)''?\)')::bigint,
           substring(part.bound FROM 'TO \(''?(-?\d+)''?\)')::bigint
      FROM (SELECT c.oid, pg_get_expr(c.relpartbound, c.oid) AS bound
              FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
             WHERE i.inhparent = to_regclass("table")) AS part
     ORDER BY 2 NULLS FIRST
$$;

-- Makes the partition for an id and returns its name, or null where there is one already. `id` NULL, for the outbox: the
-- next id, or, where that has a partition, the first id after the last partition.
-- Readers and writers don't wait for it: it makes a table and attaches it, which only locks out other changes of
-- partitions; for that lock it waits a second at most.
-- It runs with the rights of the tables' owner, for any role that may call it. So it only makes partitions that are needed:
-- none below the watermark, and none far beyond the outbox's last id. Only dedup rows may have ids so far: those of another
-- outbox on the topic, or, in a downstream's own database, of the story's. Up to eight such partitions may be strays, which
-- don't follow another partition; one that borders on another is always allowed.
CREATE OR REPLACE FUNCTION make_partition("table" text, id bigint)
RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    of_table text := make_partition."table";
    wanted bigint := make_partition.id;
    most_ahead CONSTANT integer := 8;
    most_strays CONSTANT integer := 8;
    most_id CONSTANT bigint := 1000000000000000;
    most_bigint CONSTANT bigint := 9223372036854775807;
    rows bigint;
    dropped bigint;
    last bigint;      -- the last id that the outbox has given out; the watermark where the outbox is in another database
    top bigint;       -- where the last partition ends
    first bigint;     -- the first id of the new partition
    behind bigint;    -- the first id after it
    strays integer;   -- how many strays there are; 0 where the new partition borders on another
    name text;
    parent regclass;
    waits text := current_setting('lock_timeout');
    part record;
BEGIN
    -- pg_temp is last, so that no temporary table of the caller hides one of ours: this runs with the owner's rights.
    PERFORM set_config('search_path', string_agg(quote_ident(s.name), ', ' ORDER BY s.place) || ', pg_temp', true)
       FROM unnest(current_schemas(false)) WITH ORDINALITY AS s (name, place);
    IF of_table IS NULL OR of_table NOT IN ('outbox', 'processed_events') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'make_partition: only outbox and processed_events have partitions';
    END IF;
    parent := to_regclass(of_table);
    IF (SELECT c.relkind FROM pg_class c WHERE c.oid = parent) IS DISTINCT FROM 'p' THEN
        RAISE object_not_in_prerequisite_state
            USING MESSAGE = 'make_partition: ' || of_table || ' has no partitions', HINT = 'run brewctl db init';
    END IF;
    IF EXISTS (SELECT FROM partitions_of(of_table) p
                WHERE wanted >= coalesce(p.lower, wanted) AND coalesce(wanted < p.upper, true)) THEN
        RETURN NULL;
    END IF;
    IF waits::interval NOT BETWEEN '1 millisecond' AND '1 second' THEN
        PERFORM set_config('lock_timeout', '1s', true);
    END IF;
    EXECUTE format('LOCK TABLE ONLY %s IN SHARE UPDATE EXCLUSIVE MODE', parent);
    SELECT coalesce(max(r.partition_rows), 1000000), coalesce(max(r.dropped_below), 0) INTO rows, dropped FROM retention r;
    SELECT max(p.upper) INTO top FROM partitions_of(of_table) p;
    top := greatest(top, dropped, 0);
    IF to_regclass('outbox') IS NOT NULL THEN
        EXECUTE format('SELECT last_value FROM %s', pg_get_serial_sequence('outbox', 'id')) INTO last;
    END IF;
    last := greatest(last, dropped);
    IF wanted IS NULL THEN
        -- The last id that the sequence gave out may have had no partition; the next one has none.
        wanted := CASE WHEN last >= top THEN last + 1 ELSE top END;
        SELECT wanted INTO wanted
         WHERE NOT EXISTS (SELECT FROM partitions_of(of_table) p WHERE wanted >= coalesce(p.lower, wanted) AND wanted < p.upper);
    END IF;
    -- Another session may have made it during the wait for the lock.
    IF EXISTS (SELECT FROM partitions_of(of_table) p
                WHERE wanted >= coalesce(p.lower, wanted) AND coalesce(wanted < p.upper, true)) THEN
        PERFORM set_config('lock_timeout', waits, true);
        RETURN NULL;
    END IF;
    IF wanted < dropped THEN
        RAISE numeric_value_out_of_range USING MESSAGE =
            'make_partition: rows of ' || of_table || ' with ids below ' || dropped || ' were dropped, and this one is ' || wanted;
    END IF;
    first := wanted - mod(wanted, rows);
    behind := least(first, most_bigint - rows) + rows;
    SELECT greatest(first, dropped, max(p.upper) FILTER (WHERE p.upper <= wanted)),
           least(behind, min(p.lower) FILTER (WHERE p.lower > wanted))
      INTO first, behind FROM partitions_of(of_table) p;
    IF wanted - most_ahead * rows > last THEN
        SELECT CASE WHEN bool_or(p.upper = first OR p.lower = behind) THEN 0
                    ELSE count(*) FILTER (WHERE p.lower - most_ahead * rows > last AND NOT EXISTS (
                                              SELECT FROM partitions_of(of_table) b WHERE b.upper = p.lower)) END
          INTO strays FROM partitions_of(of_table) p;
        IF of_table = 'outbox' OR wanted > most_id OR strays >= most_strays THEN
            RAISE numeric_value_out_of_range USING MESSAGE = 'make_partition: ' || CASE
                WHEN of_table = 'outbox' THEN 'id ' || wanted || ' is far beyond the last one of the outbox, ' || last
                WHEN wanted > most_id THEN 'processed_events has no partition for id ' || wanted
                    || ', as no outbox comes beyond ' || most_id || ': settle it with `brewctl dlq drop`'
                ELSE 'processed_events has no partition for id ' || wanted || ', and ' || most_strays
                    || ' for stray ids: take those of rubbish away in psql, then run `brewctl dlq redrive`' END;
        END IF;
    END IF;
    name := of_table || '_p' || first;
    WHILE to_regclass(quote_ident(name)) IS NOT NULL LOOP  -- a detached partition of this name that is not dropped yet
        name := name || '_';
    END LOOP;
    SELECT n.nspname AS schema, pg_get_userbyid(c.relowner) AS owner, coalesce(
               (SELECT array_to_string(l.reloptions, ', ') FROM pg_class l
                 WHERE l.oid = (SELECT p.name FROM partitions_of(of_table) p ORDER BY p.lower DESC NULLS LAST LIMIT 1)), '')
               AS options
      INTO part
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = parent;
    EXECUTE format('CREATE TABLE %I.%I (LIKE %s INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES EXCLUDING STATISTICS)',
                   part.schema, name, parent);
    IF part.owner <> current_user THEN
        EXECUTE format('ALTER TABLE %I.%I OWNER TO %I', part.schema, name, part.owner);
    END IF;
    IF part.options <> '' THEN
        EXECUTE format('ALTER TABLE %I.%I SET (%s)', part.schema, name, part.options);
    END IF;
    PERFORM keep_to_owner(format('%I.%I', part.schema, name));
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %I.%I FOR VALUES FROM (%s) TO (%s)',
                   parent, part.schema, name, first, behind);
    PERFORM set_config('lock_timeout', waits, true);
    RETURN name;
END
$$;

-- Revokes the rights to a new partition that default privileges gave to other roles: their rights are to the whole table.
CREATE OR REPLACE FUNCTION keep_to_owner(part regclass)
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    other text;
BEGIN
    FOR other IN SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
                   FROM pg_class c CROSS JOIN LATERAL (
                        SELECT x.grantee FROM aclexplode(c.relacl) x
                         UNION ALL
                        SELECT x.grantee FROM pg_attribute t CROSS JOIN LATERAL aclexplode(t.attacl) x
                         WHERE t.attrelid = c.oid AND t.attacl IS NOT NULL) AS a
                  WHERE c.oid = keep_to_owner.part AND a.grantee <> c.relowner LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %s', keep_to_owner.part, other);
    END LOOP;
END
$$;

-- Replaces outbox or processed_events by a partitioned table, while roles write, in three steps, each a transaction:
--     bound     adds CHECK (id < …) NOT VALID, with a bound that new ids don't reach before the swap
--     validate  reads all rows; readers and writers go on
--     swap      the old table becomes the first partition: no row is read, because the CHECK says which ids it has
-- A small table needs no CHECK, and its ids continue without a gap; else they continue at the bound. A step that is done
-- already changes nothing, so each can be repeated. Objects that would stay with the old table (views, foreign keys,
-- triggers, publications) are an error that names them, before any change.
CREATE OR REPLACE FUNCTION partition_table("table" text, step text)
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict error
DECLARE
    of_table text := partition_table."table";
    key CONSTANT text := CASE partition_table."table" WHEN 'outbox' THEN 'id' ELSE 'outbox_id' END;
    margin CONSTANT bigint := 10000000;
    most_id CONSTANT bigint := 1000000000000000;
    small_blocks CONSTANT integer := 500;
    ahead CONSTANT integer := 4;
    old regclass;
    kind "char";
    bound_name CONSTANT text := partition_table."table" || '_before_partitions';
    bound bigint;
    valid boolean;
    rows bigint;
    last bigint;
    in_the_way text;
    there record;     -- the old table
    new_name text;
    grants text[];
    statement text;
    old_sequence text;
    next_id bigint;
    made text[] := '{}';
    part record;
BEGIN
    SELECT c.oid, c.relkind INTO old, kind FROM pg_class c WHERE c.oid = to_regclass(of_table);
    IF of_table NOT IN ('outbox', 'processed_events') OR old IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = 'partition_table: outbox and processed_events are to have partitions';
    END IF;
    IF kind = 'p' THEN
        RETURN;
    END IF;
    IF step IN ('lock', 'validate') THEN
        -- Locks out other changes. An autovacuum of the table is cancelled for it after deadlock_timeout; no writer waits.
        PERFORM set_config('lock_timeout', '5s', true);
        EXECUTE format('LOCK TABLE ONLY %s IN SHARE UPDATE EXCLUSIVE MODE', old);
        IF step = 'validate' AND EXISTS (SELECT FROM pg_constraint c
                                          WHERE c.conrelid = old AND c.conname = bound_name AND NOT c.convalidated) THEN
            EXECUTE format('ALTER TABLE %s VALIDATE CONSTRAINT %I', old, bound_name);
        END IF;
        RETURN;
    END IF;
    SELECT string_agg(found.what, ', ') INTO in_the_way FROM (
        SELECT DISTINCT 'view ' || r.ev_class::regclass AS what
          FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
         WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = old AND r.ev_class <> old
        UNION ALL
        SELECT 'rule ' || quote_ident(r.rulename) FROM pg_rewrite r WHERE r.ev_class = old
        UNION ALL
        SELECT 'foreign key ' || quote_ident(c.conname) || ' of ' || c.conrelid::regclass
          FROM pg_constraint c WHERE c.contype = 'f' AND old IN (c.conrelid, c.confrelid)
        UNION ALL
        SELECT 'trigger ' || quote_ident(t.tgname) FROM pg_trigger t WHERE t.tgrelid = old AND NOT t.tgisinternal
        UNION ALL
        SELECT 'publication ' || quote_ident(p.pubname)
          FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = old
        UNION ALL
        SELECT 'policy ' || quote_ident(p.polname) FROM pg_policy p WHERE p.polrelid = old
        UNION ALL
        SELECT 'row-level security' FROM pg_class c WHERE c.oid = old AND c.relrowsecurity
        UNION ALL
        SELECT 'inheritance of ' || i.inhrelid::regclass FROM pg_inherits i WHERE old IN (i.inhparent, i.inhrelid)
        UNION ALL
        SELECT DISTINCT 'function ' || d.objid::regprocedure
          FROM pg_depend d JOIN pg_type y ON y.typrelid = old
         WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_type'::regclass AND d.refobjid IN (y.oid, y.typarray)
        UNION ALL
        SELECT DISTINCT 'a column of ' || d.objid::regclass
          FROM pg_depend d JOIN pg_type y ON y.typrelid = old
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_type'::regclass AND d.refobjid IN (y.oid, y.typarray)
           AND d.objid <> old
        UNION ALL
        SELECT 'constraint ' || quote_ident(c.conname) || ', which is not validated'
          FROM pg_constraint c WHERE c.conrelid = old AND NOT c.convalidated AND c.contype = 'c' AND c.conname <> bound_name
        UNION ALL
        SELECT 'index ' || i.indexrelid::regclass || ', unique without ' || key
          FROM pg_index i
         WHERE i.indrelid = old AND (i.indisunique OR i.indisexclusion)
           AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = old AND a.attname = key
                              AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))
        ) AS found;
    IF in_the_way IS NOT NULL THEN
        RAISE dependent_objects_still_exist USING
            MESSAGE = of_table || ' can''t be partitioned: these hang on the table, and would stay with a part of it: ' || in_the_way,
            HINT = 'take them away, run `brewctl db init` again, and make them anew on ' || of_table;
    END IF;
    INSERT INTO retention DEFAULT VALUES ON CONFLICT DO NOTHING;
    SELECT r.partition_rows INTO rows FROM retention r;
    old_sequence := pg_get_serial_sequence(of_table, key);
    SELECT substring(pg_get_constraintdef(c.oid) FROM '< \(?''?(\d+)')::bigint, c.convalidated INTO bound, valid
      FROM pg_constraint c WHERE c.conrelid = old AND c.conname = bound_name;

    IF step = 'bound' OR bound IS NULL THEN
        EXECUTE format('SELECT coalesce(max(%I), 0) FROM %s', key, old) INTO last;
        IF old_sequence IS NOT NULL THEN
            EXECUTE format('SELECT greatest(%s, last_value) FROM %s', last, old_sequence) INTO last;
        END IF;
        IF of_table = 'processed_events' AND last > most_id THEN
            RAISE object_not_in_prerequisite_state USING
                MESSAGE = 'processed_events can''t be partitioned: it has a row with outbox_id ' || last
                          || ', and no outbox comes so far',
                HINT = 'remove the rows of processed_events with outbox_id > ' || most_id
                       || ' in psql, then run `brewctl db init` again';
        END IF;
    END IF;

    IF step = 'bound' THEN
        -- A CHECK of an earlier run is good while ids are not near its bound.
        IF pg_relation_size(old) <= small_blocks * current_setting('block_size')::integer OR bound > last + margin / 2 THEN
            RETURN;
        END IF;
        PERFORM set_config('lock_timeout', '60ms', true);
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I, ADD CONSTRAINT %I CHECK (%I < %L::bigint) NOT VALID',
                       old, bound_name, bound_name, key, ((last + margin) / rows + 1) * rows);
        RETURN;
    END IF;

    IF step <> 'swap' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'partition_table: no step ' || coalesce(step, 'NULL');
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('brewctl schema', 0));
    IF bound IS NOT NULL AND valid THEN
        next_id := bound;
    ELSE
        IF pg_relation_size(old) > 2 * small_blocks * current_setting('block_size')::integer THEN
            RAISE object_not_in_prerequisite_state USING
                MESSAGE = 'partition_table: ' || of_table || ' is large, and has no valid CHECK',
                HINT = 'run brewctl db init';
        END IF;
        bound := (last / rows + 1) * rows;
    END IF;
    SELECT n.nspname AS schema, c.relname AS name, pg_get_userbyid(c.relowner) AS owner, c.relowner, c.relacl,
           coalesce(array_to_string(c.reloptions, ', '), '') AS options,
           (SELECT a.attidentity FROM pg_attribute a WHERE a.attrelid = old AND a.attname = key) AS identity
      INTO there
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = old;
    -- All new objects are made first, under temporary names, before the table is locked.
    new_name := format('%I.%I', there.schema, of_table || '_in_parts');
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES EXCLUDING STATISTICS)'
                   || ' PARTITION BY RANGE (%I)', new_name, old, key);
    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT IF EXISTS %I', new_name, bound_name);
    IF there.owner <> current_user THEN
        EXECUTE format('ALTER TABLE %s OWNER TO %I', new_name, there.owner);
    END IF;
    FOR part IN
        SELECT row_number() OVER (ORDER BY i.indexrelid) AS place, x.relname AS name, pg_get_indexdef(i.indexrelid) AS made_by,
               c.conname, pg_get_constraintdef(c.oid) AS constrained
          FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
          LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid AND c.conrelid = old
         WHERE i.indrelid = old AND i.indisvalid
         ORDER BY 1
    LOOP
        made := made || part.name::text;
        IF part.constrained IS NULL THEN
            EXECUTE replace(part.made_by,
                            format('INDEX %I ON %I.%I ', part.name, there.schema, there.name),
                            format('INDEX %I ON %s ', of_table || '_in_parts_' || part.place, new_name));
        ELSE
            EXECUTE format('ALTER TABLE %s ADD CONSTRAINT %I %s', new_name, of_table || '_in_parts_' || part.place,
                           part.constrained);
        END IF;
    END LOOP;
    FOR part IN SELECT bound + n * rows AS first FROM generate_series(0, ahead - 1) AS n LOOP
        EXECUTE format('CREATE TABLE %I.%I PARTITION OF %s FOR VALUES FROM (%s) TO (%s)',
                       there.schema, of_table || '_p' || part.first, new_name, part.first, part.first + rows);
        IF there.owner <> current_user THEN
            EXECUTE format('ALTER TABLE %I.%I OWNER TO %I', there.schema, of_table || '_p' || part.first, there.owner);
        END IF;
        IF there.options <> '' THEN
            EXECUTE format('ALTER TABLE %I.%I SET (%s)', there.schema, of_table || '_p' || part.first, there.options);
        END IF;
        PERFORM keep_to_owner(format('%I.%I', there.schema, of_table || '_p' || part.first));
    END LOOP;
    PERFORM keep_to_owner(new_name);
    FOR part IN
        SELECT a.privilege_type AS privilege, '' AS of_column, a.grantee, a.is_grantable
          FROM aclexplode(there.relacl) a WHERE a.grantee <> there.relowner
         UNION ALL
        SELECT a.privilege_type, format(' (%I)', t.attname), a.grantee, a.is_grantable
          FROM pg_attribute t CROSS JOIN LATERAL aclexplode(t.attacl) a
         WHERE t.attrelid = old AND t.attacl IS NOT NULL AND NOT t.attisdropped AND a.grantee <> there.relowner
    LOOP
        EXECUTE format('GRANT %s%s ON %s TO %s%s', part.privilege, part.of_column, new_name,
                       CASE part.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(part.grantee)) END,
                       CASE WHEN part.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END);
    END LOOP;
    IF obj_description(old, 'pg_class') IS NOT NULL THEN
        EXECUTE format('COMMENT ON TABLE %s IS %L', new_name, obj_description(old, 'pg_class'));
    END IF;
    PERFORM set_config('lock_timeout', '60ms', true);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', old);
    IF old_sequence IS NOT NULL THEN
        EXECUTE format('SELECT last_value FROM %s', old_sequence) INTO last;
        IF last >= bound THEN  -- without a CHECK ids may have passed the bound
            RAISE lock_not_available USING MESSAGE = 'partition_table: ids of ' || of_table || ' have come to ' || bound;
        END IF;
        -- The sequence's rights are lost with it, and are granted again below.
        SELECT coalesce(array_agg(format('GRANT %s ON SEQUENCE %s TO %s%s', a.privilege_type, old_sequence,
                            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
                            CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)), '{}') INTO grants
          FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
         WHERE c.oid = old_sequence::regclass AND a.grantee <> c.relowner;
        SELECT s.seqincrement, s.seqcache INTO part FROM pg_sequence s WHERE s.seqrelid = old_sequence::regclass;
        IF next_id IS NULL THEN
            EXECUTE format('SELECT last_value + CASE WHEN is_called THEN %s ELSE 0 END FROM %s', part.seqincrement, old_sequence)
               INTO next_id;
        END IF;
        EXECUTE format('ALTER TABLE %s ALTER %I DROP IDENTITY', old, key);
        EXECUTE format('ALTER TABLE %s ALTER %I ADD GENERATED %s AS IDENTITY'
                       || ' (SEQUENCE NAME %s START WITH %s INCREMENT BY %s CACHE %s)',
                       new_name, key, CASE there.identity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, old_sequence,
                       next_id, part.seqincrement, part.seqcache);
        FOREACH statement IN ARRAY grants LOOP
            EXECUTE statement;
        END LOOP;
    END IF;
    FOR part IN SELECT n.name, n.place FROM unnest(made) WITH ORDINALITY AS n (name, place) LOOP
        EXECUTE format('ALTER INDEX %I.%I RENAME TO %I', there.schema, part.name, left(part.name, 60) || '_p0');
        EXECUTE format('ALTER INDEX %I.%I RENAME TO %I', there.schema, of_table || '_in_parts_' || part.place, part.name);
    END LOOP;
    EXECUTE format('ALTER TABLE %I.%I RENAME TO %I', there.schema, of_table, of_table || '_p0');
    EXECUTE format('ALTER TABLE %s RENAME TO %I', new_name, of_table);
    EXECUTE format('ALTER TABLE %I.%I ATTACH PARTITION %I.%I FOR VALUES FROM (MINVALUE) TO (%s)',
                   there.schema, of_table, there.schema, of_table || '_p0', bound);
    EXECUTE format('ALTER TABLE %I.%I DROP CONSTRAINT IF EXISTS %I', there.schema, of_table || '_p0', bound_name);
    PERFORM keep_to_owner(format('%I.%I', there.schema, of_table || '_p0'));
END
$$;

SELECT partition_table('outbox', 'bound');
SELECT partition_table('outbox', 'validate');
SELECT partition_table('outbox', 'swap');
SELECT partition_table('processed_events', 'bound');
SELECT partition_table('processed_events', 'validate');
SELECT partition_table('processed_events', 'swap');

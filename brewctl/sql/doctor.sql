-- The queries of `brewctl doctor`, in the format of queries.sql.

-- settings --
-- The settings in force for this session, which a role's has too, and where each comes from.
SELECT name, setting, source FROM pg_settings WHERE name = ANY(%(names)s)

-- search_path --
-- The search_path that the role or the database sets, and which of them sets it, the one that counts first. Our sessions
-- set their own.
SELECT substr(entry, length('search_path=') + 1), CASE WHEN setrole = 0 THEN 'database' ELSE 'role' END
  FROM pg_db_role_setting, unnest(setconfig) AS entry
 WHERE starts_with(entry, 'search_path=')
   AND setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
   AND setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = session_user))
 ORDER BY setrole <> 0 AND setdatabase <> 0 DESC, setrole <> 0 DESC
 LIMIT 1

-- connections --
-- The server's connections, also those of sessions that this user may not see.
SELECT coalesce(sum(numbackends), 0)::int FROM pg_stat_database

-- open_for_long --
-- Old transactions, and replication slots without a reader: what each is, and whether it keeps VACUUM from removing rows
-- deleted since. Sessions that the user may not see are left out.
SELECT 'session' AS kind, pid, application_name AS name,
       extract(epoch FROM clock_timestamp() - xact_start)::float8 AS age_s,
       backend_xmin IS NOT NULL OR backend_xid IS NOT NULL AS holds
  FROM pg_stat_activity
 WHERE datname = current_database()
   AND pid <> pg_backend_pid()
   AND backend_type = 'client backend'
   AND xact_start < clock_timestamp() - make_interval(secs => %(age_s)s)
UNION ALL
SELECT 'prepared', NULL, gid, extract(epoch FROM clock_timestamp() - prepared)::float8, true
  FROM pg_prepared_xacts
 WHERE database = current_database() AND prepared < clock_timestamp() - make_interval(secs => %(age_s)s)
UNION ALL
SELECT 'slot', NULL, slot_name, NULL, true
  FROM pg_replication_slots
 WHERE xmin IS NOT NULL AND NOT active

-- outbox --
-- How many rows are set aside, and the age in seconds of the oldest row that a publisher could take.
SELECT (SELECT count(*) FROM outbox WHERE published_at IS NULL AND failed_at IS NOT NULL) AS set_aside,
       (SELECT extract(epoch FROM clock_timestamp() - o.created_at)::float8
          FROM outbox o
         WHERE o.published_at IS NULL
           AND o.failed_at IS NULL
           AND NOT EXISTS (SELECT FROM outbox p
                            WHERE p.aggregate_id = o.aggregate_id AND p.published_at IS NULL
                              AND p.failed_at IS NOT NULL AND p.id < o.id)
         ORDER BY o.id
         LIMIT 1) AS oldest_s

-- parked --
-- How many events of each consumer are parked, and how many keys they hold up.
SELECT consumer, count(*), count(DISTINCT key) FROM parked_events WHERE outcome IS NULL GROUP BY consumer ORDER BY consumer

-- waiting --
-- How many events of each consumer wait for lanes, how long the oldest has waited, and how many are tried again.
SELECT consumer, count(*), extract(epoch FROM clock_timestamp() - min(taken_at))::float8,
       count(nullif(failure, '')), max(nullif(failure, ''))
  FROM waiting_events GROUP BY consumer ORDER BY consumer

-- outbox_ids --
-- The last id of the outbox's sequence, the highest id in the table, and the highest that any consumer has processed. One
-- index look-up each: consumers are found one after the other. No row where the sequence may not be read.
SELECT sequence.name, n.nspname, c.relname, coalesce((SELECT max(id) FROM outbox), 0) AS rows,
       coalesce((WITH RECURSIVE known AS (
                     (SELECT consumer, outbox_id FROM processed_events ORDER BY consumer DESC, outbox_id DESC LIMIT 1)
                      UNION ALL
                     SELECT before.*
                       FROM known
                      CROSS JOIN LATERAL (
                            SELECT p.consumer, p.outbox_id
                              FROM processed_events p
                             WHERE p.consumer < known.consumer
                             ORDER BY p.consumer DESC, p.outbox_id DESC
                             LIMIT 1) AS before)
                 SELECT max(outbox_id) FROM known), 0) AS processed
  FROM (SELECT pg_get_serial_sequence('outbox', 'id') AS name) AS sequence
  JOIN pg_class c ON c.oid = to_regclass(sequence.name)
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE has_sequence_privilege(c.oid, 'SELECT')

-- last_row --
-- The highest id in the outbox.
SELECT coalesce(max(id), 0) FROM outbox

-- highest_processed --
-- The highest outbox id that these consumers have processed, in their own database. One index look-up each.
SELECT coalesce(max(highest.id), 0)
  FROM unnest(%(groups)s::text[]) AS asked (consumer)
 CROSS JOIN LATERAL (
       SELECT max(p.outbox_id) AS id FROM processed_events p WHERE p.consumer = asked.consumer) AS highest

-- clock --
-- The time of the server's clock, in seconds since the epoch.
SELECT extract(epoch FROM clock_timestamp())::float8

-- fought_nodes --
-- Replicas whose row another process with the same name also writes.
SELECT node_id, host, pid, rival
  FROM nodes
 WHERE rival IS NOT NULL AND stopped_at IS NULL
   AND seen_at > clock_timestamp() - make_interval(secs => %(silent_s)s)
 ORDER BY node_id

-- nodes_there --
-- The names of replicas that have written their row within the last day.
SELECT node_id FROM nodes

-- first_event --
-- When the outbox's oldest row was written, in milliseconds since the epoch; null where the outbox is empty.
SELECT (extract(epoch FROM created_at) * 1000)::bigint FROM outbox ORDER BY id LIMIT 1

-- unknown_events --
-- The places in the list of those of these events that are not in the outbox.
SELECT event.place
  FROM unnest(%(ids)s::bigint[], %(keys)s::text[]) WITH ORDINALITY AS event (id, key, place)
 WHERE NOT EXISTS (SELECT FROM outbox o WHERE o.id = event.id AND o.aggregate_id = event.key)
 ORDER BY event.place

-- removed_rows --
-- Those of the outbox's first rows for the topic whose records Kafka has removed: before the first of their partition.
SELECT count(*)
  FROM (SELECT kafka_partition, kafka_offset
          FROM outbox
         WHERE topic = %(topic)s AND kafka_offset IS NOT NULL
         ORDER BY id
         LIMIT %(rows)s) AS looked_at
  JOIN unnest(%(partitions)s::integer[], %(firsts)s::bigint[]) AS edge (number, first)
    ON edge.number = looked_at.kafka_partition
 WHERE looked_at.kafka_offset < edge.first

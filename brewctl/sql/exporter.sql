-- The queries that `brewctl metrics` runs for each look, in the format of queries.sql.

-- bounded --
-- To the end of the transaction, turns sequential scans off, whatever the statistics say, and sets the statement_timeout.
SELECT set_config('enable_seqscan', 'off', true), set_config('statement_timeout', %(timeout)s, true)

-- oldest --
-- The age of the first row that a publisher has to take; 0 where none waits. One index look-up.
SELECT coalesce((SELECT greatest(extract(epoch FROM clock_timestamp() - created_at), 0)::float8
                   FROM outbox WHERE published_at IS NULL AND failed_at IS NULL ORDER BY id LIMIT 1), 0)

-- waiting --
-- How many rows are not published, and how many of them are set aside, counted up to `most`.
SELECT count(*) - count(failed_at), count(failed_at)
  FROM (SELECT failed_at FROM outbox WHERE published_at IS NULL LIMIT %(most)s) AS unpublished

-- parked_by_consumer --
-- How many events of each of these consumers are parked.
SELECT asked.consumer, (SELECT count(*) FROM parked_events p WHERE p.consumer = asked.consumer AND p.outcome IS NULL)
  FROM unnest(%(consumers)s::text[]) AS asked (consumer)

-- waiting_by_consumer --
-- How many events wait for the lanes of each of these consumers, counted up to `most`, and how long the oldest has waited.
SELECT asked.consumer,
       (SELECT count(*) FROM (SELECT FROM waiting_events w WHERE w.consumer = asked.consumer LIMIT %(most)s) AS first),
       coalesce((SELECT greatest(extract(epoch FROM clock_timestamp() - w.taken_at), 0)::float8
                   FROM waiting_events w WHERE w.consumer = asked.consumer ORDER BY w.consumer, w.id LIMIT 1), 0)
  FROM unnest(%(consumers)s::text[]) AS asked (consumer)

-- replicas --
-- How many replicas of each role have written their row within `silent_s` seconds.
SELECT role, count(*) FROM nodes
 WHERE stopped_at IS NULL AND seen_at > clock_timestamp() - make_interval(secs => %(silent_s)s)
 GROUP BY role

-- oldest_transaction --
-- The age in seconds of the oldest transaction of another client, or prepared transaction; 0 where there is none, null
-- where the user may not see other users' sessions.
SELECT CASE WHEN pg_has_role('pg_read_all_stats', 'USAGE') THEN greatest(
            (SELECT extract(epoch FROM clock_timestamp() - min(xact_start)) FROM pg_stat_activity
              WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'),
            (SELECT extract(epoch FROM clock_timestamp() - min(prepared)) FROM pg_prepared_xacts
              WHERE database = current_database()),
            0)::float8 END

-- last_id --
-- The last outbox id that the sequence has given out; 0 where it gave none.
SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox_id_seq

-- last_processed --
-- The largest outbox id that any of these consumers has processed, 0 where there is none. Partitions after the first gap
-- are left out, because they have stray ids. One index look-up each.
SELECT coalesce(max(last.outbox_id), 0)
  FROM unnest(%(consumers)s::text[]) AS asked (consumer)
 CROSS JOIN LATERAL (
       SELECT outbox_id FROM processed_events p
        WHERE p.consumer = asked.consumer
          AND p.outbox_id < (SELECT min(part.upper) FROM partitions_of('processed_events') part
                              WHERE NOT EXISTS (SELECT FROM partitions_of('processed_events') b WHERE b.lower = part.upper))
        ORDER BY outbox_id DESC LIMIT 1) AS last

-- partitions --
-- How many partitions a table has, and how many of them follow an id without a gap; after a gap they have stray ids. Reads
-- the catalog alone.
SELECT count(*), count(*) FILTER (WHERE part.lower > %(last)s AND part.lower < room.ends)
  FROM partitions_of(%(table)s) part,
       (SELECT min(edge.id) AS ends
          FROM (SELECT %(last)s::bigint + 1 AS id UNION
                SELECT upper FROM partitions_of(%(table)s) WHERE upper > %(last)s) AS edge
         WHERE NOT EXISTS (SELECT FROM partitions_of(%(table)s) part
                            WHERE edge.id >= coalesce(part.lower, edge.id) AND edge.id < part.upper)) AS room

-- retention --
SELECT dropped_below, coalesce(extract(epoch FROM clock_timestamp() - ran_at), 'Infinity')::float8,
       greatest(coalesce(extract(epoch FROM clock_timestamp() - held_since), 0), 0)::float8, refused::int
  FROM retention

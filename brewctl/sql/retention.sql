-- The queries of `brewctl db retention`, in the format of queries.sql. {partition} is an outbox partition: its name, or a
-- query by its ids where it is attached, because readers have no right to a partition itself.

-- partitions --
-- A table's partitions in the order of their bounds; `low` of the first one is null. `bytes` with indexes; `estimate`:
-- PostgreSQL's, of the rows; `pending`: a DETACH has begun and not finished.
SELECT child.relname AS name,
       substring(bound FROM 'FROM \(''?(-?\d+)''?\)')::bigint AS low, substring(bound FROM 'TO \(''?(-?\d+)''?\)')::bigint AS high,
       pg_total_relation_size(child.oid) AS bytes, child.reltuples::bigint AS estimate, i.inhdetachpending AS pending
  FROM pg_inherits i
  JOIN pg_class child ON child.oid = i.inhrelid
 CROSS JOIN LATERAL pg_get_expr(child.relpartbound, child.oid) AS bound
 WHERE i.inhparent = to_regclass(%(table)s)
 ORDER BY high

-- sequence --
-- The last outbox id that the sequence has given out; 0 where it gave none.
SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox_id_seq

-- contents --
-- A summary of an outbox partition's rows. Reads the whole partition.
SELECT topic, coalesce(event_type, 'order.created') AS type, kafka_partition AS place, count(*) AS rows,
       count(*) FILTER (WHERE published_at IS NULL) AS unpublished,
       count(*) FILTER (WHERE published_at IS NULL AND failed_at IS NOT NULL) AS set_aside,
       count(*) FILTER (WHERE published_at IS NOT NULL AND kafka_offset IS NULL) AS unplaced,
       max(kafka_offset) AS last_offset, max(published_at) AS last_published,
       min(created_at) AS oldest, max(created_at) AS newest
  FROM {partition}
 GROUP BY 1, 2, 3

-- newest --
-- The topics of the newest rows.
SELECT topic, count(*) FROM (SELECT topic FROM outbox ORDER BY id DESC LIMIT 1000) AS newest GROUP BY topic

-- last_order --
-- The time of the newest order that has an event among a partition's last ids, by the clock of the node that accepted the
-- order, which may be ahead of this server's.
SELECT max(o.created_at)
  FROM (SELECT aggregate_id FROM {partition} ORDER BY id DESC LIMIT 10000) AS x
  JOIN orders o ON o.id = substring(x.aggregate_id FROM '^order-([0-9a-f]{{8}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{12}})$')::uuid

-- writers --
-- Open transactions that may have written to a partition.
SELECT DISTINCT l.virtualtransaction, l.pid, coalesce(p.gid, '')
  FROM pg_locks l
  LEFT JOIN pg_prepared_xacts p ON l.virtualtransaction = '-1/' || p.transaction::text
 WHERE l.granted AND l.mode = 'RowExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.relation = to_regclass(%(partition)s)::oid

-- parked --
-- For each downstream the first parked event with one of these ids, and how many there are.
SELECT consumer, min(outbox_id), count(*)
  FROM parked_events
 WHERE outcome IS NULL AND outbox_id >= %(low)s AND outbox_id < %(high)s
 GROUP BY consumer
 ORDER BY consumer

-- waiting --
-- For each downstream the first event with one of these ids that waits for a lane, and how many do.
SELECT consumer, min(outbox_id), count(*)
  FROM waiting_events
 WHERE outbox_id >= %(low)s AND outbox_id < %(high)s
 GROUP BY consumer
 ORDER BY consumer

-- page --
-- A page of a partition's rows for the story's topic.
SELECT id, coalesce(event_type, 'order.created') FROM {partition} WHERE id > %(after)s AND topic = %(topic)s ORDER BY id LIMIT %(limit)s

-- done --
-- The events with a range of ids that these consumers have processed or parked.
SELECT consumer, outbox_id FROM processed_events WHERE consumer = ANY(%(groups)s) AND outbox_id BETWEEN %(first)s AND %(last)s
UNION ALL
SELECT consumer, outbox_id FROM parked_events WHERE consumer = ANY(%(groups)s) AND outbox_id BETWEEN %(first)s AND %(last)s

-- state --
SELECT partition_rows, dropped_below, dropped_until, dropping, dropping_from, dropping_until, dropping_created,
       keys_forgotten_until, held_back, held_since
  FROM retention

-- watermark --
-- The id below which rows were dropped, and how many ids a new partition has.
SELECT coalesce(max(dropped_below), 0), coalesce(max(partition_rows), 1000000) FROM retention

-- size_partitions --
UPDATE retention SET partition_rows = %(rows)s

-- ensure_state --
INSERT INTO retention DEFAULT VALUES ON CONFLICT DO NOTHING

-- take_turn --
-- Takes or renews the run's lease, unless another run has it. Returns whether this run has it now, which run has it, and
-- for how many seconds. A lease that ends later than any run asks for was written before the clock was set back, and
-- counts as expired.
WITH taken AS (
    UPDATE retention SET node_id = %(node)s, ends_at = clock_timestamp() + make_interval(secs => %(lasts_s)s)
     WHERE node_id IS NULL OR node_id = %(node)s
        OR ends_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + make_interval(secs => %(lasts_s)s)
    RETURNING node_id
)
SELECT EXISTS (SELECT FROM taken), coalesce(node_id, ''), coalesce(extract(epoch FROM ends_at - clock_timestamp()), 0)::float8
  FROM retention

-- give_up_turn --
UPDATE retention SET node_id = NULL, ends_at = NULL WHERE node_id = %(node)s

-- begin_drop --
-- Runs before a partition is detached: from now on no partition is made below the watermark, and verify knows which rows
-- may be missing.
UPDATE retention
   SET dropped_below = greatest(dropped_below, %(high)s), dropped_until = greatest(dropped_until, %(until)s),
       dropped_created = dropped_created + %(created)s,
       dropping = %(partition)s, dropping_from = %(low)s, dropping_until = %(high)s, dropping_created = %(created)s
 WHERE dropping IS NULL

-- end_drop --
UPDATE retention SET dropping = NULL, dropping_from = NULL, dropping_until = NULL, dropping_created = 0 WHERE dropping = %(partition)s

-- take_back --
-- Undoes begin_drop for a partition that must stay. dropped_until is kept, which only makes verify expect less.
UPDATE retention
   SET dropped_below = coalesce(dropping_from, 0), dropped_created = dropped_created - dropping_created,
       dropping = NULL, dropping_from = NULL, dropping_until = NULL, dropping_created = 0
 WHERE dropping = %(partition)s

-- raise_watermark --
-- Runs in a downstream's own database, before its partitions are dropped.
UPDATE retention SET dropped_below = %(watermark)s WHERE dropped_below < %(watermark)s

-- end_run --
UPDATE retention
   SET ran_at = clock_timestamp(), held_back = %(held_back)s, refused = %(refused)s,
       held_since = CASE WHEN %(held_back)s <> '' THEN coalesce(held_since, clock_timestamp()) END

-- relation --
-- What a table is: a 'partition', 'pending' (a partition whose DETACH has begun) or a plain 'table'.
SELECT CASE WHEN i.inhrelid IS NULL THEN 'table' WHEN i.inhdetachpending THEN 'pending' ELSE 'partition' END
  FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
 WHERE c.oid = to_regclass(%(name)s)

-- forget_keys --
-- Deletes a batch of idempotency keys, from the oldest order on that has one, from a time on. Returns how many, and the
-- time of the last such order.
WITH old AS (
    SELECT id, created_at FROM orders
     WHERE idempotency_key IS NOT NULL
       AND created_at >= coalesce(%(since)s::timestamptz, '-infinity') AND created_at < %(before)s
     ORDER BY created_at
     LIMIT %(limit)s
       FOR NO KEY UPDATE SKIP LOCKED
), forgotten AS (
    UPDATE orders SET idempotency_key = NULL FROM old WHERE orders.id = old.id RETURNING old.created_at
)
SELECT count(*), max(created_at) FROM forgotten

-- keys_forgotten --
UPDATE retention SET keys_forgotten_until = %(until)s

-- some_key --
-- The time of the oldest order before a time that still has its key. Its row was locked, or was written with an old time.
SELECT min(created_at) FROM orders WHERE idempotency_key IS NOT NULL AND created_at < %(before)s

-- forget_parked --
-- Deletes old settled events. A dropped one is kept while its outbox row is there: verify needs it to explain why there is
-- no effect.
WITH old AS (
    SELECT id FROM parked_events
     WHERE settled_at < %(before)s
       AND (outcome = 'redriven' OR outcome = 'dropped' AND outbox_id < (SELECT dropped_below FROM retention))
     ORDER BY id
     LIMIT %(limit)s
), forgotten AS (
    DELETE FROM parked_events p USING old WHERE p.id = old.id RETURNING p.id
)
SELECT count(*) FROM forgotten

-- forget_letters --
-- Deletes the outcomes of letters that are no longer in their topic: their offset is before their partition's first.
WITH old AS (
    SELECT s.ctid AS row
      FROM dead_letters_settled s
      JOIN unnest(%(partitions)s::int[], %(firsts)s::bigint[]) AS edge ("partition", first) USING ("partition")
     WHERE s.topic = %(topic)s AND s.settled_at < %(before)s AND s."offset" < edge.first
     LIMIT %(limit)s
), forgotten AS (
    DELETE FROM dead_letters_settled s USING old WHERE s.ctid = old.row RETURNING s.topic
)
SELECT count(*) FROM forgotten

-- forget_redeliveries --
-- Deletes redeliveries older than a week, in databases where no replica does so.
WITH old AS (
    SELECT ctid AS row FROM redeliveries WHERE came_at < clock_timestamp() - interval '7 days' LIMIT %(limit)s
), forgotten AS (
    DELETE FROM redeliveries r USING old WHERE r.ctid = old.row RETURNING r.consumer
)
SELECT count(*) FROM forgotten

-- What `brewctl db retention` asks and changes, in the format of queries.sql. {partition} is a partition of the
-- outbox: by its own name, or by its ids where it is attached, as readers have no right to a partition itself.

-- partitions --
-- Of a table, by their bounds; `low` is null of the first one. Whether its detachment was begun, its size with indexes,
-- PostgreSQL's estimate of its rows.
SELECT child.relname AS name,
       substring(bound FROM 'FROM \(''?(-?\d+)''?\)')::bigint AS low, substring(bound FROM 'TO \(''?(-?\d+)''?\)')::bigint AS high,
       pg_total_relation_size(child.oid) AS bytes, child.reltuples::bigint AS estimate, i.inhdetachpending AS pending
  FROM pg_inherits i
  JOIN pg_class child ON child.oid = i.inhrelid
 CROSS JOIN LATERAL pg_get_expr(child.relpartbound, child.oid) AS bound
 WHERE i.inhparent = to_regclass(%(table)s)
 ORDER BY high

-- sequence --
-- The last outbox id that was given out; 0 where none was.
SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox_id_seq

-- contents --
-- All that is judged of the rows of a partition of the outbox. Reads the whole of it.
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
-- The time of the newest order that has an event among the last ids of a partition, by the clock of the node that took
-- the order: it may go before this server's.
SELECT max(o.created_at)
  FROM (SELECT aggregate_id FROM {partition} ORDER BY id DESC LIMIT 10000) AS x
  JOIN orders o ON o.id = substring(x.aggregate_id FROM '^order-([0-9a-f]{{8}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{4}}-[0-9a-f]{{12}})$')::uuid

-- writers --
-- Transactions that have written to a partition, or might have, and are not over.
SELECT DISTINCT l.virtualtransaction, l.pid, coalesce(p.gid, '')
  FROM pg_locks l
  LEFT JOIN pg_prepared_xacts p ON l.virtualtransaction = '-1/' || p.transaction::text
 WHERE l.granted AND l.mode = 'RowExclusiveLock' AND l.pid IS DISTINCT FROM pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.relation = to_regclass(%(partition)s)::oid

-- parked --
-- The first event of these ids that is parked and open, and how many are; in whichever downstream.
SELECT consumer, min(outbox_id), count(*)
  FROM parked_events
 WHERE outcome IS NULL AND outbox_id >= %(low)s AND outbox_id < %(high)s
 GROUP BY consumer
 ORDER BY consumer

-- waiting --
-- The first event of these ids that waits for a lane, and how many do.
SELECT consumer, min(outbox_id), count(*)
  FROM waiting_events
 WHERE outbox_id >= %(low)s AND outbox_id < %(high)s
 GROUP BY consumer
 ORDER BY consumer

-- page --
-- Rows of the story's topic, a page of a partition.
SELECT id, coalesce(event_type, 'order.created') FROM {partition} WHERE id > %(after)s AND topic = %(topic)s ORDER BY id LIMIT %(limit)s

-- done --
-- What these consumers have done of a range of ids, or parked.
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
-- Takes the turn, or renews it, unless another run has it. Says whether it is this run's now, who has it, and for how many
-- seconds. One that ends later than any run asks for was written by a clock that has been set back since: it is over.
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
-- Before the partition is detached: from here on nothing is made below the watermark, and what verify misses is known.
UPDATE retention
   SET dropped_below = greatest(dropped_below, %(high)s), dropped_until = greatest(dropped_until, %(until)s),
       dropped_created = dropped_created + %(created)s,
       dropping = %(partition)s, dropping_from = %(low)s, dropping_until = %(high)s, dropping_created = %(created)s
 WHERE dropping IS NULL

-- end_drop --
UPDATE retention SET dropping = NULL, dropping_from = NULL, dropping_until = NULL, dropping_created = 0 WHERE dropping = %(partition)s

-- take_back --
-- A partition that must stay after all. Rows of it may have been counted that are there.
UPDATE retention
   SET dropped_below = coalesce(dropping_from, 0), dropped_created = dropped_created - dropping_created,
       dropping = NULL, dropping_from = NULL, dropping_until = NULL, dropping_created = 0
 WHERE dropping = %(partition)s

-- raise_watermark --
-- In a downstream's own database, before its partitions go.
UPDATE retention SET dropped_below = %(watermark)s WHERE dropped_below < %(watermark)s

-- end_run --
UPDATE retention
   SET ran_at = clock_timestamp(), held_back = %(held_back)s, refused = %(refused)s,
       held_since = CASE WHEN %(held_back)s <> '' THEN coalesce(held_since, clock_timestamp()) END

-- relation --
-- What a table is: 'partition' of another, with its detachment begun or not, or a 'table' for itself.
SELECT CASE WHEN i.inhrelid IS NULL THEN 'table' WHEN i.inhdetachpending THEN 'pending' ELSE 'partition' END
  FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
 WHERE c.oid = to_regclass(%(name)s)

-- forget_keys --
-- Idempotency keys of the oldest orders that still have one, a batch of them, from a time on. Says how many, and how far it
-- came.
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
-- The oldest order before a time that still has its key: somebody held it, or it was written with an old time.
SELECT min(created_at) FROM orders WHERE idempotency_key IS NOT NULL AND created_at < %(before)s

-- forget_parked --
-- One that was given up tells verify why there is no effect, as long as its outbox row is there.
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
-- Of letters that are no longer in their topic: each partition begins at a letter behind them.
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
-- In a database that no replica keeps its presence in.
WITH old AS (
    SELECT ctid AS row FROM redeliveries WHERE came_at < clock_timestamp() - interval '7 days' LIMIT %(limit)s
), forgotten AS (
    DELETE FROM redeliveries r USING old WHERE r.ctid = old.row RETURNING r.consumer
)
SELECT count(*) FROM forgotten

-- The queries of `brewctl bench`, and the tables that it fills. Format as in queries.sql.

-- publish_rate --
-- The rate of the last published rows, in rows per second, without their first twentieth, while the publisher starts.
SELECT count(*) / nullif(extract(epoch FROM max(published_at) - min(published_at)), 0)::float8
  FROM (SELECT published_at FROM outbox WHERE published_at IS NOT NULL
         ORDER BY published_at DESC LIMIT %(rows)s * 19 / 20) AS row

-- all_published --
SELECT NOT EXISTS (SELECT FROM outbox WHERE published_at IS NULL AND failed_at IS NULL)

-- effect_rate --
-- The rate of the effects that a downstream's `done` query finds, per second, without their first twentieth.
WITH effect AS MATERIALIZED (/* done */)
SELECT count(*) / nullif(extract(epoch FROM max(created_at) - min(created_at)), 0)::float8
  FROM (SELECT created_at FROM effect ORDER BY created_at OFFSET (SELECT count(*) / 20 FROM effect)) AS row

-- effect_count --
SELECT count(*) FROM (/* done */) AS effect

-- forget_downstreams --
DELETE FROM downstreams WHERE consumer = ANY(%(consumers)s)

-- effect_times --
-- The time of each order's effect in a downstream, since a time.
SELECT order_id, created_at FROM (/* done */) AS effect WHERE created_at > %(since)s

-- end_to_end --
-- Milliseconds from an order's commit to its effect's, by the times of their last statements, of the orders since a time.
-- Effects are given as arrays, because they may be in another database.
SELECT percentile_disc(%(shares)s::float8[]) WITHIN GROUP (ORDER BY extract(epoch FROM r.created_at - x.created_at) * 1000)
           ::float8[]
  FROM outbox x
  JOIN unnest(%(ids)s::uuid[], %(times)s::timestamptz[]) AS r (order_id, created_at) ON x.aggregate_id = 'order-' || r.order_id
 WHERE x.created_at > %(since)s

-- fill_orders --
-- Inserts finished orders: published, reserved, notified. Their ids begin with the time, as the service's do.
WITH now AS (
    SELECT lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') AS ms
), made AS (
    INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status, idempotency_key)
    SELECT (left(ms, 8) || '-' || right(ms, 4) || '-7' || substr(gen_random_uuid()::text, 16))::uuid,
           'brew', 'customer-' || mod(n, 100), 450, 'EUR', 'ORDER_STATUS_NEW', gen_random_uuid()::text
      FROM now, generate_series(1, %(orders)s) AS n
    RETURNING id
), event AS (
    INSERT INTO outbox (aggregate_id, topic, payload, published_at, publisher_node)
    SELECT 'order-' || id, %(topic)s, %(payload)s, clock_timestamp(), 'order-1' FROM made
    RETURNING id
), inventory AS (
    INSERT INTO inventory_reservations (order_id, node_id) SELECT id, 'inventory-1' FROM made
), notification AS (
    INSERT INTO notifications_log (order_id, node_id, channel) SELECT id, 'notification-1', 'push' FROM made
)
INSERT INTO processed_events (consumer, outbox_id)
SELECT consumer, id FROM event CROSS JOIN unnest(ARRAY['inventory', 'notifications']) AS consumer

-- touch_outbox --
-- Updates rows, so that dead ones stay behind.
UPDATE outbox SET publisher_node = 'order-2' WHERE id IN (SELECT id FROM outbox ORDER BY id LIMIT %(rows)s)

-- fill_queue --
-- Inserts waiting events, in turns of a number of aggregates.
INSERT INTO outbox (aggregate_id, aggregate_seq, topic, event_type, payload, event_id)
SELECT %(stem)s || '-' || mod(n, %(aggregates)s), n / %(aggregates)s + 1, %(topic)s, 'bench.waits', %(payload)s,
       gen_random_uuid()
  FROM generate_series(%(first)s, %(first)s + %(rows)s - 1) AS n

-- queue_rate --
-- How many events of aggregates with this prefix were published per second, from the first time of publishing on. 0 where
-- none was; null where all have the same time.
SELECT CASE WHEN count(*) = 0 THEN 0
            ELSE count(*) FILTER (WHERE published_at > first) / nullif(extract(epoch FROM max(published_at) - min(first)), 0)
       END::float8
  FROM (SELECT published_at, min(published_at) OVER () AS first FROM outbox
         WHERE starts_with(aggregate_id, %(stem)s || '-') AND published_at IS NOT NULL) AS row

-- publish_delay --
-- The median of the milliseconds from a row's commit until it was marked as published, of the rows since a time.
SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM published_at - created_at) * 1000)::float8
  FROM outbox
 WHERE created_at > %(since)s AND published_at IS NOT NULL

-- number_events --
-- Outbox ids for events that are in no outbox; consumers get them as negative numbers.
CREATE SEQUENCE bench_events

-- table_files --
SELECT relname, pg_relation_filenode(oid)::bigint
  FROM pg_class
 WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace

-- first_order --
-- The statement of an order node of the first release.
WITH new AS (
    INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status)
    VALUES (gen_random_uuid(), 'brew', 'customer-1', 450, 'EUR', 'ORDER_STATUS_NEW')
    RETURNING id
)
INSERT INTO outbox (aggregate_id, topic, payload) SELECT 'order-' || id, 'bench', decode(repeat('00', 140), 'hex') FROM new

-- first_publish --
UPDATE outbox SET published_at = clock_timestamp(), publisher_node = 'order-1'
 WHERE id = (SELECT id FROM outbox WHERE published_at IS NULL ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)

-- first_reservation --
WITH taken AS (
    INSERT INTO processed_events (consumer, outbox_id) VALUES ('inventory', -nextval('bench_events'))
    ON CONFLICT DO NOTHING
    RETURNING outbox_id
)
INSERT INTO inventory_reservations (order_id, node_id) SELECT gen_random_uuid(), 'inventory-1' FROM taken

-- first_notification --
WITH taken AS (
    INSERT INTO processed_events (consumer, outbox_id) VALUES ('notifications', -nextval('bench_events'))
    ON CONFLICT DO NOTHING
    RETURNING outbox_id
)
INSERT INTO notifications_log (order_id, node_id, channel) SELECT gen_random_uuid(), 'notification-1', 'push' FROM taken

-- table_sizes --
-- The bytes of a table with its indexes, over all partitions; how many partitions there are, and their dead rows.
SELECT coalesce(sum(pg_total_relation_size(part.relid)), 0)::bigint, count(*)::int,
       coalesce(sum(s.n_dead_tup), 0)::bigint
  FROM pg_partition_tree(%(name)s) AS part
  LEFT JOIN pg_stat_user_tables s ON s.relid = part.relid
 WHERE part.isleaf

-- wal_bytes --
SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')

-- recent_delays --
-- As end_to_end, for the orders between two times.
SELECT percentile_disc(%(shares)s::float8[]) WITHIN GROUP (ORDER BY extract(epoch FROM r.created_at - x.created_at) * 1000)
           ::float8[]
  FROM outbox x
  JOIN inventory_reservations r ON r.order_id = substr(x.aggregate_id, length('order-') + 1)::uuid
 WHERE x.created_at > %(since)s AND x.created_at <= %(until)s

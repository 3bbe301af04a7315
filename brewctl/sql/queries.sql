-- File format: a line with the query's name between dashes, a comment, the statement. Parameters are named: %(limit)s.

-- bound_statements --
-- Sets the statement_timeout of the transaction's later statements.
SELECT set_config('statement_timeout', %(timeout)s, true)

-- set_locally --
-- Sets the settings of one transaction, and synchronous_commit: behind a pooler another client may have turned it off in
-- this session.
SELECT set_config(name, value, true) FROM unnest(%(names)s::text[], %(values)s::text[]) AS setting (name, value)
 UNION ALL
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'

-- session --
-- The pid of the server process that answers, and whether its session has our settings.
SELECT pg_backend_pid(), coalesce(current_setting('brewctl.session', true) = 'on', false)

-- create_orders --
-- Writes orders and their events in one statement, so in one commit. Returns the ids that were written, without those
-- whose idempotency key is taken, by an earlier order or by another one of the statement. Rows are inserted in the order
-- of their keys, so that two writers can't deadlock. A new order's row is its own lock until the commit; a writer of a
-- later event locks that row first.
WITH new_order AS (
    SELECT *
      FROM unnest(%(ids)s::uuid[], %(tenant_ids)s::text[], %(customer_ids)s::text[], %(amounts)s::bigint[],
                  %(currencies)s::text[], %(idempotency_keys)s::text[], %(created_at)s::timestamptz[],
                  %(payloads)s::bytea[], %(trace_ids)s::text[], %(traceparents)s::text[])
        AS o (id, tenant_id, customer_id, amount_cents, currency, idempotency_key, created_at, payload, trace_id,
              traceparent)
), written AS (
    INSERT INTO orders (id, tenant_id, customer_id, amount_cents, currency, status, idempotency_key, created_at)
    SELECT id, tenant_id, customer_id, amount_cents, currency, %(status)s, idempotency_key, created_at
      FROM new_order
     ORDER BY tenant_id, idempotency_key
    ON CONFLICT DO NOTHING
    RETURNING id
), event AS (
    INSERT INTO outbox (aggregate_id, topic, payload, event_id, event_type, aggregate_seq, tenant_id, trace_id,
                        traceparent)
    SELECT 'order-' || id, %(topic)s, payload, gen_random_uuid(), %(event_type)s, 1, tenant_id, trace_id, traceparent
      FROM new_order JOIN written USING (id)
)
SELECT id FROM written

-- add_event --
-- Adds an event of any aggregate in the open transaction.
SELECT outbox_add(topic => %(topic)s::text, aggregate_id => %(aggregate_id)s::text, event_type => %(event_type)s::text,
                  payload => %(payload)b::bytea, tenant_id => %(tenant_id)s::text, trace_id => %(trace_id)s::text,
                  traceparent => %(traceparent)s::text, event_id => %(event_id)s::uuid,
                  content_type => %(content_type)s::text)

-- orders_by_ids_or_keys --
-- The existing orders that new ones repeat: the order of the same id, which an earlier try wrote, else the one that the
-- tenant's idempotency key made. One index look-up per row, however large the table is.
-- Callers acknowledge the orders that it finds. With synchronous replication such an order may be on this server alone: a
-- commit whose wait for the standby is cancelled, or interrupted by a restart, is visible without it. So this statement
-- writes an empty WAL message, and its own commit waits until the standby has that and all WAL before it.
WITH found AS MATERIALIZED (
    SELECT asked.id AS asked, first.*
      FROM unnest(%(ids)s::uuid[], %(tenant_ids)s::text[], %(idempotency_keys)s::text[])
           AS asked (id, tenant_id, idempotency_key)
     CROSS JOIN LATERAL (
           (SELECT id, customer_id, amount_cents, currency, status, created_at, cancelled_at
              FROM orders o WHERE o.id = asked.id)
           UNION ALL
           (SELECT id, customer_id, amount_cents, currency, status, created_at, cancelled_at
              FROM orders o
             WHERE o.tenant_id = asked.tenant_id AND o.idempotency_key = asked.idempotency_key)
           LIMIT 1) AS first
), replicated AS MATERIALIZED (
    SELECT pg_logical_emit_message(true, 'brewctl', '')
      FROM (SELECT FROM found LIMIT 1) AS any_found
     WHERE current_setting('synchronous_standby_names') <> ''
)
SELECT found.* FROM found LEFT JOIN replicated ON true

-- await_replication --
-- Waits for the standby in the same way, after another statement found committed rows.
SELECT pg_logical_emit_message(true, 'brewctl', '') WHERE current_setting('synchronous_standby_names') <> ''

-- order_by_id --
SELECT id, customer_id, amount_cents, currency, status, created_at, cancelled_at
  FROM orders
 WHERE id = %(id)s
   AND (%(tenant_id)s::text IS NULL OR tenant_id = %(tenant_id)s)

-- lock_order --
-- Locks an order to the end of the transaction, so that one transaction at a time changes it. Also returns the time by
-- this server's clock, and an order node of the version before that was seen within the last minute: such a node would
-- publish a cancel as an order.created.
SELECT id, tenant_id, status, clock_timestamp(),
       (SELECT min(node_id) FROM nodes
         WHERE role = 'order' AND publishes IS NULL AND stopped_at IS NULL
           AND seen_at > clock_timestamp() - interval '1 minute')
  FROM orders
 WHERE id = %(id)s
   AND (%(tenant_id)s::text IS NULL OR tenant_id = %(tenant_id)s)
   FOR NO KEY UPDATE OF orders

-- cancel_order --
-- Cancels an order whose row is locked, and adds the event.
WITH cancelled AS (
    UPDATE orders SET status = %(status)s, cancelled_at = %(cancelled_at)s WHERE id = %(id)s RETURNING id
)
SELECT outbox_add(%(topic)s, 'order-' || id, %(event_type)s, %(payload)s, tenant_id => %(tenant_id)s,
                  trace_id => %(trace_id)s, traceparent => %(traceparent)s)
  FROM cancelled

-- fetch_unpublished --
-- Locks and returns the rows that this publisher may take, of the first `limit` ready rows with ids above `after` and up
-- to `until`, in the order of their ids; up to `bytes` of payload, but at least one row.
-- A row may be taken if the head of its aggregate (its oldest unpublished row) is among these rows and not locked by
-- another publisher, and no row between is set aside or of an excluded topic. A publisher that has locked the head also
-- gets the rows behind it, which need no lock: so with any number of publishers no row overtakes one of its aggregate.
-- Each part reads at most `limit` rows, however rows are spread over aggregates.
-- Rows beyond `bytes` are not returned, but their heads stay locked until the transaction ends; `next_id` is the first of
-- these rows. One row is returned even if none may be taken, with the number of ready rows that were read (`read`) and the
-- id up to which rows were read (`last`). `now_ms` becomes the records' timestamp: one clock for all publishers.
-- The plan must be good with any statistics, because it is kept while the table grows from nothing to millions of rows.
-- So the session has no sequential scans (`by_index` of its pool). An aggregate is written as a range, ordered by
-- aggregate first: only the index by aggregate serves that. Heads are a list of ids with a condition that no partial
-- index has: only the primary key serves that. No join can become a nested loop over all pairs.
-- In a partitioned table only heads have bounds of their ids, so that few partitions are read. Rows behind a head have
-- none: with such bounds the planner would prefer the primary key.
-- An aggregate's first event (`begins`) has none before it, so no partition is read for it. Heads are looked up in a query
-- of their own: below a scan of `outbox` each partition would run that query over all partitions.
WITH ready AS MATERIALIZED (
    SELECT o.id, o.aggregate_id, o.aggregate_seq
      FROM outbox o
     WHERE o.published_at IS NULL
       AND o.failed_at IS NULL
       AND o.id > %(after)s::bigint
       AND o.id <= %(until)s::bigint
     ORDER BY o.id
     LIMIT %(limit)s
), first AS MATERIALIZED (
    SELECT aggregate_id, min(id) AS id, coalesce(min(id) = min(id) FILTER (WHERE aggregate_seq = 1), false) AS begins
      FROM ready
     GROUP BY aggregate_id
), head AS MATERIALIZED (
    SELECT o.id, o.aggregate_id, o.topic, o.payload, o.event_type, o.tenant_id, o.trace_id, o.event_id, o.aggregate_seq,
           o.traceparent, o.content_type
      FROM outbox o
     WHERE o.id = ANY((SELECT array_agg(first.id)
                         FROM first
                        WHERE first.begins
                           OR first.id = (SELECT p.id
                                            FROM outbox p
                                           WHERE p.aggregate_id >= first.aggregate_id
                                             AND p.aggregate_id <= first.aggregate_id
                                             AND p.published_at IS NULL
                                             AND p.id <= first.id
                                           ORDER BY p.aggregate_id, p.id
                                           LIMIT 1))::bigint[])
       AND o.id > %(after)s::bigint
       AND o.id <= (SELECT max(id) FROM ready)
       AND coalesce(o.published_at, o.failed_at) IS NULL
       AND o.topic <> ALL(%(without_topics)s::text[])
       FOR UPDATE OF o SKIP LOCKED
), run AS (
    SELECT aggregate_id, min(id) AS head, count(*) FILTER (WHERE NOT held) - 1 AS behind
      FROM (SELECT aggregate_id, id, false AS held FROM ready UNION ALL SELECT aggregate_id, id, true FROM head) AS both_of_them
     WHERE (SELECT count(*) FROM head) < (SELECT count(*) FROM ready)
     GROUP BY aggregate_id
    HAVING bool_or(held) AND count(*) > 2
), behind AS (
    SELECT r.id, r.aggregate_id, r.topic, r.payload, r.event_type, r.tenant_id, r.trace_id, r.event_id, r.aggregate_seq,
           r.traceparent, r.content_type
      FROM run
     CROSS JOIN LATERAL (
           SELECT p.*, bool_or(p.failed_at IS NOT NULL OR p.topic = ANY(%(without_topics)s::text[]))
                           OVER (ORDER BY p.aggregate_id, p.id) AS stopped
             FROM outbox p
            WHERE (p.aggregate_id, p.id) > (run.aggregate_id, run.head) AND p.aggregate_id <= run.aggregate_id
              AND p.published_at IS NULL
            ORDER BY p.aggregate_id, p.id
            LIMIT run.behind
           ) r
     WHERE NOT r.stopped
), sized AS (
    SELECT *, row_number() OVER by_id AS place, sum(octet_length(payload)) OVER by_id AS bytes, lead(id) OVER by_id AS next_id
      FROM (SELECT * FROM head UNION ALL SELECT * FROM behind) AS both_of_them
    WINDOW by_id AS (ORDER BY id)
)
SELECT taken.id, aggregate_id, topic, payload, event_type, tenant_id, trace_id, event_id, aggregate_seq, traceparent,
       content_type, (extract(epoch FROM now()) * 1000)::bigint AS now_ms, next_id, looked.read,
       CASE WHEN looked.read < %(limit)s THEN least(%(until)s::bigint, coalesce((SELECT max(id) FROM outbox), 0))
            ELSE looked.last END AS last
  FROM (SELECT count(*) AS read, max(id) AS last FROM ready) AS looked
  LEFT JOIN (SELECT * FROM sized WHERE place = 1 OR bytes <= %(bytes)s) AS taken ON true
 ORDER BY taken.id

-- any_ready --
-- Whether there is a ready row with an id above `after` and up to `until`, and the id up to which rows were read, as
-- fetch_unpublished returns it where it finds none. Locks no row; other publishers may have locked the ready ones.
SELECT EXISTS (SELECT
                 FROM outbox o
                WHERE o.published_at IS NULL
                  AND o.failed_at IS NULL
                  AND o.id > %(after)s::bigint
                  AND o.id <= %(until)s::bigint),
       least(%(until)s::bigint, coalesce((SELECT max(id) FROM outbox), 0))

-- mark_published --
-- Marks rows with the partitions and offsets that Kafka acknowledged. The condition on the ids is there twice, so that
-- they are looked up in one index scan and not one by one.
UPDATE outbox o
   SET published_at = clock_timestamp(), publisher_node = %(node)s,
       kafka_partition = place."partition", kafka_offset = place."offset"
  FROM unnest(%(ids)b::bigint[], %(partitions)b::integer[], %(offsets)b::bigint[]) AS place (id, "partition", "offset")
 WHERE o.id = place.id AND o.id = ANY(%(ids)b::bigint[])

-- set_aside --
-- Takes a row that Kafka refused out of the queue, with the reason.
UPDATE outbox
   SET failed_at = clock_timestamp(), failure = %(failure)s, attempts = attempts + 1
 WHERE id = %(id)s

-- take_lead --
-- Takes or renews the publishing lease, unless another node has it. Returns whether this node has it now, and for how many
-- more seconds another one does. A lease that ends later than any node asks for was written before the clock was set
-- back, and counts as expired. Losing the row in a crash does no harm, so the commit does not wait for the disk.
WITH quick AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), taken AS (
    INSERT INTO publishing AS p (node_id, ends_at)
    SELECT %(node)s::text, clock_timestamp() + make_interval(secs => %(lasts_s)s) FROM quick
    ON CONFLICT (one) DO UPDATE SET node_id = excluded.node_id, ends_at = excluded.ends_at
     WHERE p.node_id = excluded.node_id
        OR p.ends_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + make_interval(secs => %(most_s)s)
    RETURNING node_id
)
SELECT EXISTS (SELECT FROM taken),
       (SELECT extract(epoch FROM ends_at - clock_timestamp())::float8 FROM publishing
         WHERE NOT EXISTS (SELECT FROM taken))

-- lead_of_others --
SELECT false, (SELECT extract(epoch FROM ends_at - clock_timestamp())::float8 FROM publishing
                WHERE node_id <> %(node)s AND ends_at < clock_timestamp() + make_interval(secs => %(most_s)s))

-- give_up_lead --
WITH given_up AS (
    UPDATE publishing SET ends_at = clock_timestamp() WHERE node_id = %(node)s
)
SELECT false, NULL::float8

-- waiting_rows --
-- Unpublished rows, or only those set aside, oldest first; `head` is the aggregate's first unpublished row.
SELECT o.id, o.aggregate_id, o.topic, octet_length(o.payload) AS bytes,
       extract(epoch FROM clock_timestamp() - o.created_at)::float8 AS age_s,
       o.attempts, o.failed_at IS NOT NULL AS set_aside, o.failure,
       (SELECT p.id
          FROM outbox p
         WHERE p.aggregate_id = o.aggregate_id AND p.published_at IS NULL
         ORDER BY p.id
         LIMIT 1) AS head
  FROM outbox o
 WHERE o.published_at IS NULL AND (o.failed_at IS NOT NULL OR NOT %(failed)s)
 ORDER BY o.id
 LIMIT %(limit)s

-- retry_rows --
-- Puts rows that were set aside back into the queue, all of them where `ids` is null. `attempts` is kept.
UPDATE outbox
   SET failed_at = NULL
 WHERE published_at IS NULL AND failed_at IS NOT NULL AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))
RETURNING id

-- missing_rows --
-- Of the next `limit` rows after the id `after`, those published before `asked_at` that a group takes, has not processed
-- and can't read any more: their offset is not in the topic, or the group has passed it. `last` is the last row read,
-- null where there was none; it comes with each missing row, or alone.
WITH page AS MATERIALIZED (
    SELECT id, topic, coalesce(event_type, 'order.created') AS event_type, published_at, kafka_partition, kafka_offset
      FROM outbox
     WHERE id > %(after)s
     ORDER BY id
     LIMIT %(limit)s
), missing AS (
    SELECT page.id, g.consumer, page.kafka_partition, page.kafka_offset,
           CASE WHEN page.kafka_offset < edge.first THEN 'removed'
                WHEN page.kafka_offset < edge.next THEN 'passed'
                ELSE 'cut off' END AS why
      FROM page
      JOIN unnest(%(takers)s::text[], %(types)s::text[]) AS g (consumer, event_type) USING (event_type)
      LEFT JOIN unnest(%(partitions)s::integer[], %(firsts)s::bigint[], %(nexts)s::bigint[]) AS edge (number, first, next)
             ON edge.number = page.kafka_partition
      LEFT JOIN unnest(%(consumers)s::text[], %(numbers)s::integer[], %(positions)s::bigint[])
                AS reader (consumer, number, next)
             ON reader.consumer = g.consumer AND reader.number = page.kafka_partition
     WHERE page.topic = %(topic)s
       AND page.published_at < %(asked_at)s
       AND page.kafka_offset IS NOT NULL
       AND (edge.number IS NULL OR page.kafka_offset < edge.first OR page.kafka_offset >= edge.next
            OR page.kafka_offset < reader.next)
       AND NOT EXISTS (SELECT FROM processed_events e WHERE e.consumer = g.consumer AND e.outbox_id = page.id)
       AND NOT EXISTS (SELECT FROM parked_events k WHERE k.consumer = g.consumer AND k.outbox_id = page.id)
)
SELECT looked.last, missing.*
  FROM (SELECT max(id) AS last FROM page) AS looked
  LEFT JOIN missing ON true
 ORDER BY missing.id, missing.consumer

-- done_rows --
-- Those of these rows that these consumers have processed or parked.
SELECT consumer, outbox_id FROM processed_events WHERE consumer = ANY(%(groups)s) AND outbox_id = ANY(%(ids)s)
UNION ALL
SELECT consumer, outbox_id FROM parked_events WHERE consumer = ANY(%(groups)s) AND outbox_id = ANY(%(ids)s)

-- republish_rows --
-- Puts published rows back into the queue, where publishers take them like new ones.
UPDATE outbox
   SET published_at = NULL, publisher_node = NULL, kafka_partition = NULL, kafka_offset = NULL,
       republished_at = clock_timestamp()
 WHERE id = ANY(%(ids)s) AND published_at IS NOT NULL
RETURNING id

-- now --
SELECT clock_timestamp()

-- inbox --
-- The first half of every consumer's statement: writes the dedup rows of the events that this consumer has not processed,
-- in the order of their ids, so that two consumers can't deadlock. `fresh` are these events; the effect reads it, and is
-- committed with the dedup rows or not at all.
-- An event is identified by its outbox id and its event id: the same outbox id with another event id is another event
-- (`brew_reused`); where one of the two has no event id they are the same. A batch has no outbox id twice.
-- A repeat writes nothing to processed_events. All repeats of the batch are one row of `redeliveries`, with `repeated`,
-- the ids that came more than once within the batch; with synchronous replication that row also makes the commit wait
-- until the standby has the rows that they repeat. Where all ids were new, repeats are not looked for.
-- ON CONFLICT locks a row of `brew_reused` and reads its newest version, also one committed during this statement.
-- `brew_waiting`: whether the consumer has parked events whose keys this batch has not compared; then no event is taken.
-- Names have a prefix because a downstream's statement may use tables of any name.
WITH brew_waiting AS (
    SELECT NOT %(looked)s AND EXISTS (SELECT FROM parked_events WHERE consumer = %(consumer)s AND outcome IS NULL) AS there
), brew_event AS (
    SELECT *
      FROM unnest(%(outbox_ids)s::bigint[], %(event_ids)s::uuid[]/* arrays */) AS e (outbox_id, event_id/* names */)
     WHERE NOT (SELECT there FROM brew_waiting)
), brew_taken AS (
    INSERT INTO processed_events (consumer, outbox_id, event_id)
    SELECT %(consumer)s, outbox_id, event_id FROM brew_event ORDER BY outbox_id
    ON CONFLICT (consumer, outbox_id) DO NOTHING
    RETURNING outbox_id
), brew_again AS (
    SELECT outbox_id, event_id
      FROM brew_event
     WHERE (SELECT count(*) FROM brew_taken) < cardinality(%(outbox_ids)s::bigint[])
       AND outbox_id NOT IN (SELECT outbox_id FROM brew_taken)
), brew_reused AS (
    INSERT INTO processed_events AS p (consumer, outbox_id, event_id)
    SELECT %(consumer)s, brew_again.outbox_id, brew_again.event_id
      FROM brew_again LEFT JOIN processed_events known
        ON known.consumer = %(consumer)s AND known.outbox_id = brew_again.outbox_id
     WHERE brew_again.event_id IS NOT NULL
       AND (known.outbox_id IS NULL OR known.event_id <> brew_again.event_id)
       AND brew_again.event_id <> ALL(coalesce(known.earlier_ids, '{}'))
     ORDER BY outbox_id
    ON CONFLICT (consumer, outbox_id) DO UPDATE
       SET event_id = excluded.event_id, earlier_ids = p.earlier_ids || p.event_id, processed_at = clock_timestamp()
     WHERE p.event_id <> excluded.event_id AND excluded.event_id <> ALL(coalesce(p.earlier_ids, '{}'))
    RETURNING outbox_id
), fresh AS (
    SELECT brew_event.*
      FROM brew_event
      JOIN (SELECT outbox_id FROM brew_taken UNION ALL SELECT outbox_id FROM brew_reused) AS new USING (outbox_id)
), brew_repeats AS (
    INSERT INTO redeliveries (consumer, node_id, outbox_ids)
    SELECT %(consumer)s, %(node)s, array_agg(outbox_id ORDER BY outbox_id)
      FROM (SELECT outbox_id FROM brew_again WHERE outbox_id NOT IN (SELECT outbox_id FROM brew_reused)
             UNION ALL
            SELECT unnest(%(repeated)b::bigint[]) FROM brew_waiting WHERE NOT there) AS repeat
    HAVING count(*) > 0
)

-- taken --
-- The second half of a statement with an effect.
SELECT count(*), (SELECT there FROM brew_waiting) FROM fresh

-- taken_ids --
-- The second half where the effect is other statements; one row with a null where no event is fresh.
SELECT there, outbox_id FROM brew_waiting LEFT JOIN fresh ON true

-- reserve --
-- The effect of inventory-service: a reservation, which a cancel of the order releases. Merged by seq, so that an event
-- that arrives late changes nothing. A cancel counts as seq 2 at least, because its producer may give none or a wrong one.
INSERT INTO inventory_reservations AS r (order_id, node_id, seq, released_at)
SELECT order_id, %(node)s, max(greatest(seq, CASE WHEN type = 'order.cancelled' THEN 2 ELSE 1 END)),
       CASE WHEN bool_or(type = 'order.cancelled') THEN clock_timestamp() END
  FROM fresh
 GROUP BY order_id
 ORDER BY order_id
ON CONFLICT (order_id) DO UPDATE SET seq = excluded.seq, released_at = excluded.released_at
 WHERE excluded.seq > r.seq

-- notify --
-- The effect of notification-service: one row per order, with the last state that the customer was notified of. Merged as
-- in `reserve`. The webhook writes the same row (`_TOLD` in roles/webhook): a new column belongs in both.
INSERT INTO notifications_log AS n (order_id, node_id, channel, seq, state, cancelled_at)
SELECT order_id, %(node)s, 'push', max(greatest(seq, CASE WHEN type = 'order.cancelled' THEN 2 ELSE 1 END)),
       CASE WHEN bool_or(type = 'order.cancelled') THEN 'cancelled' ELSE 'created' END,
       CASE WHEN bool_or(type = 'order.cancelled') THEN clock_timestamp() END
  FROM fresh
 GROUP BY order_id
 ORDER BY order_id
ON CONFLICT (order_id) DO UPDATE SET seq = excluded.seq, state = excluded.state, cancelled_at = excluded.cancelled_at
 WHERE excluded.seq > n.seq

-- parks --
-- Whether a consumer has parked events.
SELECT EXISTS (SELECT FROM parked_events WHERE consumer = %(consumer)s AND outcome IS NULL)

-- parked_keys --
SELECT DISTINCT key FROM parked_events WHERE consumer = %(consumer)s AND outcome IS NULL AND key = ANY(%(keys)s)

-- lock_keys --
-- Locks keys to the end of the transaction, so that one transaction at a time parks, redrives or drops events of a key.
SELECT pg_advisory_xact_lock(hashtextextended(%(consumer)s || ' ' || key, 0))
  FROM (SELECT unnest(%(keys)s::text[]) AS key ORDER BY key) AS asked

-- park --
-- Parks events in the order in which they were read, without those that are processed or parked already.
INSERT INTO parked_events (consumer, key, seq, outbox_id, event_id, event_type, topic, "partition", "offset",
                           written_ms, value, headers, reason, attempts)
SELECT %(consumer)s, e.key, e.seq, e.outbox_id, e.event_id, e.event_type, e.topic, e."partition", e."offset",
       e.written_ms, e.value, e.headers, %(reason)s, %(attempts)s
  FROM unnest(%(keys)s::text[], %(seqs)s::bigint[], %(outbox_ids)s::bigint[], %(event_ids)s::uuid[],
              %(event_types)s::text[], %(topics)s::text[], %(partitions)s::integer[], %(offsets)s::bigint[],
              %(written)s::bigint[], %(values)s::bytea[], %(headers)s::text[]) WITH ORDINALITY
       AS e (key, seq, outbox_id, event_id, event_type, topic, "partition", "offset", written_ms, value, headers, place)
 WHERE NOT EXISTS (
       SELECT FROM processed_events p
        WHERE p.consumer = %(consumer)s AND p.outbox_id = e.outbox_id
          AND (p.event_id IS NULL OR e.event_id IS NULL OR p.event_id = e.event_id OR e.event_id = ANY(p.earlier_ids)))
 ORDER BY e.place
ON CONFLICT DO NOTHING
RETURNING outbox_id

-- take_waiting --
-- The effect of a downstream with lanes, after `inbox`: fresh events are stored for their handler, in the order of their
-- records.
INSERT INTO waiting_events (consumer, key, seq, outbox_id, event_id, event_type, topic, "partition", "offset", written_ms,
                            value, headers)
SELECT %(consumer)s, key, seq, outbox_id, event_id, type, topic, "partition", "offset", written_ms, value, headers
  FROM fresh
 ORDER BY place

-- count_waiting --
-- How many events of a consumer wait for lanes, counted up to `most`, and for how many seconds the oldest has waited.
SELECT (SELECT count(*) FROM (SELECT FROM waiting_events WHERE consumer = %(consumer)s LIMIT %(most)s) AS first),
       (SELECT extract(epoch FROM clock_timestamp() - taken_at)::float8
          FROM waiting_events WHERE consumer = %(consumer)s ORDER BY consumer, id LIMIT 1)

-- any_waiting --
-- Whether events wait for lanes of a consumer.
SELECT EXISTS (SELECT FROM waiting_events WHERE consumer = %(consumer)s)

-- lease_waiting --
-- Leases the oldest row of each of up to `limit` keys, in the order of their ids. A key is skipped where its oldest row is
-- leased, waits for its next try or is `in_hand` of this process, or where the key has a parked event.
-- Only the consumer's oldest `look` rows are read: the oldest of a key among them is the oldest of the key. They are read
-- once and not joined, whatever the statistics, because the plan is kept while the table grows from nothing to thousands.
-- The aggregate min() gets id and `busy` in one number: `busy` is its last bit.
WITH oldest AS MATERIALIZED (
    SELECT w.id, w.key,
           w.failure IS NOT NULL OR w.next_try_at > clock_timestamp()
               OR coalesce(w.lease_until > clock_timestamp(), false) OR w.id = ANY(%(in_hand)s::bigint[]) AS busy
      FROM waiting_events w
     WHERE w.consumer = %(consumer)s
     ORDER BY w.consumer, w.id
     LIMIT %(look)s
), head AS MATERIALIZED (
    SELECT w.id
      FROM waiting_events w
     WHERE w.id = ANY((SELECT array_agg(id)
                         FROM (SELECT min(2 * id + busy::integer) / 2 AS id
                                 FROM oldest
                                GROUP BY key
                               HAVING min(2 * id + busy::integer) & 1 = 0
                                ORDER BY 1
                                LIMIT 2 * %(limit)s) AS next)::bigint[])
       AND w.failure IS NULL
       AND w.next_try_at <= clock_timestamp()
       AND (w.lease_until IS NULL OR w.lease_until < clock_timestamp())
       AND (SELECT k.key FROM parked_events k
             WHERE k.consumer = w.consumer AND k.key = w.key AND k.outcome IS NULL LIMIT 1) IS NULL
     ORDER BY w.id
     LIMIT %(limit)s
       FOR UPDATE OF w SKIP LOCKED
)
UPDATE waiting_events w
   SET lease = %(lease)s, lease_until = clock_timestamp() + make_interval(secs => %(lasts_s)s), node_id = %(node)s
  FROM head
 WHERE w.id = head.id
RETURNING w.id, w.key, w.outbox_id, w.event_id::text, w.event_type, w.topic, w."partition", w."offset", w.written_ms,
          w.value, w.headers, w.attempts, w.lease, false AS again

-- lease_again --
-- Leases rows that were put back for another try, those first that have been due for the longest time.
WITH head AS MATERIALIZED (
    SELECT w.id
      FROM waiting_events w
     WHERE w.consumer = %(consumer)s
       AND w.failure IS NOT NULL
       AND w.next_try_at <= clock_timestamp()
       AND (w.lease_until IS NULL OR w.lease_until < clock_timestamp())
       AND w.id <> ALL(%(in_hand)s::bigint[])
       AND (SELECT k.key FROM parked_events k
             WHERE k.consumer = w.consumer AND k.key = w.key AND k.outcome IS NULL LIMIT 1) IS NULL
     ORDER BY w.consumer, w.next_try_at
     LIMIT %(limit)s
       FOR UPDATE OF w SKIP LOCKED
)
UPDATE waiting_events w
   SET lease = %(lease)s, lease_until = clock_timestamp() + make_interval(secs => %(lasts_s)s), node_id = %(node)s
  FROM head
 WHERE w.id = head.id
RETURNING w.id, w.key, w.outbox_id, w.event_id::text, w.event_type, w.topic, w."partition", w."offset", w.written_ms,
          w.value, w.headers, w.attempts, w.lease, true AS again

-- renew_leases --
-- Returns the rows whose leases this process still has.
UPDATE waiting_events w
   SET lease_until = clock_timestamp() + make_interval(secs => %(lasts_s)s)
  FROM unnest(%(ids)s::bigint[], %(leases)s::uuid[]) AS held (id, lease)
 WHERE w.id = held.id AND w.lease = held.lease
RETURNING w.id

-- finish_waiting --
-- Ends a call that succeeded, if it still has the lease, in the transaction of the handler's own statements.
WITH done AS (
    DELETE FROM waiting_events WHERE id = %(id)s AND lease = %(lease)s RETURNING consumer, outbox_id, event_id
), noted AS (
    UPDATE processed_events p
       SET processed_at = clock_timestamp()
      FROM done
     WHERE p.consumer = done.consumer AND p.outbox_id = done.outbox_id AND p.event_id IS NOT DISTINCT FROM done.event_id
)
SELECT count(*) FROM done

-- put_back --
-- Ends a call that has to be repeated. With a `failure` (empty where nothing failed) lease_again takes the row and
-- lease_waiting does not: as the oldest one it would always be leased before new rows.
UPDATE waiting_events
   SET lease = NULL, lease_until = NULL, attempts = attempts + %(counted)s, failure = coalesce(%(failure)s, failure, ''),
       next_try_at = clock_timestamp() + make_interval(secs => %(pause_s)s)
 WHERE id = %(id)s AND lease = %(lease)s
RETURNING id

-- give_leases_back --
-- Gives up the leases of calls that a stop has interrupted.
UPDATE waiting_events w
   SET lease = NULL, lease_until = NULL
  FROM unnest(%(ids)s::bigint[], %(leases)s::uuid[]) AS held (id, lease)
 WHERE w.id = held.id AND w.lease = held.lease

-- hold_waiting --
-- Locks the row of a call to the end of the transaction; no row where the call has lost its lease.
SELECT id FROM waiting_events WHERE id = %(id)s AND lease = %(lease)s FOR UPDATE

-- park_waiting --
-- Parks all waiting events of a key: that of `id` with its reason, the others behind it; where `id` is null all behind an
-- event parked before. Their dedup rows are deleted, so that a redrive processes them. A dedup row that has earlier events
-- of the same outbox id gets the last of those back.
WITH gone AS (
    DELETE FROM waiting_events WHERE consumer = %(consumer)s AND key = %(key)s RETURNING *
), forgotten AS (
    DELETE FROM processed_events p
     USING gone
     WHERE p.consumer = gone.consumer AND p.outbox_id = gone.outbox_id
       AND p.event_id IS NOT DISTINCT FROM gone.event_id AND coalesce(cardinality(p.earlier_ids), 0) = 0
), restored AS (
    UPDATE processed_events p
       SET event_id = p.earlier_ids[cardinality(p.earlier_ids)], earlier_ids = trim_array(p.earlier_ids, 1)
      FROM gone
     WHERE p.consumer = gone.consumer AND p.outbox_id = gone.outbox_id
       AND p.event_id IS NOT DISTINCT FROM gone.event_id AND cardinality(p.earlier_ids) > 0
)
INSERT INTO parked_events (consumer, key, seq, outbox_id, event_id, event_type, topic, "partition", "offset",
                           written_ms, value, headers, reason, attempts)
SELECT consumer, key, seq, outbox_id, event_id, event_type, topic, "partition", "offset", written_ms, value, headers,
       CASE WHEN id = %(id)s THEN %(reason)s ELSE 'waits behind an event of its key' END,
       CASE WHEN id = %(id)s THEN %(attempts)s::integer ELSE 0 END
  FROM gone
 ORDER BY gone.id
ON CONFLICT DO NOTHING
RETURNING outbox_id

-- keys_behind_parked --
-- Keys with a parked event that also have waiting ones: those were taken while it was being parked.
SELECT DISTINCT k.key
  FROM parked_events k
 WHERE k.consumer = %(consumer)s AND k.outcome IS NULL
   AND EXISTS (SELECT FROM waiting_events w WHERE w.consumer = k.consumer AND w.key = k.key)
   AND NOT EXISTS (SELECT FROM waiting_events w
                    WHERE w.consumer = k.consumer AND w.key = k.key AND w.lease_until >= clock_timestamp())
 LIMIT %(limit)s

-- try_lock_key --
-- As lock_keys, but without a wait, because a redrive may hold the lock for long.
SELECT pg_try_advisory_xact_lock(hashtextextended(%(consumer)s || ' ' || %(key)s, 0))

-- parked_events --
-- Parked events of these consumers, oldest first; `ids` null: all. `open`: only those without an outcome.
SELECT id, consumer AS group, key, seq, outbox_id, event_id::text, event_type, topic, "partition", "offset", written_ms,
       value, headers, reason, attempts, parked_at, coalesce(outcome, '') AS outcome
  FROM parked_events
 WHERE consumer = ANY(%(consumers)s)
   AND (outcome IS NULL OR NOT %(open)s)
   AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))
   AND (%(key)s::text IS NULL OR key = %(key)s)
 ORDER BY id

-- count_as_processed --
-- Writes the dedup rows of parked events that are dropped.
INSERT INTO processed_events (consumer, outbox_id, event_id)
SELECT consumer, outbox_id, event_id FROM parked_events WHERE id = ANY(%(ids)s) AND outcome IS NULL
ON CONFLICT DO NOTHING

-- settle_parked --
-- Runs at the beginning of the transaction, before the effects of a redrive.
UPDATE parked_events
   SET outcome = %(outcome)s, settled_at = now()
 WHERE id = ANY(%(ids)s) AND outcome IS NULL

-- settled_letters --
-- The outcomes of these dead letters; no row for an open one.
SELECT s."partition", s."offset", s.outcome, s.new_partition, s.new_offset
  FROM unnest(%(partitions)s::integer[], %(offsets)s::bigint[], %(written)s::timestamptz[])
       AS letter ("partition", "offset", written_at)
  JOIN dead_letters_settled s USING ("partition", "offset", written_at)
 WHERE s.topic = %(topic)s

-- lock_settlements --
-- Locks to the end of the transaction, so that one transaction at a time settles dead letters of a topic.
SELECT pg_advisory_xact_lock(hashtextextended(%(topic)s, 0))

-- now_ms --
-- The time of this server's clock, for the timestamps of records: one clock for all producers.
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint

-- settle_letters --
INSERT INTO dead_letters_settled (topic, "partition", "offset", written_at, outcome, new_partition, new_offset)
SELECT %(topic)s, l.p, l.o, l.written_at, %(outcome)s, l.new_p, l.new_o
  FROM unnest(%(partitions)s::integer[], %(offsets)s::bigint[], %(written)s::timestamptz[],
              %(new_partitions)s::integer[], %(new_offsets)s::bigint[]) AS l (p, o, written_at, new_p, new_o)

-- forget_replicas --
-- Deletes the rows of replicas that have not written for a day, such as of replicas that were named by their pid.
DELETE FROM nodes
 USING set_config('synchronous_commit', 'off', true)
 WHERE seen_at < clock_timestamp() - interval '1 day'

-- forget_redeliveries --
-- Deletes redeliveries older than a week.
DELETE FROM redeliveries
 USING set_config('synchronous_commit', 'off', true)
 WHERE came_at < clock_timestamp() - interval '7 days'

-- keep_presence --
-- Writes a replica's row. The commit does not wait for the disk, because the row is written again every second. That
-- setting ends with the transaction: behind a pooler the session's next transaction may be an order's. `rival`: where this
-- replica has written the row before and it now has another process's pid, that process also uses the name.
INSERT INTO nodes (node_id, role, host, pid, address, started_at, seen_at, stopped_at,
                   processed, effects, skipped, dead, trouble, publishes)
SELECT %(node)s, %(role)s, %(host)s, %(pid)s, %(address)s,
       clock_timestamp() - make_interval(secs => %(age_s)s), clock_timestamp(),
       CASE WHEN %(stopped)s THEN clock_timestamp() END, %(processed)s, %(effects)s, %(skipped)s, %(dead)s, %(trouble)s, %(publishes)s
  FROM set_config('synchronous_commit', 'off', true)
ON CONFLICT (node_id) DO UPDATE
   SET (role, host, pid, address, started_at, seen_at, stopped_at, processed, effects, skipped, dead, trouble, publishes)
     = (excluded.role, excluded.host, excluded.pid, excluded.address, excluded.started_at, excluded.seen_at,
        excluded.stopped_at, excluded.processed, excluded.effects, excluded.skipped, excluded.dead, excluded.trouble,
        excluded.publishes),
       rival = CASE WHEN %(again)s AND (nodes.host, nodes.pid) <> (excluded.host, excluded.pid)
                    THEN 'pid ' || nodes.pid || ' on ' || nodes.host END
RETURNING rival

-- nodes --
-- All replicas, and how many seconds ago each last wrote its row.
SELECT node_id AS name, role, host, pid, address, processed, effects, skipped, dead, trouble,
       coalesce(publishes, role IN ('order', 'publisher')) AS publishes,
       stopped_at IS NOT NULL AS stopped,
       extract(epoch FROM clock_timestamp() - seen_at)::float8 AS silent_s,
       extract(epoch FROM started_at)::float8 AS started_s
  FROM nodes
 ORDER BY role = 'order' DESC, role, node_id

-- orders_between --
-- The newest orders of a range of ids: those with a prefix.
SELECT id FROM orders WHERE id BETWEEN %(first)s AND %(last)s ORDER BY id DESC LIMIT %(limit)s

-- traced_order --
-- `committed_at` is known only with track_commit_timestamp, and until the row is changed. `dropped_below` is the watermark
-- of an order so old that its outbox rows may have been dropped, else 0.
SELECT id, tenant_id, customer_id, amount_cents, currency, status, created_at,
       CASE WHEN status = 'ORDER_STATUS_NEW' AND current_setting('track_commit_timestamp')::boolean THEN pg_xact_commit_timestamp(xmin) END
           AS committed_at,
       coalesce((SELECT dropped_below FROM retention WHERE dropped_until >= orders.created_at), 0) AS dropped_below
  FROM orders
 WHERE id = %(id)s

-- traced_events --
-- The outbox rows of an aggregate. In two halves, because each has its own partial index.
SELECT id, topic, payload, coalesce(event_type, 'order.created') AS type, created_at, published_at, publisher_node,
       kafka_partition, kafka_offset, failed_at, failure, attempts
  FROM outbox
 WHERE aggregate_id = %(aggregate_id)s AND published_at IS NULL
UNION ALL
SELECT id, topic, payload, coalesce(event_type, 'order.created') AS type, created_at, published_at, publisher_node,
       kafka_partition, kafka_offset, failed_at, failure, attempts
  FROM outbox
 WHERE aggregate_id = %(aggregate_id)s AND published_at IS NOT NULL
 ORDER BY id

-- traced_parked --
SELECT id, consumer AS group, outbox_id, reason, parked_at, coalesce(outcome, '') AS outcome
  FROM parked_events
 WHERE consumer = ANY(%(groups)s) AND outbox_id = ANY(%(ids)s)
 ORDER BY id

-- traced_waiting --
-- Events that a group has taken for its lanes and not handled yet.
SELECT consumer AS group, outbox_id, taken_at, attempts, coalesce(failure, '') AS failure,
       CASE WHEN lease_until >= clock_timestamp() THEN node_id ELSE '' END AS node
  FROM waiting_events
 WHERE consumer = ANY(%(groups)s) AND outbox_id = ANY(%(ids)s)
 ORDER BY id

-- traced_dedup --
-- Dedup rows, without those of events that wait for a lane. Repeats are counted in `redeliveries`; an older version counted
-- them in the dedup row.
SELECT p.consumer AS group, p.outbox_id, p.processed_at, p.duplicates + again.times AS duplicates,
       coalesce(greatest(p.duplicate_at, again.came_at), p.processed_at) AS duplicate_at
  FROM processed_events p
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(cardinality(array_positions(r.outbox_ids, p.outbox_id))), 0)::int AS times,
              max(r.came_at) AS came_at
         FROM redeliveries r
        WHERE r.consumer = p.consumer AND p.outbox_id = ANY(r.outbox_ids)
       ) again
 WHERE p.consumer = ANY(%(groups)s) AND p.outbox_id = ANY(%(ids)s)
   AND NOT EXISTS (SELECT FROM waiting_events w WHERE w.consumer = p.consumer AND w.outbox_id = p.outbox_id)
 ORDER BY p.processed_at

-- counts --
-- The four counters of the story, and how many events are set aside or parked, in one snapshot.
SELECT (SELECT count(*) FROM orders) AS orders,
       (SELECT count(*) FROM outbox WHERE published_at IS NULL) AS outbox_unpublished,
       (SELECT count(*) FROM inventory_reservations) AS reservations,
       (SELECT count(*) FROM notifications_log) AS notifications,
       (SELECT count(*) FROM outbox WHERE published_at IS NULL AND failed_at IS NOT NULL) AS outbox_failed,
       (SELECT count(*) FROM parked_events WHERE outcome IS NULL) AS parked

-- flow --
-- How many orders there are, and how many events wait, are set aside or are parked. Effects are counted by other queries.
SELECT (SELECT count(*) FROM orders) AS orders,
       (SELECT count(*) FROM outbox WHERE published_at IS NULL) AS outbox_unpublished,
       (SELECT count(*) FROM outbox WHERE published_at IS NULL AND failed_at IS NOT NULL) AS outbox_failed,
       (SELECT count(*) FROM parked_events WHERE outcome IS NULL) AS parked

-- count_parked --
-- How many events of these consumers are parked.
SELECT count(*) FROM parked_events WHERE outcome IS NULL AND consumer = ANY(%(groups)s)

-- count_parked_of_others --
-- How many events of all other consumers are parked.
SELECT count(*) FROM parked_events WHERE outcome IS NULL AND consumer <> ALL(%(groups)s)

-- pulse --
-- Cheap numbers of an outbox of any size: unpublished rows and those set aside among them, counted up to `most`, and the
-- age of the oldest ready row.
SELECT waiting.rows, waiting.set_aside,
       (SELECT extract(epoch FROM clock_timestamp() - created_at)::float8
          FROM outbox WHERE published_at IS NULL AND failed_at IS NULL ORDER BY id LIMIT 1) AS oldest_s
  FROM (SELECT count(*) AS rows, count(failed_at) AS set_aside
          FROM (SELECT failed_at FROM outbox WHERE published_at IS NULL LIMIT %(most)s) AS unpublished) AS waiting

-- inserted --
-- The files of these tables, which a TRUNCATE changes, and how many rows were ever inserted into each table, with all its
-- partitions, in the order asked.
SELECT coalesce(string_agg(files, ' ' ORDER BY place), '') AS files, coalesce(array_agg(rows ORDER BY place), '{}') AS inserted
  FROM (SELECT asked.place, string_agg(pg_relation_filenode(part.oid)::text, ' ' ORDER BY part.oid) AS files,
               coalesce(sum(pg_stat_get_tuples_inserted(part.oid)), 0)::bigint AS rows
          FROM unnest(%(tables)s::text[]) WITH ORDINALITY AS asked (name, place)
         CROSS JOIN LATERAL (
               SELECT asked.name::regclass::oid AS oid
                UNION ALL
               SELECT inhrelid FROM pg_inherits WHERE inhparent = asked.name::regclass) AS part
         GROUP BY asked.place) AS of_table

-- totals --
SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM outbox)

-- inventory_distribution --
SELECT node_id, count(*) FROM inventory_reservations GROUP BY node_id ORDER BY node_id

-- published_by_node --
-- How many events each node has published.
SELECT publisher_node AS node, count(*) FROM outbox WHERE published_at IS NOT NULL GROUP BY node

-- unfinished_orders --
-- Up to `limit` orders without exactly their events and effects. Effects are given as arrays, because they may be in other
-- databases: the orders that have one, and whether it shows their cancel. Events of orders up to the watermark's time may
-- have been dropped.
SELECT o.id, coalesce(x.events, 0) AS events, coalesce(x.published, 0) AS published,
       (r.id IS NOT NULL) AS reserved, (n.id IS NOT NULL) AS notified
  FROM orders o
  LEFT JOIN (SELECT aggregate_id, count(*) AS events, count(published_at) AS published
               FROM outbox GROUP BY aggregate_id) x ON x.aggregate_id = 'order-' || o.id
  LEFT JOIN unnest(%(reserved)s::uuid[], %(released)s::boolean[]) AS r (id, undone) ON r.id = o.id
  LEFT JOIN unnest(%(notified)s::uuid[], %(told)s::boolean[]) AS n (id, undone) ON n.id = o.id
 CROSS JOIN LATERAL (SELECT CASE WHEN o.cancelled_at IS NULL THEN 1 ELSE 2 END AS events) AS told
 WHERE x.published <> x.events OR r.id IS NULL OR n.id IS NULL
    OR o.cancelled_at IS NOT NULL AND NOT (r.undone AND n.undone)
    OR coalesce(x.events, 0) > told.events
    OR coalesce(x.events, 0) < told.events
       AND coalesce(o.created_at > (SELECT dropped_until FROM retention), true)
 ORDER BY o.created_at
 LIMIT %(limit)s

-- missing_orders --
-- Those of these ids that are not in the orders table: acknowledged, then lost.
SELECT id FROM unnest(%(ids)s::uuid[]) AS id EXCEPT SELECT id FROM orders

-- contradicted_calls --
-- Those of these acknowledged orders that are missing, or whose key made another order.
SELECT call.id
  FROM unnest(%(keys)s::text[], %(ids)s::uuid[]) AS call (key, id)
  LEFT JOIN orders o ON o.tenant_id = %(tenant_id)s AND o.idempotency_key = call.key
 WHERE o.id IS DISTINCT FROM call.id

-- orders_of_keys --
-- The orders that these keys made.
SELECT idempotency_key, id::text FROM orders WHERE tenant_id = %(tenant_id)s AND idempotency_key = ANY(%(keys)s)

-- cancelled_orders --
-- Those of these orders that are cancelled.
SELECT id::text FROM orders
 WHERE id = ANY(%(ids)s::uuid[]) AND status = 'ORDER_STATUS_CANCELLED' AND cancelled_at IS NOT NULL

-- wrongly_parked --
-- Events that are still parked, and those that were parked although no event of their key was refused for this cause.
SELECT k.consumer, k.outbox_id, k.outcome IS NULL AS still, k.reason
  FROM parked_events k
 WHERE k.outcome IS NULL
    OR NOT EXISTS (SELECT FROM parked_events c
                    WHERE c.consumer = k.consumer AND c.key = k.key AND strpos(c.reason, %(cause)s) > 0)
 ORDER BY k.id
 LIMIT %(limit)s

-- slowest_order --
-- The longest time in seconds from an order's acceptance to the last of its effects in these groups. Dedup rows in
-- downstreams' own databases are given as arrays.
SELECT extract(epoch FROM max(p.processed_at - o.created_at))::float8
  FROM orders o
  JOIN outbox e ON e.aggregate_id = 'order-' || o.id AND coalesce(e.event_type, 'order.created') = 'order.created'
  JOIN (SELECT outbox_id, processed_at FROM processed_events WHERE consumer = ANY(%(groups)s)
         UNION ALL
        SELECT * FROM unnest(%(ids)s::bigint[], %(times)s::timestamptz[])) AS p ON p.outbox_id = e.id

-- processed_times --
-- The outbox ids that these consumers have processed, and when.
SELECT outbox_id, processed_at FROM processed_events WHERE consumer = ANY(%(groups)s)

-- downstream_name --
-- The MODULE:NAME that a consumer is registered for.
SELECT name FROM downstreams WHERE consumer = %(consumer)s

-- register_downstream --
INSERT INTO downstreams AS d (consumer, name) VALUES (%(consumer)s, %(name)s)
ON CONFLICT (consumer) DO UPDATE SET name = excluded.name, registered_at = clock_timestamp()
 WHERE d.name <> excluded.name

-- note_lanes --
-- Notes whether a consumer's nodes have lanes, as the node that starts has. A shipped downstream may have no row yet.
INSERT INTO downstreams AS d (consumer, name, lanes) VALUES (%(consumer)s, %(name)s, %(lanes)s)
ON CONFLICT (consumer) DO UPDATE SET lanes = excluded.lanes WHERE d.lanes IS DISTINCT FROM excluded.lanes

-- noted_lanes --
SELECT consumer FROM downstreams WHERE consumer = ANY(%(consumers)s) AND lanes

-- reset --
-- Empties every table. CONTINUE IDENTITY: see the first migration.
TRUNCATE orders, outbox, processed_events, inventory_reservations, notifications_log, dead_letters_settled, nodes,
         redeliveries, aggregates, parked_events, waiting_events, publishing
CONTINUE IDENTITY

-- versions_readable --
-- Whether this user may read schema_version. A database of an older version has no such table.
SELECT coalesce(has_column_privilege(to_regclass('schema_version'), 'number', 'SELECT'), false)

-- versions --
SELECT number FROM schema_version

-- write_version --
INSERT INTO schema_version (number, name, program) VALUES (%(number)s, %(name)s, %(program)s)
ON CONFLICT (number) DO NOTHING

-- begin_migrating --
-- Tries to take the lock of the one session that migrates. It must not wait in the server: a waiting statement keeps its
-- snapshot, and the other session's index build would wait for that.
SELECT pg_try_advisory_lock(hashtextextended('brewctl migrations', 0))

-- end_migrating --
SELECT pg_advisory_unlock(hashtextextended('brewctl migrations', 0))

-- migrating --
-- Another session that migrates this database, if there is one.
SELECT l.pid, coalesce(a.application_name, '')
  FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.classid::bigint << 32 | l.objid::bigint = hashtextextended('brewctl migrations', 0)

-- schema_state --
-- The parts of the schema that are missing or differ from the migrations, by their places in the list. `invalid`: an index
-- whose build was interrupted or still goes on. Reads the catalog alone, and locks no table.
-- A key is a unique index over exactly these columns, whatever its name; a 'leftover' is an index to be dropped; the
-- `columns` of a function are its body without comments, with single blanks as white space; '': any body.
SELECT part.place, coalesce(index.indexrelid IS NOT NULL AND part.kind <> 'leftover', false) AS invalid
  FROM unnest(%(kinds)s::text[], %(tables)s::text[], %(names)s::text[], %(columns)s::text[])
       WITH ORDINALITY AS part (kind, "table", name, columns, place)
  LEFT JOIN pg_index index
         ON index.indexrelid = to_regclass(part.name) AND part.kind IN ('index', 'leftover')
 WHERE CASE part.kind
            WHEN 'table' THEN to_regclass(part.name) IS NULL
            WHEN 'column' THEN NOT EXISTS (
                 SELECT FROM pg_attribute
                  WHERE attrelid = to_regclass(part."table") AND attname = part.name AND NOT attisdropped)
            WHEN 'index' THEN index.indisvalid IS NOT TRUE
            WHEN 'leftover' THEN index.indexrelid IS NOT NULL
            WHEN 'partitions' THEN (SELECT relkind FROM pg_class WHERE oid = to_regclass(part."table")) IS DISTINCT FROM 'p'
            WHEN 'function' THEN NOT EXISTS (
                 SELECT FROM pg_proc
                  WHERE proname = part.name AND pg_function_is_visible(oid)
                    AND part.columns IN ('', btrim(regexp_replace(regexp_replace(prosrc, '[-]-[^\n]*', '', 'g'), '\s+', ' ', 'g'))))
            ELSE NOT EXISTS (
                 SELECT FROM pg_index i
                  WHERE i.indrelid = to_regclass(part."table") AND i.indisunique AND i.indisvalid AND i.indimmediate
                    AND i.indpred IS NULL AND i.indexprs IS NULL
                    AND (SELECT array_agg(attname::text ORDER BY attname::text)
                           FROM pg_attribute
                          WHERE attrelid = i.indrelid AND attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))
                      = (SELECT array_agg(c ORDER BY c) FROM unnest(string_to_array(part.columns, ',')) AS c))
       END
 ORDER BY part.place

-- lacking_rights --
-- The places in the list of those rights that this session's user lacks. A right to a table covers each of its columns.
-- Reads the catalog alone.
SELECT asked.place
  FROM unnest(%(tables)s::text[], %(columns)s::text[], %(rights)s::text[])
       WITH ORDINALITY AS asked ("table", "column", "right", place)
 WHERE NOT CASE WHEN asked."column" = '' THEN has_table_privilege(to_regclass(asked."table"), asked."right")
                ELSE has_column_privilege(to_regclass(asked."table"), asked."column", asked."right") END
 ORDER BY asked.place

-- held_rights --
-- The rights of this session's user to a table, or to any column of it.
SELECT "right"
  FROM unnest(%(rights)s::text[]) WITH ORDINALITY AS asked ("right", place)
 WHERE has_any_column_privilege(to_regclass(%(table)s), "right")
 UNION ALL
SELECT 'DELETE' WHERE has_table_privilege(to_regclass(%(table)s), 'DELETE')

-- owned_by_others --
-- How many of these tables, and of their partitions, another role owns.
SELECT count(*)
  FROM pg_class
 WHERE oid = ANY (SELECT to_regclass(name)::oid FROM unnest(%(tables)s::text[]) AS name
                   UNION ALL
                  SELECT inhrelid FROM unnest(%(tables)s::text[]) AS name JOIN pg_inherits ON inhparent = to_regclass(name))
   AND pg_get_userbyid(relowner) <> %(owner)s

-- entry_rights --
-- The rights to schema and database that these roles lack.
SELECT 'CREATE on schema ' || current_schema() || ' to ' || %(owner)s
 WHERE NOT has_schema_privilege(%(owner)s, current_schema(), 'CREATE')
 UNION ALL
SELECT 'USAGE on schema ' || current_schema() || ' to ' || role FROM unnest(%(roles)s::text[]) AS role
 WHERE NOT has_schema_privilege(role, current_schema(), 'USAGE')
 UNION ALL
SELECT 'CONNECT to ' || role FROM unnest(%(roles)s::text[]) AS role
 WHERE NOT has_database_privilege(role, current_database(), 'CONNECT')

-- act_as_owner --
-- To the end of the transaction, act as the role that owns the existing tables, where this user is a member of it: then
-- all members can change what is made now. A superuser does not switch.
SELECT set_config('role', owner.rolname, true)
  FROM pg_class there
  JOIN pg_roles owner ON owner.oid = there.relowner
 WHERE there.oid = to_regclass('processed_events')
   AND owner.rolname <> current_user
   AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
   AND pg_has_role(owner.oid, CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END)
   AND has_schema_privilege(owner.oid, current_schema(), 'CREATE')

-- bound_locks --
-- Sets the lock_timeout of the transaction's later statements, so that statements that queue behind their locks go on.
SELECT set_config('lock_timeout', %(timeout)s, true)

-- fix_search_path --
-- To the end of the transaction, set the search_path to the current schemas by name. Functions keep it, and for other
-- users who call them "$user" would be another schema. pg_temp is last, so that no temporary table hides one of ours.
SELECT set_config('search_path', string_agg(quote_ident(name), ', ' ORDER BY place) || ', pg_temp', true)
  FROM unnest(current_schemas(false)) WITH ORDINALITY AS searched (name, place)

-- lock_schema --
-- Locks to the end of the transaction, so that one transaction at a time creates tables.
SELECT pg_advisory_xact_lock(hashtextextended('brewctl schema', 0))

-- table_holders --
-- Transactions that hold a lock of these tables or of their partitions, the oldest first; with `snapshots` also those with
-- an old snapshot, which an index build waits for. A prepared one has a `gid` and no pid. The age is null where the user
-- may not see other users' sessions.
SELECT DISTINCT l.virtualtransaction AS transaction, l.pid, coalesce(a.application_name, '') AS name, p.gid,
       extract(epoch FROM statement_timestamp() - coalesce(p.prepared, a.xact_start))::float8 AS age_s
  FROM pg_locks l
  LEFT JOIN pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN pg_prepared_xacts p ON l.virtualtransaction = '-1/' || p.transaction::text
 WHERE l.granted
   AND l.pid IS DISTINCT FROM pg_backend_pid()
   AND (l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.relation = ANY (SELECT to_regclass(name)::oid FROM unnest(%(tables)s::text[]) AS name
                               UNION ALL
                              SELECT inhrelid FROM unnest(%(tables)s::text[]) AS name
                                JOIN pg_inherits ON inhparent = to_regclass(name))
        OR %(snapshots)s AND a.datname = current_database() AND a.backend_xmin IS NOT NULL)
 ORDER BY age_s DESC NULLS LAST

-- builders --
-- How many other sessions build or drop an index of a table, or vacuum it.
SELECT count(*)
  FROM pg_locks
 WHERE granted AND mode = 'ShareUpdateExclusiveLock' AND pid <> pg_backend_pid()
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND relation = to_regclass(%(table)s)::oid

-- partitions --
-- The names of a table's partitions, quoted for a statement.
SELECT part.inhrelid::regclass::text
  FROM pg_inherits part
 WHERE part.inhparent = to_regclass(%(table)s)
   AND (SELECT relkind FROM pg_class WHERE oid = part.inhparent) = 'p'
 ORDER BY part.inhrelid

-- make_partition --
-- Makes the partition for an id; null: for the next id of the outbox.
SELECT make_partition(%(table)s::text, %(id)s::bigint)

-- make_partition_ahead --
-- Makes the partition that follows the one of an outbox id, where it is missing. Does not wait for locks.
WITH briefly AS MATERIALIZED (
    SELECT set_config('lock_timeout', '1ms', true)
)
SELECT make_partition('outbox', p.upper)
  FROM briefly, partitions_of('outbox') p
 WHERE %(id)s::bigint >= coalesce(p.lower, %(id)s) AND %(id)s < p.upper

-- ids_without_partition --
SELECT asked.id
  FROM unnest(%(ids)s::bigint[]) AS asked (id)
 WHERE NOT EXISTS (SELECT FROM partitions_of('processed_events') p
                    WHERE asked.id >= coalesce(p.lower, asked.id) AND asked.id < p.upper)
 ORDER BY asked.id

-- statement_bound --
-- The session's statement_timeout, and whether its connection has set it: only then the session is not a pooler's, and
-- may change it.
SELECT setting || unit AS bound, source = 'client' AS own FROM pg_settings WHERE name = 'statement_timeout'

-- rebound_session --
-- Sets the session's statement_timeout, for statements that can't run in a transaction, such as CREATE INDEX CONCURRENTLY.
SELECT set_config('statement_timeout', %(timeout)s, false)

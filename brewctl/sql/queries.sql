-- File format: a line with the query's name between dashes, what it is for, the
-- statement. Parameters are named, %(limit)s; values never become SQL text.

-- bound_statements --
-- Ends each later statement of the transaction after `timeout`: nobody waits longer for it.
SELECT set_config('statement_timeout', %(timeout)s, true)

-- set_locally --
-- Settings of one transaction. Behind a pooler a commit may find what another's session left there.
SELECT set_config(name, value, true) FROM unnest(%(names)s::text[], %(values)s::text[]) AS setting (name, value)
 UNION ALL
SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'

-- session --
-- Which server process answers, and whether it was started with our settings.
SELECT pg_backend_pid(), coalesce(current_setting('brewctl.session', true) = 'on', false)

-- create_orders --
-- Orders and their events in one statement, so in one commit. Returns the ids that were written: not
-- those whose idempotency key is taken, by an earlier order or by another one of the statement. In the
-- order of their keys, so that two writers can't deadlock. A new aggregate's row is locked by its own
-- INSERT; a writer that adds an event to an existing one locks it first.
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
-- One more event of any aggregate, in the transaction that is open.
SELECT outbox_add(topic => %(topic)s::text, aggregate_id => %(aggregate_id)s::text, event_type => %(event_type)s::text,
                  payload => %(payload)b::bytea, tenant_id => %(tenant_id)s::text, trace_id => %(trace_id)s::text,
                  traceparent => %(traceparent)s::text, event_id => %(event_id)s::uuid,
                  content_type => %(content_type)s::text)

-- orders_by_ids_or_keys --
-- Of new orders, those that are there already: the order of the same id, which an earlier try wrote, else the one
-- that the tenant's key made. One look into each index a row, however large the table is.
-- What it finds is acknowledged. With synchronous replication it may be on this server alone: a commit that waits for
-- the standby and is cancelled, or is cut short by a restart, is there without it. So this writes something that does
-- nothing, and its own commit waits until the standby has that, and with it all that was written before.
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
-- The same for what was found to be there by other statements.
SELECT pg_logical_emit_message(true, 'brewctl', '') WHERE current_setting('synchronous_standby_names') <> ''

-- order_by_id --
SELECT id, customer_id, amount_cents, currency, status, created_at, cancelled_at
  FROM orders
 WHERE id = %(id)s
   AND (%(tenant_id)s::text IS NULL OR tenant_id = %(tenant_id)s)

-- lock_order --
-- Held to the end of the transaction: one changes an order at a time. With the time, by this server's clock, and an order
-- node of the version before that was there within the last minute: it would publish a cancel as an order.created.
SELECT id, tenant_id, status, clock_timestamp(),
       (SELECT min(node_id) FROM nodes
         WHERE role = 'order' AND publishes IS NULL AND stopped_at IS NULL
           AND seen_at > clock_timestamp() - interval '1 minute')
  FROM orders
 WHERE id = %(id)s
   AND (%(tenant_id)s::text IS NULL OR tenant_id = %(tenant_id)s)
   FOR NO KEY UPDATE OF orders

-- cancel_order --
-- The change and its event, of an order whose row is locked.
WITH cancelled AS (
    UPDATE orders SET status = %(status)s, cancelled_at = %(cancelled_at)s WHERE id = %(id)s RETURNING id
)
SELECT outbox_add(%(topic)s, 'order-' || id, %(event_type)s, %(payload)s, tenant_id => %(tenant_id)s,
                  trace_id => %(trace_id)s, traceparent => %(traceparent)s)
  FROM cancelled

-- fetch_unpublished --
-- Of the first `limit` ready rows with ids above `after` and up to `until`, those that this publisher may take, in the
-- order of their ids; of `bytes` in all, or just one. A row may be taken where the head of its aggregate, its oldest
-- unpublished row, is among these rows and no other publisher holds it, and no row in between is set aside or of a topic
-- that is left out. Who has locked the head has the run behind it: with any number of publishers no row can overtake one
-- of its aggregate. All parts read so many rows as `limit` says, however rows are spread over aggregates.
-- Rows beyond `bytes` are locked until the transaction ends, and not returned; `next_id` is the first of them. One row comes
-- back also where none may be taken, with the number of ready rows that were read (`read`) and the id up to which rows
-- were looked at (`last`). `now_ms` becomes the records' time: this server's clock, one for all publishers.
-- Plans must hold with any statistics, for a plan is kept while the table grows from nothing to millions. So a session
-- that runs this reads no table from one end to the other (`by_index` of its pool); an aggregate
-- is a range, and its order begins with its id: only the index by aggregate serves that. Heads are rows of a list of
-- ids, with a condition that no partial index knows: only the primary key serves that. And nothing is joined that could
-- become a loop over all pairs.
-- Of a table in partitions, heads are looked for only where they can be; not so what is behind them: bounds of ids would
-- make the primary key seem quick.
-- An aggregate's first event (`begins`) has none before it, so it is looked for in no partition. Heads are looked up in a
-- query of their own: below a scan of `outbox` each partition would have that query, with all partitions, for itself.
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
-- Whether there is a ready row with an id above `after` and up to `until`, whoever may take it, and the id up to which
-- rows were looked at: what fetch_unpublished says where it finds none. It locks nothing.
SELECT EXISTS (SELECT
                 FROM outbox o
                WHERE o.published_at IS NULL
                  AND o.failed_at IS NULL
                  AND o.id > %(after)s::bigint
                  AND o.id <= %(until)s::bigint),
       least(%(until)s::bigint, coalesce((SELECT max(id) FROM outbox), 0))

-- mark_published --
-- With the places that Kafka acknowledged. The ids are named twice: so they are looked up in one go, in order, not
-- one by one.
UPDATE outbox o
   SET published_at = clock_timestamp(), publisher_node = %(node)s,
       kafka_partition = place."partition", kafka_offset = place."offset"
  FROM unnest(%(ids)b::bigint[], %(partitions)b::integer[], %(offsets)b::bigint[]) AS place (id, "partition", "offset")
 WHERE o.id = place.id AND o.id = ANY(%(ids)b::bigint[])

-- set_aside --
-- A row that Kafka will never take: it leaves the queue, visible and with its reason.
UPDATE outbox
   SET failed_at = clock_timestamp(), failure = %(failure)s, attempts = attempts + 1
 WHERE id = %(id)s

-- take_lead --
-- Takes the lead of publishing, or renews it, unless another node has it. Says whether it is this node's now, and for how
-- many seconds it is another's. One that ends later than any node asks for was written by a clock that has been set back
-- since: it counts as over. Nothing is lost with it: its commit waits for no disk.
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
-- Unpublished rows, or just the ones set aside, oldest first; `head` is the aggregate's row that goes next.
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
-- Puts rows that were set aside back into the queue, all of them where `ids` is null. Attempts stay.
UPDATE outbox
   SET failed_at = NULL
 WHERE published_at IS NULL AND failed_at IS NOT NULL AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))
RETURNING id

-- missing_rows --
-- Of the next `limit` rows behind `after`, those that were published before `asked_at` and never come to a group any
-- more that takes their type and has not processed them: their place is not in the topic, or the group has passed it. `last` is the last
-- row looked at, null where there was none; it comes with each missing row, or alone.
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
-- Of these rows, those that these consumers have processed or parked.
SELECT consumer, outbox_id FROM processed_events WHERE consumer = ANY(%(groups)s) AND outbox_id = ANY(%(ids)s)
UNION ALL
SELECT consumer, outbox_id FROM parked_events WHERE consumer = ANY(%(groups)s) AND outbox_id = ANY(%(ids)s)

-- republish_rows --
-- Puts published rows back into the queue: publishers take them as they take new ones.
UPDATE outbox
   SET published_at = NULL, publisher_node = NULL, kafka_partition = NULL, kafka_offset = NULL,
       republished_at = clock_timestamp()
 WHERE id = ANY(%(ids)s) AND published_at IS NOT NULL
RETURNING id

-- now --
SELECT clock_timestamp()

-- inbox --
-- The front half of every consumer's statement: takes the events that this consumer has not seen, in id order so that
-- two takers can't deadlock. An event is its outbox id and its event id: the same outbox id with another event id is
-- another event. One of the two without an event id counts as the same. A repeat writes nothing to processed_events.
-- All repeats of the batch are one row of `redeliveries`, `repeated` (ids that came more than once within the batch)
-- among them; with synchronous replication that row also makes the commit wait until the standby has what they repeat.
-- Where all ids were taken they are not looked for. No outbox id is there twice. An effect
-- reads `fresh`, which has the columns that it names; all of it is committed together or not at all. The other names
-- have a prefix: a downstream's statement may have tables of any name. A row of `brew_reused` is locked, and looked at
-- as it is now, also where it was committed just before. `brew_waiting`: whether the consumer has parked events, and
-- their keys were not looked at; then nothing is taken.
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
-- The back half of a statement with an effect.
SELECT count(*), (SELECT there FROM brew_waiting) FROM fresh

-- taken_ids --
-- The back half for an effect of several statements; one row with a null where nothing is fresh.
SELECT there, outbox_id FROM brew_waiting LEFT JOIN fresh ON true

-- reserve --
-- Effect of inventory-service: a reservation, which a cancelled order releases. Merged by seq, so that a late repeat
-- changes nothing. A cancel is never an order's first event, whatever its producer says of its seq, or does not.
INSERT INTO inventory_reservations AS r (order_id, node_id, seq, released_at)
SELECT order_id, %(node)s, max(greatest(seq, CASE WHEN type = 'order.cancelled' THEN 2 ELSE 1 END)),
       CASE WHEN bool_or(type = 'order.cancelled') THEN clock_timestamp() END
  FROM fresh
 GROUP BY order_id
 ORDER BY order_id
ON CONFLICT (order_id) DO UPDATE SET seq = excluded.seq, released_at = excluded.released_at
 WHERE excluded.seq > r.seq

-- notify --
-- Effect of notification-service: a row for each order, of the last state that its customer was told of. Merged as
-- `reserve` merges. The webhook writes the same row (`_TOLD` in roles/webhook): a new column belongs in both.
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
-- Held to the end of the transaction: one at a time parks events of a key, redrives or drops them.
SELECT pg_advisory_xact_lock(hashtextextended(%(consumer)s || ' ' || key, 0))
  FROM (SELECT unnest(%(keys)s::text[]) AS key ORDER BY key) AS asked

-- park --
-- Passed over are events that have had their effect, and those that are parked. In the order in which they were read.
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
-- Effect of a downstream with lanes, behind `inbox`: fresh events wait for their handler, in the order of their records.
INSERT INTO waiting_events (consumer, key, seq, outbox_id, event_id, event_type, topic, "partition", "offset", written_ms,
                            value, headers)
SELECT %(consumer)s, key, seq, outbox_id, event_id, type, topic, "partition", "offset", written_ms, value, headers
  FROM fresh
 ORDER BY place

-- count_waiting --
-- How many events of a consumer wait, `most` at most, and for how many seconds the oldest has.
SELECT (SELECT count(*) FROM (SELECT FROM waiting_events WHERE consumer = %(consumer)s LIMIT %(most)s) AS first),
       (SELECT extract(epoch FROM clock_timestamp() - taken_at)::float8
          FROM waiting_events WHERE consumer = %(consumer)s ORDER BY consumer, id LIMIT 1)

-- any_waiting --
-- Whether events wait for lanes of a consumer.
SELECT EXISTS (SELECT FROM waiting_events WHERE consumer = %(consumer)s)

-- lease_waiting --
-- Leases the oldest rows of up to `limit` keys that are due, in the order of their ids. A key whose oldest row is leased,
-- or waits for its next try, has none; nor has one with a parked event, or those that this process has `in_hand`.
-- Of the consumer's oldest `look` rows alone: the oldest of a key among them is the oldest of the key. They are read
-- once, whatever the statistics say, and joined with nothing: a plan is kept while the table grows from nothing to
-- thousands. Of each key the oldest id comes with whether it is busy, as its last bit.
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
-- The same of rows that were put back: those that are due for the longest time first.
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
-- Returns those that are still this process's.
UPDATE waiting_events w
   SET lease_until = clock_timestamp() + make_interval(secs => %(lasts_s)s)
  FROM unnest(%(ids)s::bigint[], %(leases)s::uuid[]) AS held (id, lease)
 WHERE w.id = held.id AND w.lease = held.lease
RETURNING w.id

-- finish_waiting --
-- The end of a call that succeeded, where the lease is still its own; with what the handler wrote it is one commit.
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
-- The end of a call that is to be made again. With a `failure`, an empty one where nothing failed, the row is among those
-- that were put back: else, as the oldest, it would be leased before new ones for ever.
UPDATE waiting_events
   SET lease = NULL, lease_until = NULL, attempts = attempts + %(counted)s, failure = coalesce(%(failure)s, failure, ''),
       next_try_at = clock_timestamp() + make_interval(secs => %(pause_s)s)
 WHERE id = %(id)s AND lease = %(lease)s
RETURNING id

-- give_leases_back --
-- Of calls that a stop has cut off.
UPDATE waiting_events w
   SET lease = NULL, lease_until = NULL
  FROM unnest(%(ids)s::bigint[], %(leases)s::uuid[]) AS held (id, lease)
 WHERE w.id = held.id AND w.lease = held.lease

-- hold_waiting --
-- Whether the lease is still the call's own: held to the end of the transaction.
SELECT id FROM waiting_events WHERE id = %(id)s AND lease = %(lease)s FOR UPDATE

-- park_waiting --
-- Parks the event of `id`, and behind it all that wait of its key; where `id` is null they wait behind an event that was
-- parked before. They are processed no more: a redrive is to have their effects. A dedup row that knew an earlier event
-- of the same outbox id knows that one again.
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
-- Keys with a parked event of which some wait all the same: they were taken as it was being parked.
SELECT DISTINCT k.key
  FROM parked_events k
 WHERE k.consumer = %(consumer)s AND k.outcome IS NULL
   AND EXISTS (SELECT FROM waiting_events w WHERE w.consumer = k.consumer AND w.key = k.key)
   AND NOT EXISTS (SELECT FROM waiting_events w
                    WHERE w.consumer = k.consumer AND w.key = k.key AND w.lease_until >= clock_timestamp())
 LIMIT %(limit)s

-- try_lock_key --
-- As lock_keys, without a wait: a redrive may have it for long.
SELECT pg_try_advisory_xact_lock(hashtextextended(%(consumer)s || ' ' || %(key)s, 0))

-- parked_events --
-- Of these consumers, oldest first; `ids` null: all. `open`: those without an outcome alone.
SELECT id, consumer AS group, key, seq, outbox_id, event_id::text, event_type, topic, "partition", "offset", written_ms,
       value, headers, reason, attempts, parked_at, coalesce(outcome, '') AS outcome
  FROM parked_events
 WHERE consumer = ANY(%(consumers)s)
   AND (outcome IS NULL OR NOT %(open)s)
   AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))
   AND (%(key)s::text IS NULL OR key = %(key)s)
 ORDER BY id

-- count_as_processed --
-- Parked events that are given up.
INSERT INTO processed_events (consumer, outbox_id, event_id)
SELECT consumer, outbox_id, event_id FROM parked_events WHERE id = ANY(%(ids)s) AND outcome IS NULL
ON CONFLICT DO NOTHING

-- settle_parked --
-- At the beginning of the transaction, so before the effects of a redrive.
UPDATE parked_events
   SET outcome = %(outcome)s, settled_at = now()
 WHERE id = ANY(%(ids)s) AND outcome IS NULL

-- settled_letters --
-- How these dead letters were settled; no row for an open one.
SELECT s."partition", s."offset", s.outcome, s.new_partition, s.new_offset
  FROM unnest(%(partitions)s::integer[], %(offsets)s::bigint[], %(written)s::timestamptz[])
       AS letter ("partition", "offset", written_at)
  JOIN dead_letters_settled s USING ("partition", "offset", written_at)
 WHERE s.topic = %(topic)s

-- lock_settlements --
-- Held to the end of the transaction: one settles dead letters of a topic at a time.
SELECT pg_advisory_xact_lock(hashtextextended(%(topic)s, 0))

-- now_ms --
-- This server's clock: one for all who send records.
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint

-- settle_letters --
INSERT INTO dead_letters_settled (topic, "partition", "offset", written_at, outcome, new_partition, new_offset)
SELECT %(topic)s, l.p, l.o, l.written_at, %(outcome)s, l.new_p, l.new_o
  FROM unnest(%(partitions)s::integer[], %(offsets)s::bigint[], %(written)s::timestamptz[],
              %(new_partitions)s::integer[], %(new_offsets)s::bigint[]) AS l (p, o, written_at, new_p, new_o)

-- forget_replicas --
-- Those that nobody has seen for a day, such as those that were named by their pid.
DELETE FROM nodes
 USING set_config('synchronous_commit', 'off', true)
 WHERE seen_at < clock_timestamp() - interval '1 day'

-- forget_redeliveries --
-- Redeliveries older than a week.
DELETE FROM redeliveries
 USING set_config('synchronous_commit', 'off', true)
 WHERE came_at < clock_timestamp() - interval '7 days'

-- keep_presence --
-- A row that a crash of PostgreSQL forgets is written again, so this commit does not wait for the disk. The setting
-- ends with the transaction: behind a pooler the next one of the session may be an order's. A row that this replica
-- wrote before and that is another process's now is fought over: `rival` says by which.
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
-- Replicas, and for how many seconds nobody has heard of each.
SELECT node_id AS name, role, host, pid, address, processed, effects, skipped, dead, trouble,
       coalesce(publishes, role IN ('order', 'publisher')) AS publishes,
       stopped_at IS NOT NULL AS stopped,
       extract(epoch FROM clock_timestamp() - seen_at)::float8 AS silent_s,
       extract(epoch FROM started_at)::float8 AS started_s
  FROM nodes
 ORDER BY role = 'order' DESC, role, node_id

-- orders_between --
-- The newest orders of a range of ids, which is what a prefix stands for.
SELECT id FROM orders WHERE id BETWEEN %(first)s AND %(last)s ORDER BY id DESC LIMIT %(limit)s

-- traced_order --
-- When it was committed is known only where PostgreSQL keeps that, for as long, and until the row is changed. The
-- watermark of an order that is old enough for it: its outbox rows may have been dropped.
SELECT id, tenant_id, customer_id, amount_cents, currency, status, created_at,
       CASE WHEN status = 'ORDER_STATUS_NEW' AND current_setting('track_commit_timestamp')::boolean THEN pg_xact_commit_timestamp(xmin) END
           AS committed_at,
       coalesce((SELECT dropped_below FROM retention WHERE dropped_until >= orders.created_at), 0) AS dropped_below
  FROM orders
 WHERE id = %(id)s

-- traced_events --
-- Rows of an aggregate in two halves: each has an index of its own.
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
-- Events that a group has taken and not handled yet.
SELECT consumer AS group, outbox_id, taken_at, attempts, coalesce(failure, '') AS failure,
       CASE WHEN lease_until >= clock_timestamp() THEN node_id ELSE '' END AS node
  FROM waiting_events
 WHERE consumer = ANY(%(groups)s) AND outbox_id = ANY(%(ids)s)
 ORDER BY id

-- traced_dedup --
-- What waits for a lane is left out. How often an event came again is in `redeliveries`; an older version counted it in the dedup row.
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
-- The four counters of the story, and what was set aside or parked, in one snapshot.
SELECT (SELECT count(*) FROM orders) AS orders,
       (SELECT count(*) FROM outbox WHERE published_at IS NULL) AS outbox_unpublished,
       (SELECT count(*) FROM inventory_reservations) AS reservations,
       (SELECT count(*) FROM notifications_log) AS notifications,
       (SELECT count(*) FROM outbox WHERE published_at IS NULL AND failed_at IS NOT NULL) AS outbox_failed,
       (SELECT count(*) FROM parked_events WHERE outcome IS NULL) AS parked

-- flow --
-- The orders and the events that wait, were set aside or are parked, beside which the effects of any downstreams are
-- counted.
SELECT (SELECT count(*) FROM orders) AS orders,
       (SELECT count(*) FROM outbox WHERE published_at IS NULL) AS outbox_unpublished,
       (SELECT count(*) FROM outbox WHERE published_at IS NULL AND failed_at IS NOT NULL) AS outbox_failed,
       (SELECT count(*) FROM parked_events WHERE outcome IS NULL) AS parked

-- count_parked --
-- Events of these consumers that wait to be redriven.
SELECT count(*) FROM parked_events WHERE outcome IS NULL AND consumer = ANY(%(groups)s)

-- count_parked_of_others --
-- Events of all other consumers that wait to be redriven.
SELECT count(*) FROM parked_events WHERE outcome IS NULL AND consumer <> ALL(%(groups)s)

-- pulse --
-- What is cheap to know of an outbox of any size: at most `most` unpublished rows are counted; then the age of the
-- oldest that is ready.
SELECT waiting.rows, waiting.set_aside,
       (SELECT extract(epoch FROM clock_timestamp() - created_at)::float8
          FROM outbox WHERE published_at IS NULL AND failed_at IS NULL ORDER BY id LIMIT 1) AS oldest_s
  FROM (SELECT count(*) AS rows, count(failed_at) AS set_aside
          FROM (SELECT failed_at FROM outbox WHERE published_at IS NULL LIMIT %(most)s) AS unpublished) AS waiting

-- inserted --
-- The files of some tables, which a TRUNCATE changes, and how many rows were ever inserted into each, in their order; of
-- a table with partitions those of all of them.
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
-- Orders whose story has not been told exactly once, at most `limit` of them. The effects come as arrays, for they may be
-- in other databases: the orders that have one, and whether it shows their cancel. Of orders up to the time of the
-- watermark events may have been dropped.
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
-- Of these ids, the ones that are not in the orders table: acknowledged, then lost.
SELECT id FROM unnest(%(ids)s::uuid[]) AS id EXCEPT SELECT id FROM orders

-- contradicted_calls --
-- Of the orders that clients were told of, those that are not there, or are another one by their key.
SELECT call.id
  FROM unnest(%(keys)s::text[], %(ids)s::uuid[]) AS call (key, id)
  LEFT JOIN orders o ON o.tenant_id = %(tenant_id)s AND o.idempotency_key = call.key
 WHERE o.id IS DISTINCT FROM call.id

-- orders_of_keys --
-- The orders that these keys made.
SELECT idempotency_key, id::text FROM orders WHERE tenant_id = %(tenant_id)s AND idempotency_key = ANY(%(keys)s)

-- cancelled_orders --
-- Of these orders, those that are cancelled.
SELECT id::text FROM orders
 WHERE id = ANY(%(ids)s::uuid[]) AND status = 'ORDER_STATUS_CANCELLED' AND cancelled_at IS NOT NULL

-- wrongly_parked --
-- Events that wait parked, and those that were parked though no event of their key was refused for this cause.
SELECT k.consumer, k.outbox_id, k.outcome IS NULL AS still, k.reason
  FROM parked_events k
 WHERE k.outcome IS NULL
    OR NOT EXISTS (SELECT FROM parked_events c
                    WHERE c.consumer = k.consumer AND c.key = k.key AND strpos(c.reason, %(cause)s) > 0)
 ORDER BY k.id
 LIMIT %(limit)s

-- slowest_order --
-- Seconds from the acceptance of an order to the last of its effects in these groups, at most. What groups have processed
-- in databases of their own comes as arrays.
SELECT extract(epoch FROM max(p.processed_at - o.created_at))::float8
  FROM orders o
  JOIN outbox e ON e.aggregate_id = 'order-' || o.id AND coalesce(e.event_type, 'order.created') = 'order.created'
  JOIN (SELECT outbox_id, processed_at FROM processed_events WHERE consumer = ANY(%(groups)s)
         UNION ALL
        SELECT * FROM unnest(%(ids)s::bigint[], %(times)s::timestamptz[])) AS p ON p.outbox_id = e.id

-- processed_times --
-- What these consumers have processed, and when.
SELECT outbox_id, processed_at FROM processed_events WHERE consumer = ANY(%(groups)s)

-- downstream_name --
-- The MODULE:NAME that a consumer's name was registered for.
SELECT name FROM downstreams WHERE consumer = %(consumer)s

-- register_downstream --
INSERT INTO downstreams AS d (consumer, name) VALUES (%(consumer)s, %(name)s)
ON CONFLICT (consumer) DO UPDATE SET name = excluded.name, registered_at = clock_timestamp()
 WHERE d.name <> excluded.name

-- note_lanes --
-- Whether the nodes of a consumer have lanes: what the one that starts has. One of the story's own may have no row yet.
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
-- Whether this user may read which migrations there are. A database of before has no such table.
SELECT coalesce(has_column_privilege(to_regclass('schema_version'), 'number', 'SELECT'), false)

-- versions --
SELECT number FROM schema_version

-- write_version --
INSERT INTO schema_version (number, name, program) VALUES (%(number)s, %(name)s, %(program)s)
ON CONFLICT (number) DO NOTHING

-- begin_migrating --
-- Whether this session may migrate now: one at a time. It does not wait in the server: a statement that waits keeps its
-- snapshot, and an index that the other one builds would wait for that.
SELECT pg_try_advisory_lock(hashtextextended('brewctl migrations', 0))

-- end_migrating --
SELECT pg_advisory_unlock(hashtextextended('brewctl migrations', 0))

-- migrating --
-- The other session that migrates this database, if one does.
SELECT l.pid, coalesce(a.application_name, '')
  FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.classid::bigint << 32 | l.objid::bigint = hashtextextended('brewctl migrations', 0)

-- schema_state --
-- The parts of the schema that are not there as the migrations want them, by their places in the list: missing, or
-- `invalid`: an index whose build was cut off, or goes on. Looks into the catalog alone, and locks no table.
-- A key is a unique index over exactly these columns, whatever its name; 'leftover' is an index to be dropped; the
-- `columns` of a function are its body, without comments, its white space single blanks; '': any.
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
-- Of these rights, those that the user of this session has not, by their places in the list. A right to a table is one to
-- each of its columns. Looks into the catalog alone.
SELECT asked.place
  FROM unnest(%(tables)s::text[], %(columns)s::text[], %(rights)s::text[])
       WITH ORDINALITY AS asked ("table", "column", "right", place)
 WHERE NOT CASE WHEN asked."column" = '' THEN has_table_privilege(to_regclass(asked."table"), asked."right")
                ELSE has_column_privilege(to_regclass(asked."table"), asked."column", asked."right") END
 ORDER BY asked.place

-- held_rights --
-- What the user of this session may do with a table, or with a column of it.
SELECT "right"
  FROM unnest(%(rights)s::text[]) WITH ORDINALITY AS asked ("right", place)
 WHERE has_any_column_privilege(to_regclass(%(table)s), "right")
 UNION ALL
SELECT 'DELETE' WHERE has_table_privilege(to_regclass(%(table)s), 'DELETE')

-- owned_by_others --
-- How many of these tables, and of their partitions, are another role's.
SELECT count(*)
  FROM pg_class
 WHERE oid = ANY (SELECT to_regclass(name)::oid FROM unnest(%(tables)s::text[]) AS name
                   UNION ALL
                  SELECT inhrelid FROM unnest(%(tables)s::text[]) AS name JOIN pg_inherits ON inhparent = to_regclass(name))
   AND pg_get_userbyid(relowner) <> %(owner)s

-- entry_rights --
-- What these roles need beside rights to tables, and have not.
SELECT 'CREATE on schema ' || current_schema() || ' to ' || %(owner)s
 WHERE NOT has_schema_privilege(%(owner)s, current_schema(), 'CREATE')
 UNION ALL
SELECT 'USAGE on schema ' || current_schema() || ' to ' || role FROM unnest(%(roles)s::text[]) AS role
 WHERE NOT has_schema_privilege(role, current_schema(), 'USAGE')
 UNION ALL
SELECT 'CONNECT to ' || role FROM unnest(%(roles)s::text[]) AS role
 WHERE NOT has_database_privilege(role, current_database(), 'CONNECT')

-- act_as_owner --
-- To the end of the transaction, as whoever owns the tables that are there, where this user is one of the role's members:
-- what is made now is then all members' to change. A superuser stays what it is.
SELECT set_config('role', owner.rolname, true)
  FROM pg_class there
  JOIN pg_roles owner ON owner.oid = there.relowner
 WHERE there.oid = to_regclass('processed_events')
   AND owner.rolname <> current_user
   AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
   AND pg_has_role(owner.oid, CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END)
   AND has_schema_privilege(owner.oid, current_schema(), 'CREATE')

-- bound_locks --
-- Ends each later wait of the transaction for a lock after `timeout`: those who wait behind it go on.
SELECT set_config('lock_timeout', %(timeout)s, true)

-- fix_search_path --
-- To the end of the transaction: the schemas that are searched, by their names. A function keeps them, and is called by
-- other users, to whom "$user" is another schema. Temporary tables last: none is taken for one of ours.
SELECT set_config('search_path', string_agg(quote_ident(name), ', ' ORDER BY place) || ', pg_temp', true)
  FROM unnest(current_schemas(false)) WITH ORDINALITY AS searched (name, place)

-- lock_schema --
-- Held to the end of the transaction: one creates tables at a time.
SELECT pg_advisory_xact_lock(hashtextextended('brewctl schema', 0))

-- table_holders --
-- Transactions that hold a lock of these tables or of a partition, and with `snapshots` those as well that may still read what an
-- index's build waits for; the oldest first. A prepared one has no pid, and `gid` names it. The age is null where
-- the user may not look at other users' sessions.
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
-- Others that build or drop an index of a table, or vacuum it: one of them at a time.
SELECT count(*)
  FROM pg_locks
 WHERE granted AND mode = 'ShareUpdateExclusiveLock' AND pid <> pg_backend_pid()
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND relation = to_regclass(%(table)s)::oid

-- partitions --
-- The partitions of a table, as they are named in a statement.
SELECT part.inhrelid::regclass::text
  FROM pg_inherits part
 WHERE part.inhparent = to_regclass(%(table)s)
   AND (SELECT relkind FROM pg_class WHERE oid = part.inhparent) = 'p'
 ORDER BY part.inhrelid

-- make_partition --
-- The one that an id is in; of the outbox, null is the id that comes next.
SELECT make_partition(%(table)s::text, %(id)s::bigint)

-- make_partition_ahead --
-- Makes the partition behind the one that an id of the outbox is in, where there is none. Waits for no lock of another.
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
-- What ends this session's statements, and whether its connection asked for it: then the session is no pooler's, and
-- may change it.
SELECT setting || unit AS bound, source = 'client' AS own FROM pg_settings WHERE name = 'statement_timeout'

-- rebound_session --
-- For what runs in no transaction: CREATE INDEX CONCURRENTLY.
SELECT set_config('statement_timeout', %(timeout)s, false)

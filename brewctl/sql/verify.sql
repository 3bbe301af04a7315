-- The queries of `brewctl verify`, in the format of queries.sql. It copies what it needs into temporary tables, in one
-- REPEATABLE READ transaction that writes nothing else; the checks read these copies.
-- The query of a check returns the first `shown` offenders: how many there are in all, and a line of text for each.

-- bounds --
-- Sets longer timeouts, in milliseconds, because whole tables are read. `local`: only for this transaction.
SELECT set_config('statement_timeout', %(statement_ms)s, %(local)s),
       set_config('idle_in_transaction_session_timeout', %(idle_ms)s, %(local)s)

-- create_event --
-- Outbox rows. `order_id`: the order, for the story's own event types. `aggregate`: a fingerprint of the aggregate's id.
-- `ours`: for the story's topic. `blocked`: behind a row of its aggregate that is set aside.
CREATE TEMP TABLE event (
    outbox_id bigint NOT NULL, type text NOT NULL, aggregate bigint NOT NULL, seq bigint, order_id uuid, ours boolean NOT NULL, published boolean NOT NULL,
    set_aside boolean NOT NULL, blocked boolean NOT NULL, republished boolean NOT NULL, created_at timestamptz NOT NULL, age_s float8 NOT NULL)

-- create_placed --
-- Orders.
CREATE TEMP TABLE placed (order_id uuid NOT NULL, created_at timestamptz NOT NULL, status text NOT NULL, cancelled_at timestamptz)

-- create_gone --
-- What retention has dropped: rows with ids below the watermark, of orders up to the time `until`; `created` of them were
-- order.created.
CREATE TEMP TABLE gone (watermark bigint NOT NULL, until timestamptz, created bigint NOT NULL)

-- create_taker --
-- The event types that each downstream takes.
CREATE TEMP TABLE taker (consumer text NOT NULL, type text NOT NULL)

-- create_effect --
-- The effects that the downstreams' `done` queries return. `status`: the order's status that the effect shows, if any.
CREATE TEMP TABLE effect (consumer text NOT NULL, order_id uuid NOT NULL, status text)

-- create_processed --
-- Dedup rows, also of ids that are not in the outbox. Where the outbox has used an id again, the dedup row of the event
-- that had it before is left out. `waits`: the event waits for a lane, so its effect is still to come.
CREATE TEMP TABLE processed (consumer text NOT NULL, outbox_id bigint NOT NULL, processed_at timestamptz NOT NULL, waits boolean NOT NULL)

-- create_parked --
-- Events that are or were parked. `settled_at`: the time until which their keys were held up, null where they still are.
-- `name`: the event's name in commands.
CREATE TEMP TABLE parked (
    name text NOT NULL, consumer text NOT NULL, outbox_id bigint NOT NULL, aggregate bigint NOT NULL, outcome text,
    parked_at timestamptz NOT NULL, settled_at timestamptz, reason text NOT NULL)

-- create_elsewhere_processed --
-- Dedup rows of downstreams with a database of their own, copied from there.
CREATE TEMP TABLE elsewhere_processed (
    consumer text NOT NULL, outbox_id bigint NOT NULL, event_id uuid, earlier_ids uuid[], processed_at timestamptz NOT NULL,
    waits boolean NOT NULL)

-- create_elsewhere_parked --
-- Parked events of downstreams with a database of their own, copied from there.
CREATE TEMP TABLE elsewhere_parked (
    name text NOT NULL, consumer text NOT NULL, outbox_id bigint NOT NULL, event_id uuid, key text NOT NULL, outcome text,
    parked_at timestamptz NOT NULL, settled_at timestamptz, reason text NOT NULL)

-- create_ledger --
-- Effects, one row for each time that one happened; empty where there is no table `ledger`.
CREATE TEMP TABLE ledger (consumer text NOT NULL, outbox_id bigint NOT NULL)

-- create_edge --
-- For each partition the first offset that is there, and the offset of the next record.
CREATE TEMP TABLE edge ("partition" integer NOT NULL, first bigint NOT NULL, next bigint NOT NULL)

-- create_position --
-- Committed offsets of the groups.
CREATE TEMP TABLE position (consumer text NOT NULL, "partition" integer NOT NULL, next bigint NOT NULL)

-- create_seen --
-- Records of the topic; those without an outbox id are unreadable, or of another producer's outbox.
-- Key, frame (key and headers), value and node are fingerprints; `hash` is the number that chooses a key's partition.
CREATE TEMP TABLE seen (
    "partition" integer NOT NULL, "offset" bigint NOT NULL, written_ms bigint NOT NULL, outbox_id bigint, type text,
    unreadable boolean NOT NULL, key bigint NOT NULL, hash bigint, frame bigint NOT NULL, value bigint NOT NULL,
    node bigint NOT NULL)

-- create_letter --
-- Dead letters, with the place of the original record, and its order and outbox id where they are known. `value` is null
-- where the letter was written without the value.
CREATE TEMP TABLE letter (
    "partition" integer NOT NULL, "offset" bigint NOT NULL, written_ms bigint NOT NULL, consumer text NOT NULL,
    source_partition bigint NOT NULL, source_offset bigint NOT NULL, order_id uuid, outbox_id bigint,
    frame bigint NOT NULL, value bigint, outcome text NOT NULL DEFAULT 'open', new_partition integer, new_offset bigint)

-- create_gap --
-- Orders without an effect, and why. `lost`: the effect will not come by itself; else it has been in flight for `age_s`
-- seconds.
CREATE TEMP TABLE gap (
    consumer text NOT NULL, order_id uuid NOT NULL, created_at timestamptz NOT NULL, lost boolean NOT NULL,
    published boolean NOT NULL, age_s float8 NOT NULL, reason text NOT NULL)

-- fill_event --
INSERT INTO event
SELECT x.id, coalesce(x.event_type, 'order.created'), hashtextextended(x.aggregate_id, 0), x.aggregate_seq, o.id, x.topic = %(topic)s, x.published_at IS NOT NULL, x.published_at IS NULL AND x.failed_at IS NOT NULL,
       CASE WHEN x.published_at IS NULL AND x.failed_at IS NULL
            THEN EXISTS (SELECT FROM outbox p
                          WHERE p.aggregate_id = x.aggregate_id AND p.published_at IS NULL
                            AND p.failed_at IS NOT NULL AND p.id < x.id)
            ELSE false END,
       x.republished_at IS NOT NULL, x.created_at, extract(epoch FROM now() - x.created_at)
  FROM outbox x
  LEFT JOIN orders o ON x.aggregate_id = 'order-' || o.id
                    AND coalesce(x.event_type, 'order.created') IN ('order.created', 'order.cancelled')

-- fill_placed --
INSERT INTO placed SELECT id, created_at, status, cancelled_at FROM orders

-- fill_gone --
INSERT INTO gone SELECT coalesce(max(dropped_below), 0), max(dropped_until), coalesce(sum(dropped_created), 0) FROM retention

-- fill_taker --
INSERT INTO taker SELECT * FROM unnest(%(takers)s::text[], %(types)s::text[])

-- fill_processed --
INSERT INTO processed
SELECT p.consumer, p.outbox_id, p.processed_at, p.waits
  FROM (SELECT consumer, outbox_id, event_id, earlier_ids, processed_at,
               (consumer, outbox_id) IN (SELECT consumer, outbox_id FROM waiting_events) AS waits
          FROM processed_events
         WHERE consumer = ANY(%(here)s)
         UNION ALL
        SELECT consumer, outbox_id, event_id, earlier_ids, processed_at, waits
          FROM elsewhere_processed) p
  LEFT JOIN outbox x ON x.id = p.outbox_id
 WHERE (x.event_id IS NULL OR p.event_id IS NULL OR x.event_id = p.event_id OR x.event_id = ANY(p.earlier_ids))

-- fill_parked --
INSERT INTO parked
SELECT k.name, k.consumer, k.outbox_id, hashtextextended(k.key, 0), k.outcome, k.parked_at, k.settled_at, k.reason
  FROM (SELECT 'p' || id AS name, consumer, outbox_id, event_id, key, outcome, parked_at, settled_at, reason
          FROM parked_events
         WHERE consumer = ANY(%(here)s)
         UNION ALL
        SELECT name, consumer, outbox_id, event_id, key, outcome, parked_at, settled_at, reason
          FROM elsewhere_parked) k
  LEFT JOIN outbox x ON x.id = k.outbox_id
 WHERE (x.event_id IS NULL OR k.event_id IS NULL OR x.event_id = k.event_id)

-- has_ledger --
SELECT to_regclass('effect_ledger') IS NOT NULL AS there

-- fill_ledger --
INSERT INTO ledger SELECT consumer, outbox_id FROM effect_ledger WHERE consumer = ANY(%(here)s)

-- fill_edge --
INSERT INTO edge SELECT * FROM unnest(%(partitions)s::int[], %(firsts)s::bigint[], %(nexts)s::bigint[])

-- fill_position --
INSERT INTO position SELECT %(consumer)s, * FROM unnest(%(partitions)s::int[], %(nexts)s::bigint[])

-- copy_seen --
COPY seen FROM STDIN

-- elsewhere_processed --
-- Runs in a downstream's own database, for the table of this name.
COPY (SELECT consumer, outbox_id, event_id, earlier_ids, processed_at,
             (consumer, outbox_id) IN (SELECT consumer, outbox_id FROM waiting_events)
        FROM processed_events WHERE consumer = ANY(%(groups)s))
  TO STDOUT (FORMAT BINARY)

-- elsewhere_parked --
-- Runs in a downstream's own database, for the table of this name. `name` is written as in parking.py.
COPY (SELECT 'p' || id || '@' || consumer, consumer, outbox_id, event_id, key, outcome, parked_at, settled_at, reason
        FROM parked_events WHERE consumer = ANY(%(groups)s))
  TO STDOUT (FORMAT BINARY)

-- elsewhere_ledger --
-- Runs in a downstream's own database, for the table `ledger`.
COPY (SELECT consumer, outbox_id FROM effect_ledger WHERE consumer = ANY(%(groups)s)) TO STDOUT (FORMAT BINARY)

-- copy_ledger --
COPY ledger FROM STDIN (FORMAT BINARY)

-- copy_elsewhere_processed --
COPY elsewhere_processed FROM STDIN (FORMAT BINARY)

-- copy_elsewhere_parked --
COPY elsewhere_parked FROM STDIN (FORMAT BINARY)

-- copy_effect --
COPY effect FROM STDIN (FORMAT BINARY)

-- copy_letter --
COPY letter ("partition", "offset", written_ms, consumer, source_partition, source_offset, order_id, outbox_id,
             frame, value)
FROM STDIN

-- settle_letters --
-- `written_at` tells a letter from one at the same offset of an earlier topic with this name.
UPDATE letter l
   SET outcome = s.outcome, new_partition = s.new_partition, new_offset = s.new_offset
  FROM dead_letters_settled s
 WHERE s.topic = %(dead_letter_topic)s AND s."partition" = l."partition" AND s."offset" = l."offset"
   AND round(extract(epoch FROM s.written_at) * 1000) = l.written_ms

-- analyze --
-- Autovacuum does not analyze temporary tables.
ANALYZE event, placed, taker, effect, processed, parked, ledger, seen, letter

-- outbox_rows --
SELECT id, aggregate_id, topic, payload, publisher_node, kafka_partition, kafka_offset, event_type, event_id::text,
       aggregate_seq, tenant_id, trace_id, traceparent, content_type
  FROM outbox
 WHERE id = ANY(%(ids)s)

-- orders --
-- Orders, to compare with their events; times in microseconds since the epoch. A cancelled order was a new one before.
SELECT id::text AS order_id, tenant_id, customer_id, amount_cents, currency,
       CASE status WHEN 'ORDER_STATUS_CANCELLED' THEN 'ORDER_STATUS_NEW' ELSE status END AS first_status,
       (extract(epoch FROM created_at) * 1000000)::bigint AS created_at,
       (extract(epoch FROM cancelled_at) * 1000000)::bigint AS cancelled_at
  FROM orders
 WHERE id = ANY(%(ids)s::uuid[])

-- count_outbox --
SELECT (SELECT count(*) FROM placed) AS orders,
       (SELECT count(*) FROM ledger) AS ledger,
       count(*) AS outbox_rows,
       count(*) FILTER (WHERE NOT ours) AS other_topics,
       count(*) FILTER (WHERE published) AS published,
       count(*) FILTER (WHERE ours AND published) AS published_here,
       count(*) FILTER (WHERE set_aside) AS set_aside,
       count(*) FILTER (WHERE republished) AS republished,
       count(*) FILTER (WHERE type IN ('order.created', 'order.cancelled')) AS order_events,
       count(seq) AS numbered,
       (SELECT watermark FROM gone) AS watermark,
       (SELECT to_char(until AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') FROM gone) AS dropped_until
  FROM event

-- count_records --
SELECT count(*) AS records,
       count(DISTINCT outbox_id) AS events,
       count(outbox_id) - count(DISTINCT outbox_id) AS repeats,
       count(*) FILTER (WHERE NOT unreadable AND type NOT IN ('order.created', 'order.cancelled')) AS other_types,
       count(*) FILTER (WHERE unreadable) AS unreadable,
       (SELECT coalesce(sum(first), 0)::bigint FROM edge) AS removed
  FROM seen

-- count_repeats --
-- Repeated records of events, by the reason, which follows from comparing a record with the copy before it.
SELECT count(*) FILTER (WHERE redriven) AS repeats_redriven,
       count(*) FILTER (WHERE NOT redriven AND node = before) AS repeats_same_node,
       count(*) FILTER (WHERE NOT redriven AND node <> before) AS repeats_other_node
  FROM (SELECT node, lag(node) OVER (PARTITION BY outbox_id ORDER BY written_ms, "partition", "offset") AS before,
               EXISTS (SELECT FROM letter l WHERE l.new_partition = s."partition" AND l.new_offset = s."offset")
                   AS redriven
          FROM seen s
         WHERE outbox_id IS NOT NULL) AS copy
 WHERE before IS NOT NULL

-- count_letters --
SELECT consumer, outcome, count(*) FROM letter GROUP BY consumer, outcome ORDER BY consumer, outcome

-- count_repeated_letters --
-- Letters that were written twice, because of a crash between a letter's acknowledgement and the commit of the offset.
SELECT count(*) - count(DISTINCT (consumer, source_partition, source_offset)) AS dead_letters_repeated FROM letter

-- count_removed_events --
-- Events that are published, processed and no longer in the topic: they were there.
SELECT count(*) AS removed_events
  FROM event e
 WHERE ours AND published
   AND NOT EXISTS (SELECT FROM seen s WHERE s.outbox_id = e.outbox_id)
   AND EXISTS (SELECT FROM edge WHERE first > 0)
   AND EXISTS (SELECT FROM processed p WHERE p.consumer = ANY(%(groups)s) AND p.outbox_id = e.outbox_id)

-- count_parked --
SELECT count(*) AS parked FROM parked WHERE outcome IS NULL

-- overtaken --
-- Events that had their effect while an earlier one of their key was parked.
SELECT bad.total, 'outbox ' || bad.outbox_id || ' had its effect while outbox ' || bad.before || ' of its key was parked'
  FROM (SELECT p.outbox_id, k.outbox_id AS before, count(*) OVER () AS total
          FROM parked k
          JOIN event e ON e.aggregate = k.aggregate AND e.outbox_id > k.outbox_id
          JOIN processed p ON p.consumer = k.consumer AND p.outbox_id = e.outbox_id
         WHERE k.consumer = %(consumer)s
           AND NOT p.waits
           AND p.processed_at > k.parked_at AND (k.settled_at IS NULL OR p.processed_at < k.settled_at)
           AND NOT EXISTS (SELECT FROM parked other
                            WHERE other.consumer = k.consumer AND other.outbox_id = p.outbox_id
                              AND other.outcome = 'dropped')
         ORDER BY p.outbox_id
         LIMIT %(shown)s) AS bad
 ORDER BY bad.outbox_id

-- count_group --
SELECT (SELECT count(*) FROM effect WHERE consumer = %(consumer)s) AS effects,
       (SELECT count(*) FROM processed WHERE consumer = %(consumer)s) AS processed,
       (SELECT count(*) FROM seen s JOIN position p USING ("partition")
         WHERE p.consumer = %(consumer)s AND s."offset" < p.next) AS behind

-- fill_gap --
-- Orders whose order.created has not had its effect.
-- Besides the age, a dedup row, or a committed offset that has passed the record, shows that an effect will not come by
-- itself: dedup rows are older than the snapshot, and committed offsets are older than both. Orders whose event was
-- dropped are left out: the group has processed it, or need not have it.
INSERT INTO gap
WITH bare AS (
    SELECT * FROM placed o
     WHERE NOT EXISTS (SELECT FROM effect f WHERE f.consumer = %(consumer)s AND f.order_id = o.order_id)
       AND NOT (coalesce(o.created_at <= (SELECT until FROM gone), false)
                AND NOT EXISTS (SELECT FROM event e WHERE e.order_id = o.order_id AND e.type = 'order.created'))
), first_event AS (
    SELECT DISTINCT ON (e.order_id) e.* FROM event e JOIN bare USING (order_id)
     WHERE e.type = 'order.created' ORDER BY e.order_id, e.outbox_id
), arrival AS (
    SELECT outbox_id, bool_or(passed) AS passed, (array_agg(place ORDER BY passed DESC, written_ms))[1] AS place
      FROM (SELECT s.outbox_id, s.written_ms, s."partition" || '@' || s."offset" AS place,
                   s."offset" < coalesce(g.next, 0) AS passed
              FROM seen s
              JOIN first_event USING (outbox_id)
              LEFT JOIN position g ON g.consumer = %(consumer)s AND g."partition" = s."partition") AS copy
     GROUP BY outbox_id
), dead AS (
    SELECT DISTINCT ON (order_id) order_id, outcome, "partition", "offset"
      FROM letter
     WHERE consumer = %(consumer)s AND order_id IS NOT NULL
     ORDER BY order_id, outcome = 'open' DESC, "partition", "offset" DESC
)
SELECT %(consumer)s, order_id, created_at,
       cause IN ('no event', 'parked', 'given up', 'processed', 'open', 'dropped', 'set aside', 'passed') OR age_s > %(late_s)s,
       published, age_s, CASE cause
           WHEN 'no event' THEN 'it has no event'
           WHEN 'parked' THEN 'outbox ' || outbox_id || ' is parked: brewctl dlq redrive ' || parked_name
           WHEN 'given up' THEN 'outbox ' || outbox_id || ' was parked, and dropped'
           WHEN 'taken' THEN 'outbox ' || outbox_id || ' waits for its handler'
           WHEN 'processed' THEN 'outbox ' || outbox_id || ' counts as processed, so it never will'
           WHEN 'open' THEN 'its event is a dead letter: brewctl dlq redrive ' || letter_partition || ':' || letter_offset
           WHEN 'set aside' THEN 'outbox ' || outbox_id || ' is not published'
           WHEN 'unpublished' THEN 'outbox ' || outbox_id || ' is not published'
           WHEN 'gone' THEN 'outbox ' || outbox_id || ' is not in the topic'
           WHEN 'passed' THEN 'outbox ' || outbox_id || ' at ' || place || ' was passed over'
           WHEN 'waits' THEN 'the group has not come to outbox ' || outbox_id || ' at ' || place || ' yet'
           ELSE 'its event is the ' || cause || ' dead letter ' || letter_partition || '@' || letter_offset END
  FROM (SELECT bare.order_id, bare.created_at, e.outbox_id, coalesce(e.published, false) AS published,
               coalesce(e.age_s, 0) AS age_s, arrival.place,
               dead."partition" AS letter_partition, dead."offset" AS letter_offset, k.name AS parked_name, CASE
                   WHEN e.outbox_id IS NULL THEN 'no event'
                   WHEN k.outbox_id IS NOT NULL AND k.outcome IS NULL THEN 'parked'
                   WHEN k.outcome = 'dropped' THEN 'given up'
                   WHEN p.waits THEN 'taken'
                   WHEN p.outbox_id IS NOT NULL THEN 'processed'
                   WHEN dead.outcome IS NOT NULL THEN dead.outcome
                   WHEN e.set_aside OR e.blocked THEN 'set aside'
                   WHEN NOT e.published THEN 'unpublished'
                   WHEN arrival.outbox_id IS NULL THEN 'gone'
                   WHEN arrival.passed THEN 'passed'
                   ELSE 'waits' END AS cause
          FROM bare
          LEFT JOIN first_event e ON e.order_id = bare.order_id
          LEFT JOIN processed p ON p.consumer = %(consumer)s AND p.outbox_id = e.outbox_id
          LEFT JOIN parked k ON k.consumer = %(consumer)s AND k.outbox_id = e.outbox_id
          LEFT JOIN dead ON dead.order_id = bare.order_id
          LEFT JOIN arrival ON arrival.outbox_id = e.outbox_id) AS judged

-- count_on_the_way --
-- How many rows wait to be published, and the age of the oldest event in flight. Rows that are published a second time
-- don't count for the age.
WITH again AS (
    SELECT outbox_id FROM event e JOIN processed USING (outbox_id) WHERE NOT published
     GROUP BY outbox_id, type HAVING count(*) = (SELECT count(*) FROM taker t WHERE t.type = e.type)
)
SELECT count(*) FILTER (WHERE e.age_s <= %(late_s)s OR again.outbox_id IS NOT NULL) AS unpublished,
       greatest(0, max(e.age_s) FILTER (WHERE e.age_s <= %(late_s)s AND again.outbox_id IS NULL),
                (SELECT max(age_s) FROM gap WHERE NOT lost)) AS oldest_s
  FROM event e LEFT JOIN again USING (outbox_id)
 WHERE NOT e.published AND NOT e.set_aside AND NOT e.blocked

-- count_unread --
-- Effects in flight whose events are published, by group.
SELECT consumer, count(*) FROM gap WHERE published AND NOT lost GROUP BY consumer

-- count_moved --
-- Keys with records in two partitions, each of which was the right one when the record was sent.
SELECT count(*) AS moved_keys
  FROM (SELECT FROM seen WHERE outbox_id IS NOT NULL GROUP BY key
        HAVING min("partition") <> max("partition") AND NOT bool_or(hash IS NULL OR NOT EXISTS (
           SELECT FROM generate_series(%(first_partitions)s::int, %(partitions)s::int) AS among
            WHERE mod(seen.hash, among) = seen."partition"))) AS moved

-- event_per_order --
-- Each order has one order.created, and one order.cancelled exactly if it is cancelled: one event for each change of its
-- status. Events of orders up to the watermark's time may have been dropped.
SELECT bad.total, 'order ' || bad.order_id || CASE
           WHEN bad.created + bad.cancelled = 0 THEN ' has no outbox row'
           WHEN bad.created = 0 THEN ' has no order.created'
           WHEN bad.created > 1 THEN ' has outbox rows ' || rows_of.created
           WHEN bad.cancelled = 0 THEN ' is cancelled, and has no order.cancelled'
           WHEN bad.cancelled > 1 THEN ' has more than one order.cancelled: outbox rows ' || rows_of.cancelled
           ELSE ' is ' || left(bad.status, 60) || ', and outbox ' || rows_of.cancelled || ' says that it is cancelled' END
  FROM (SELECT o.order_id, min(o.created_at) AS created_at, min(o.status) AS status, count(*) OVER () AS total,
               count(*) FILTER (WHERE e.type = 'order.created') AS created,
               count(*) FILTER (WHERE e.type = 'order.cancelled') AS cancelled
          FROM placed o LEFT JOIN event e USING (order_id)
         GROUP BY o.order_id
        HAVING count(*) FILTER (WHERE e.type = 'order.created')
               <> CASE WHEN min(o.created_at) <= (SELECT until FROM gone)
                       THEN least(count(*) FILTER (WHERE e.type = 'order.created'), 1) ELSE 1 END
            OR count(*) FILTER (WHERE e.type = 'order.cancelled')
               <> CASE WHEN min(o.status) <> 'ORDER_STATUS_CANCELLED' THEN 0
                       WHEN min(o.cancelled_at) <= (SELECT until FROM gone)
                       THEN least(count(*) FILTER (WHERE e.type = 'order.cancelled'), 1) ELSE 1 END
         ORDER BY min(o.created_at), o.order_id
         LIMIT %(shown)s) AS bad
 CROSS JOIN LATERAL (
       SELECT string_agg(e.outbox_id::text, ', ' ORDER BY e.outbox_id) FILTER (WHERE e.type = 'order.created') AS created,
              string_agg(e.outbox_id::text, ', ' ORDER BY e.outbox_id) FILTER (WHERE e.type = 'order.cancelled')
                  AS cancelled
         FROM event e WHERE e.order_id = bad.order_id) AS rows_of
 ORDER BY bad.created_at, bad.order_id

-- more_than_dropped --
-- At most as many orders up to the watermark's time lack an order.created as were dropped. So a row that was lost among
-- them is noticed too.
SELECT bare.total - gone.created, bare.total || ' orders up to ' || date_trunc('second', gone.until)
       || ' have no order.created in the outbox, and ' || gone.created || ' were dropped'
  FROM gone
 CROSS JOIN LATERAL (
       SELECT count(*) AS total FROM placed o
        WHERE o.created_at <= gone.until
          AND NOT EXISTS (SELECT FROM event e WHERE e.order_id = o.order_id AND e.type = 'order.created')) AS bare
 WHERE bare.total > gone.created

-- order_per_event --
SELECT bad.total, 'outbox ' || bad.outbox_id || coalesce(' is of ' || left(x.aggregate_id, 60), '') || ', which is no order'
  FROM (SELECT outbox_id, count(*) OVER () AS total
          FROM event
         WHERE order_id IS NULL AND type IN ('order.created', 'order.cancelled')
         ORDER BY outbox_id LIMIT %(shown)s) AS bad
  LEFT JOIN outbox x ON x.id = bad.outbox_id
 ORDER BY bad.outbox_id

-- unpublished --
-- Rows that are not published in time. One that every group has processed is only being published again.
WITH again AS (
    SELECT outbox_id FROM event e JOIN processed USING (outbox_id) WHERE NOT published
     GROUP BY outbox_id, type HAVING count(*) = (SELECT count(*) FROM taker t WHERE t.type = e.type)
)
SELECT bad.total, 'outbox ' || bad.outbox_id || coalesce(' of ' || left(x.aggregate_id, 60), '') || CASE
           WHEN bad.set_aside THEN ' is set aside (' || coalesce(left(x.failure, 120), 'without a reason')
                || '): brewctl outbox retry ' || bad.outbox_id
           WHEN bad.blocked THEN coalesce(' waits behind ' || head.id || ', which is set aside: brewctl outbox retry '
                || head.id, ' waited behind one that was set aside')
           ELSE ' is not published ' || round(bad.age_s) || ' s after it was written' END
  FROM (SELECT outbox_id, set_aside, blocked, age_s, count(*) OVER () AS total
          FROM event LEFT JOIN again USING (outbox_id)
         WHERE NOT published AND (set_aside OR blocked OR (age_s > %(late_s)s AND again.outbox_id IS NULL))
         ORDER BY set_aside DESC, outbox_id LIMIT %(shown)s) AS bad
  LEFT JOIN outbox x ON x.id = bad.outbox_id
  LEFT JOIN LATERAL (SELECT p.id FROM outbox p
                      WHERE p.aggregate_id = x.aggregate_id AND p.published_at IS NULL AND p.failed_at IS NOT NULL
                        AND p.id < x.id
                      ORDER BY p.id LIMIT 1) AS head ON true
 ORDER BY bad.set_aside DESC, bad.outbox_id

-- lost --
-- Published rows that are not in the topic. Where Kafka has removed the topic's first records, a row that a group has
-- processed was there.
SELECT bad.total, 'outbox ' || bad.outbox_id || coalesce(' of ' || left(x.aggregate_id, 60) || ', published by '
       || coalesce(x.publisher_node, 'nobody'), '') || ', is not in the topic'
  FROM (SELECT outbox_id, count(*) OVER () AS total
          FROM event e
         WHERE ours AND published
           AND NOT EXISTS (SELECT FROM seen s WHERE s.outbox_id = e.outbox_id)
           AND NOT (EXISTS (SELECT FROM edge WHERE first > 0)
                    AND EXISTS (SELECT FROM processed p WHERE p.outbox_id = e.outbox_id))
         ORDER BY outbox_id LIMIT %(shown)s) AS bad
  LEFT JOIN outbox x ON x.id = bad.outbox_id
 ORDER BY bad.outbox_id

-- removed --
-- Events that a group takes and that Kafka removed from the topic before the group had them. Dead letters and parked
-- events count as had.
SELECT bad.total, 'outbox ' || bad.outbox_id || ' was removed from the topic before the group had it: '
       || 'brewctl outbox republish ' || bad.outbox_id
  FROM (SELECT e.outbox_id, count(*) OVER () AS total
          FROM event e
          JOIN taker t ON t.consumer = %(consumer)s AND t.type = e.type
         WHERE e.ours AND e.published
           AND EXISTS (SELECT FROM edge WHERE first > 0)
           AND NOT EXISTS (SELECT FROM seen s WHERE s.outbox_id = e.outbox_id)
           AND NOT EXISTS (SELECT FROM processed p WHERE p.consumer = t.consumer AND p.outbox_id = e.outbox_id)
           AND NOT EXISTS (SELECT FROM parked k WHERE k.consumer = t.consumer AND k.outbox_id = e.outbox_id)
           AND NOT EXISTS (SELECT FROM letter l WHERE l.consumer = t.consumer AND l.outbox_id = e.outbox_id)
         ORDER BY e.outbox_id LIMIT %(shown)s) AS bad

-- split_keys --
-- Each record must be in the partition that its key's hash chooses. Where partitions were added, the hash may have chosen
-- among fewer when it was sent, down to `first_partitions`, with which a topic is made.
SELECT count(*) OVER () AS total,
       'the key of outbox ' || min(outbox_id) || ' is in partitions '
       || string_agg(DISTINCT "partition"::text, ', ') || ', first at ' || min("partition") || '@' || min("offset")
  FROM seen
 WHERE outbox_id IS NOT NULL
 GROUP BY key
HAVING min("partition") <> max("partition") AND bool_or(hash IS NULL OR NOT EXISTS (
           SELECT FROM generate_series(%(first_partitions)s::int, %(partitions)s::int) AS among
            WHERE mod(seen.hash, among) = seen."partition"))
 ORDER BY min(outbox_id)
 LIMIT %(shown)s

-- out_of_order --
-- Only the first record of each event counts. Where Kafka has removed a partition's first records, that of an older event
-- may be among them, and so may that of an event that was published again.
SELECT count(*) OVER () AS total,
       'outbox ' || outbox_id || ' came at ' || "partition" || '@' || first || ', after outbox ' || ahead
       || ' of the same key'
  FROM (SELECT arrival.*, max(outbox_id) OVER (PARTITION BY key, "partition" ORDER BY first
                                               ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS ahead
          FROM (SELECT DISTINCT ON (outbox_id) *
                  FROM (SELECT DISTINCT ON (outbox_id, "partition")
                               key, "partition", outbox_id, "offset" AS first, written_ms
                          FROM seen
                         WHERE outbox_id IS NOT NULL
                         ORDER BY outbox_id, "partition", "offset") AS by_partition
                 ORDER BY outbox_id, written_ms, "partition") AS arrival) AS queue
  LEFT JOIN event e USING (outbox_id)
  LEFT JOIN (SELECT s."partition", min(s.written_ms) AS since_ms
               FROM seen s JOIN edge USING ("partition")
              WHERE edge.first > 0
              GROUP BY s."partition") AS rest USING ("partition")
 WHERE ahead > outbox_id
   AND e.republished IS NOT TRUE
   AND (rest.since_ms IS NULL OR e.created_at IS NULL OR extract(epoch FROM e.created_at) * 1000 >= rest.since_ms)
 ORDER BY outbox_id
 LIMIT %(shown)s

-- numbered --
-- Events are numbered 1, 2, 3 … within the aggregate, in the order of outbox ids; another check compares that with the
-- topic's order. Events of the version before have no number, but are counted. Where the first events of an aggregate were
-- dropped, the numbers of the others continue.
SELECT bad.total, 'outbox ' || bad.outbox_id || coalesce(' of ' || left(x.aggregate_id, 60), '') || ' has the number '
       || bad.seq || ' and is event ' || bad.place || ' of its aggregate'
  FROM (SELECT outbox_id, seq, place, count(*) OVER () AS total
          FROM (SELECT e.outbox_id, e.seq,
                       row_number() OVER of_it + CASE
                           WHEN gone.watermark > 0 AND (o.order_id IS NULL OR o.created_at <= gone.until)
                           THEN greatest(coalesce(first_value(e.seq) OVER of_it, 1) - 1, 0) ELSE 0 END AS place
                  FROM event e
                 CROSS JOIN gone
                  LEFT JOIN placed o ON o.order_id = e.order_id
                WINDOW of_it AS (PARTITION BY e.aggregate ORDER BY e.outbox_id)) AS counted
         WHERE seq <> place
         ORDER BY outbox_id LIMIT %(shown)s) AS bad
  LEFT JOIN outbox x ON x.id = bad.outbox_id
 ORDER BY bad.outbox_id

-- state --
-- Effects that show another status than their order. Until the event of the change is processed or late, the effect's
-- change is in flight. Orders without that event are reported by another check.
SELECT count(*) OVER () AS total,
       'order ' || f.order_id || ' is ' || left(o.status, 60) || ', and its ' || %(effect)s || ' shows ' || left(f.status, 60)
       || CASE WHEN o.status <> 'ORDER_STATUS_CANCELLED' THEN ''
               WHEN p.outbox_id IS NULL THEN ': outbox ' || e.outbox_id || ' has not come to the group'
               ELSE ': outbox ' || e.outbox_id || ' counts as processed' END
  FROM effect f
  JOIN placed o USING (order_id)
  LEFT JOIN event e ON e.order_id = f.order_id AND e.type = 'order.cancelled'
  LEFT JOIN processed p ON p.consumer = %(consumer)s AND p.outbox_id = e.outbox_id
 WHERE f.consumer = %(consumer)s AND f.status <> o.status
   AND (o.status <> 'ORDER_STATUS_CANCELLED' OR p.outbox_id IS NOT NULL OR e.age_s > %(late_s)s)
 ORDER BY f.order_id
 LIMIT %(shown)s

-- sequence --
-- Events of a key that were processed out of order. Redriven dead letters, and rows published again by `outbox republish`,
-- are left out: their records come after those of later events. Events of a key in two partitions, which may be where
-- partitions were added between them, have no order; `split_keys` reports where that is a fault.
SELECT count(*) OVER () AS total,
       'outbox ' || outbox_id || ' had its ' || %(effect)s || ' after outbox ' || ahead || ' of the same key'
  FROM (SELECT outbox_id, republished,
               max(outbox_id) OVER (PARTITION BY aggregate ORDER BY processed_at, outbox_id
                                               ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS ahead
          FROM processed p
          JOIN event e USING (outbox_id)
         WHERE p.consumer = %(consumer)s AND e.aggregate IN (SELECT aggregate FROM event WHERE seq > 1)) AS applied
 WHERE ahead > outbox_id
   AND NOT republished
   AND NOT EXISTS (SELECT FROM seen late JOIN seen early ON early."partition" <> late."partition"
                    WHERE late.outbox_id = applied.outbox_id AND early.outbox_id = applied.ahead)
   AND NOT EXISTS (SELECT FROM letter l
                    WHERE l.consumer = %(consumer)s AND l.outbox_id = applied.outbox_id AND l.outcome = 'redriven')
 ORDER BY outbox_id
 LIMIT %(shown)s

-- missing --
SELECT count(*) OVER () AS total, 'order ' || order_id || ' has no ' || %(effect)s || ': ' || reason
  FROM gap
 WHERE consumer = %(consumer)s AND lost
 ORDER BY created_at, order_id
 LIMIT %(shown)s

-- doubled --
-- Effects that happened twice, by the ledger: a downstream's own table may hide that by its primary key.
SELECT count(*) OVER () AS total, offender
  FROM (SELECT 'order ' || order_id || ' has ' || count(*) || ' ' || %(effect)s || 's' AS offender
          FROM effect
         WHERE consumer = %(consumer)s
         GROUP BY order_id
        HAVING count(*) > 1
        UNION ALL
        SELECT 'outbox ' || outbox_id || ' had its ' || %(effect)s || ' made ' || count(*) || ' times'
          FROM ledger
         WHERE consumer = %(consumer)s
         GROUP BY outbox_id
        HAVING count(*) > 1) AS bad
 ORDER BY offender
 LIMIT %(shown)s

-- orphans --
SELECT count(*) OVER () AS total, 'there is the ' || %(effect)s || ' of ' || f.order_id || ', which is no order'
  FROM effect f
 WHERE f.consumer = %(consumer)s AND NOT EXISTS (SELECT FROM placed o WHERE o.order_id = f.order_id)
 ORDER BY f.order_id
 LIMIT %(shown)s

-- dedup --
-- Dedup row and effect are one commit, so neither is there without the other, nor without its event unless that was
-- dropped. `shows`: the downstream has a `done` query, which finds its effects.
SELECT count(*) OVER () AS total, offender
  FROM (SELECT p.outbox_id, 'outbox ' || p.outbox_id || CASE
                   WHEN e.outbox_id IS NULL THEN ' was processed, and is not in the outbox'
                   ELSE ' was processed, and order ' || e.order_id || ' has no ' || %(effect)s END AS offender
          FROM processed p
          LEFT JOIN event e ON e.outbox_id = p.outbox_id
         WHERE p.consumer = %(consumer)s
           AND (e.outbox_id IS NULL AND p.outbox_id >= (SELECT watermark FROM gone)
                OR %(shows)s AND e.order_id IS NOT NULL AND e.type = 'order.created' AND NOT p.waits
                   AND NOT EXISTS (SELECT FROM effect f
                                    WHERE f.consumer = %(consumer)s AND f.order_id = e.order_id)
                   AND NOT EXISTS (SELECT FROM parked k
                                    WHERE k.consumer = %(consumer)s AND k.outbox_id = e.outbox_id
                                      AND k.outcome = 'dropped'))
        UNION ALL
        SELECT min(e.outbox_id), 'order ' || e.order_id || ' has its ' || %(effect)s || ', and its outbox '
               || min(e.outbox_id) || ' was never processed'
          FROM event e
          JOIN effect f ON f.consumer = %(consumer)s AND f.order_id = e.order_id
          LEFT JOIN processed p ON p.consumer = %(consumer)s AND p.outbox_id = e.outbox_id
         WHERE e.type = 'order.created'
           AND NOT EXISTS (SELECT FROM parked k WHERE k.consumer = %(consumer)s AND k.outbox_id = e.outbox_id)
         GROUP BY e.order_id
        HAVING count(p.outbox_id) = 0) AS bad
 ORDER BY outbox_id
 LIMIT %(shown)s

-- offsets --
-- A repeat in the same batch as the copy that became a dead letter has no letter of its own.
SELECT count(*) OVER () AS total, offender
  FROM (SELECT p."partition", p.next AS "offset",
               'partition ' || p."partition" || ' is committed up to ' || p.next || ', and ends at '
               || coalesce(d.next, 0) AS offender
          FROM position p LEFT JOIN edge d USING ("partition")
         WHERE p.consumer = %(consumer)s AND p.next > coalesce(d.next, 0)
        UNION ALL
        SELECT s."partition", s."offset",
               s."partition" || '@' || s."offset" || ' is committed, and ' || CASE
                   WHEN s.unreadable THEN 'unreadable without a dead letter'
                   ELSE 'outbox ' || s.outbox_id || ' is not in processed_events' END
          FROM seen s
          JOIN position g ON g.consumer = %(consumer)s AND g."partition" = s."partition" AND s."offset" < g.next
          LEFT JOIN processed p ON p.consumer = %(consumer)s AND p.outbox_id = s.outbox_id
         WHERE (s.outbox_id IS NOT NULL OR s.unreadable)
           AND (s.type IS NULL OR s.type IN (SELECT t.type FROM taker t WHERE t.consumer = %(consumer)s))
           AND p.outbox_id IS NULL
           AND (s.unreadable OR s.outbox_id >= (SELECT watermark FROM gone))
           AND NOT EXISTS (SELECT FROM parked k WHERE k.consumer = %(consumer)s AND k.outbox_id = s.outbox_id)
           AND NOT EXISTS (SELECT FROM letter l
                            WHERE l.consumer = %(consumer)s AND l.source_partition = s."partition"
                              AND l.source_offset = s."offset")
           AND NOT EXISTS (SELECT FROM letter l
                            WHERE l.consumer = %(consumer)s AND l.outbox_id = s.outbox_id)) AS bad
 ORDER BY "partition", "offset"
 LIMIT %(shown)s

-- dead_letters --
-- Letters of records before a partition's first one can't be compared any more.
SELECT count(*) OVER () AS total, 'dead letter ' || place || offender
  FROM (SELECT l."partition", l."offset", l."partition" || '@' || l."offset" AS place, CASE
                   WHEN s."offset" IS NULL AND l.source_offset >= coalesce(b.first, 0)
                        THEN ' names ' || l.source_partition || '@' || l.source_offset || ', where no record is'
                   WHEN s.value <> l.value OR s.frame <> l.frame
                        THEN ' is not the record at ' || l.source_partition || '@' || l.source_offset
                   WHEN l.outcome = 'redriven' AND c."offset" IS NULL AND coalesce(l.new_offset >= a.first, true)
                        THEN ' was redriven to ' || coalesce(l.new_partition || '@' || l.new_offset, 'nowhere')
                             || ', where no record is'
                   WHEN c.value <> l.value
                        THEN ' is not the record at ' || l.new_partition || '@' || l.new_offset
                             || ', where it was redriven to' END AS offender
          FROM letter l
          LEFT JOIN seen s ON s."partition" = l.source_partition AND s."offset" = l.source_offset
          LEFT JOIN seen c ON c."partition" = l.new_partition AND c."offset" = l.new_offset
          LEFT JOIN edge b ON b."partition" = l.source_partition
          LEFT JOIN edge a ON a."partition" = l.new_partition) AS judged
 WHERE offender IS NOT NULL
 ORDER BY "partition", "offset"
 LIMIT %(shown)s

-- waiting_for_lanes --
-- How many events these consumers have taken for their lanes and not handled yet.
SELECT consumer, count(*) FROM waiting_events WHERE consumer = ANY(%(groups)s) GROUP BY consumer ORDER BY consumer

-- on_the_way --
-- Unpublished rows that a publisher will take: neither set aside nor behind such a row.
SELECT count(*)
  FROM outbox o
 WHERE o.published_at IS NULL
   AND o.failed_at IS NULL
   AND NOT EXISTS (SELECT FROM outbox p
                    WHERE p.aggregate_id = o.aggregate_id AND p.published_at IS NULL
                      AND p.failed_at IS NOT NULL AND p.id < o.id)

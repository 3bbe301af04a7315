-- What `brewctl verify` asks, in the format of queries.sql. Its session first makes the temporary
-- tables, then looks at everything in one REPEATABLE READ, READ ONLY transaction.
-- A query of a check returns the first `shown` offenders: how many there are in all, and a line of text.

-- bounds --
-- This session's own bounds, in milliseconds: whole tables are read.
SELECT set_config('statement_timeout', %(statement_ms)s, false),
       set_config('idle_in_transaction_session_timeout', %(idle_ms)s, false)

-- create_event --
-- Outbox rows, and the order that each belongs to.
CREATE TEMP TABLE event (
    outbox_id bigint NOT NULL, order_id uuid, ours boolean NOT NULL, published boolean NOT NULL,
    set_aside boolean NOT NULL)

-- create_effect --
CREATE TEMP VIEW effect (consumer, order_id) AS
SELECT 'inventory', order_id FROM inventory_reservations UNION ALL
SELECT 'notifications', order_id FROM notifications_log

-- create_edge --
-- Per partition the first offset there is, and the next one.
CREATE TEMP TABLE edge ("partition" integer NOT NULL, first bigint NOT NULL, next bigint NOT NULL)

-- create_position --
-- Committed offsets of the groups.
CREATE TEMP TABLE position (consumer text NOT NULL, "partition" integer NOT NULL, next bigint NOT NULL)

-- create_seen --
-- Records of the topic; without an outbox id, an event of another type or an unreadable one.
-- Key, frame (key and headers), value and node are fingerprints.
CREATE TEMP TABLE seen (
    "partition" integer NOT NULL, "offset" bigint NOT NULL, outbox_id bigint, unreadable boolean NOT NULL,
    key bigint NOT NULL, frame bigint NOT NULL, value bigint NOT NULL, node bigint NOT NULL)

-- create_letter --
-- Dead letters, each with the place of the record that died, and what it was about where that can be
-- told; `value` is null where it was left out.
CREATE TEMP TABLE letter (
    "partition" integer NOT NULL, "offset" bigint NOT NULL, written_ms bigint NOT NULL, consumer text NOT NULL,
    source_partition bigint NOT NULL, source_offset bigint NOT NULL, order_id uuid, outbox_id bigint,
    frame bigint NOT NULL, value bigint, outcome text NOT NULL DEFAULT 'open', new_partition integer, new_offset bigint)

-- fill_event --
INSERT INTO event
SELECT x.id, o.id, x.topic = %(topic)s, x.published_at IS NOT NULL, x.published_at IS NULL AND x.failed_at IS NOT NULL
  FROM outbox x LEFT JOIN orders o ON x.aggregate_id = 'order-' || o.id

-- fill_edge --
INSERT INTO edge SELECT * FROM unnest(%(partitions)s::int[], %(firsts)s::bigint[], %(nexts)s::bigint[])

-- fill_position --
INSERT INTO position SELECT %(consumer)s, * FROM unnest(%(partitions)s::int[], %(nexts)s::bigint[])

-- copy_seen --
COPY seen FROM STDIN

-- copy_letter --
COPY letter ("partition", "offset", written_ms, consumer, source_partition, source_offset, order_id, outbox_id,
             frame, value)
FROM STDIN

-- settle_letters --
-- A time of its own tells a letter from one that had its place in a topic of the same name before.
UPDATE letter l
   SET outcome = s.outcome, new_partition = s.new_partition, new_offset = s.new_offset
  FROM dead_letters_settled s
 WHERE s.topic = %(dead_letter_topic)s AND s."partition" = l."partition" AND s."offset" = l."offset"
   AND round(extract(epoch FROM s.written_at) * 1000) = l.written_ms

-- analyze --
-- Nobody else does it for temporary tables.
ANALYZE event, seen, letter

-- outbox_rows --
SELECT id, aggregate_id, topic, payload FROM outbox WHERE id = ANY(%(ids)s)

-- orders --
-- Orders as their events say them; the time in microseconds since the epoch.
SELECT id::text, tenant_id, customer_id, amount_cents, currency, status,
       (extract(epoch FROM created_at) * 1000000)::bigint
  FROM orders
 WHERE id = ANY(%(ids)s::uuid[])

-- count_outbox --
SELECT (SELECT count(*) FROM orders) AS orders,
       count(*) AS outbox_rows,
       count(*) FILTER (WHERE NOT ours) AS other_topics,
       count(*) FILTER (WHERE published) AS published,
       count(*) FILTER (WHERE ours AND published) AS published_here,
       count(*) FILTER (WHERE set_aside) AS set_aside
  FROM event

-- count_records --
SELECT count(*) AS records,
       count(DISTINCT outbox_id) AS events,
       count(outbox_id) - count(DISTINCT outbox_id) AS repeats,
       count(*) FILTER (WHERE outbox_id IS NULL AND NOT unreadable) AS other_types,
       count(*) FILTER (WHERE unreadable) AS unreadable,
       (SELECT coalesce(sum(first), 0)::bigint FROM edge) AS removed
  FROM seen

-- count_repeats --
-- Why an event is there again; compared with its copy before.
SELECT count(*) FILTER (WHERE redriven) AS repeats_redriven,
       count(*) FILTER (WHERE NOT redriven AND node = before) AS repeats_same_node,
       count(*) FILTER (WHERE NOT redriven AND node <> before) AS repeats_other_node
  FROM (SELECT node, lag(node) OVER (PARTITION BY outbox_id ORDER BY "partition", "offset") AS before,
               EXISTS (SELECT FROM letter l WHERE l.new_partition = s."partition" AND l.new_offset = s."offset")
                   AS redriven
          FROM seen s
         WHERE outbox_id IS NOT NULL) AS copy
 WHERE before IS NOT NULL

-- count_letters --
SELECT consumer, outcome, count(*) FROM letter GROUP BY consumer, outcome ORDER BY consumer, outcome

-- count_repeated_letters --
-- A crash between a letter's acknowledgement and the offset's commit writes it again.
SELECT count(*) - count(DISTINCT (consumer, source_partition, source_offset)) AS dead_letters_repeated FROM letter

-- count_removed_events --
-- Published, no longer in the topic, and processed: they were there.
SELECT count(*) AS removed_events
  FROM event e
 WHERE ours AND published
   AND NOT EXISTS (SELECT FROM seen s WHERE s.outbox_id = e.outbox_id)
   AND EXISTS (SELECT FROM edge WHERE first > 0)
   AND EXISTS (SELECT FROM processed_events p WHERE p.consumer = ANY(%(groups)s) AND p.outbox_id = e.outbox_id)

-- count_group --
SELECT (SELECT count(*) FROM effect WHERE consumer = %(consumer)s) AS effects,
       (SELECT count(*) FROM processed_events WHERE consumer = %(consumer)s) AS processed,
       (SELECT count(*) FROM seen s JOIN position p USING ("partition")
         WHERE p.consumer = %(consumer)s AND s."offset" < p.next) AS behind

-- event_per_order --
SELECT bad.total, 'order ' || bad.id || ' has ' || coalesce('outbox rows ' || (
           SELECT string_agg(e.outbox_id::text, ', ' ORDER BY e.outbox_id) FROM event e WHERE e.order_id = bad.id),
           'no outbox row')
  FROM (SELECT o.id, o.created_at, count(*) OVER () AS total
          FROM orders o LEFT JOIN event e ON e.order_id = o.id
         GROUP BY o.id
        HAVING count(e.outbox_id) <> 1
         ORDER BY o.created_at, o.id
         LIMIT %(shown)s) AS bad
 ORDER BY bad.created_at, bad.id

-- order_per_event --
SELECT bad.total, 'outbox ' || x.id || ' is of ' || left(x.aggregate_id, 60) || ', which is no order'
  FROM (SELECT outbox_id, count(*) OVER () AS total
          FROM event WHERE order_id IS NULL ORDER BY outbox_id LIMIT %(shown)s) AS bad
  JOIN outbox x ON x.id = bad.outbox_id
 ORDER BY x.id

-- unpublished --
SELECT bad.total, 'outbox ' || x.id || ' of ' || left(x.aggregate_id, 60) || CASE
           WHEN bad.set_aside THEN ' is set aside (' || coalesce(left(x.failure, 120), 'without a reason')
                || '): brewctl outbox retry ' || x.id
           WHEN head.id IS NOT NULL THEN ' waits behind ' || head.id || ', which is set aside: brewctl outbox retry '
                || head.id
           ELSE ' is not published yet' END
  FROM (SELECT outbox_id, set_aside, count(*) OVER () AS total
          FROM event WHERE NOT published ORDER BY set_aside DESC, outbox_id LIMIT %(shown)s) AS bad
  JOIN outbox x ON x.id = bad.outbox_id
  LEFT JOIN LATERAL (SELECT p.id FROM outbox p
                      WHERE p.aggregate_id = x.aggregate_id AND p.published_at IS NULL AND p.failed_at IS NOT NULL
                        AND p.id < x.id
                      ORDER BY p.id LIMIT 1) AS head ON true
 ORDER BY bad.set_aside DESC, x.id

-- lost --
-- Where the topic's beginning is gone, a row that a group has processed was there: only that group's
-- promise is at stake then, and it was kept.
SELECT bad.total, 'outbox ' || x.id || ' of ' || left(x.aggregate_id, 60) || ', published by '
       || coalesce(x.publisher_node, 'nobody') || ', is not in the topic'
  FROM (SELECT outbox_id, count(*) OVER () AS total
          FROM event e
         WHERE ours AND published
           AND NOT EXISTS (SELECT FROM seen s WHERE s.outbox_id = e.outbox_id)
           AND NOT (EXISTS (SELECT FROM edge WHERE first > 0)
                    AND EXISTS (SELECT FROM processed_events p
                                 WHERE p.consumer = ANY(%(groups)s) AND p.outbox_id = e.outbox_id))
         ORDER BY outbox_id LIMIT %(shown)s) AS bad
  JOIN outbox x ON x.id = bad.outbox_id
 ORDER BY x.id

-- split_keys --
SELECT count(*) OVER () AS total,
       'the key of outbox ' || min(outbox_id) || ' is in partitions '
       || string_agg(DISTINCT "partition"::text, ', ') || ', first at ' || min("partition") || '@' || min("offset")
  FROM seen
 WHERE outbox_id IS NOT NULL
 GROUP BY key
HAVING min("partition") <> max("partition")
 ORDER BY min(outbox_id)
 LIMIT %(shown)s

-- out_of_order --
SELECT count(*) OVER () AS total,
       'outbox ' || outbox_id || ' came at ' || "partition" || '@' || first || ', after outbox ' || ahead
       || ' of the same key'
  FROM (SELECT outbox_id, "partition", first,
               max(outbox_id) OVER (PARTITION BY key, "partition" ORDER BY first
                                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS ahead
          FROM (SELECT key, "partition", outbox_id, min("offset") AS first
                  FROM seen WHERE outbox_id IS NOT NULL
                 GROUP BY key, "partition", outbox_id) AS arrival) AS queue
 WHERE ahead > outbox_id
 ORDER BY outbox_id
 LIMIT %(shown)s

-- missing --
SELECT bad.total, 'order ' || bad.id || ' has no ' || %(effect)s || ': ' || CASE
           WHEN e.outbox_id IS NULL THEN 'it has no event'
           WHEN p.outbox_id IS NOT NULL THEN 'outbox ' || e.outbox_id || ' counts as processed, so it never will'
           WHEN l."offset" IS NOT NULL AND l.outcome = 'open' THEN 'its event is a dead letter: brewctl dlq redrive '
                || l."partition" || ':' || l."offset"
           WHEN l."offset" IS NOT NULL THEN 'its event is the ' || l.outcome || ' dead letter '
                || l."partition" || '@' || l."offset"
           WHEN NOT e.published THEN 'outbox ' || e.outbox_id || ' is not published'
           WHEN s."offset" IS NULL THEN 'outbox ' || e.outbox_id || ' is not in the topic'
           WHEN s."offset" < coalesce(g.next, 0) THEN 'outbox ' || e.outbox_id || ' at ' || s."partition" || '@'
                || s."offset" || ' was passed over'
           ELSE 'the group has not come to outbox ' || e.outbox_id || ' at ' || s."partition" || '@' || s."offset"
                || ' yet' END
  FROM (SELECT o.id, o.created_at, count(*) OVER () AS total
          FROM orders o
         WHERE NOT EXISTS (SELECT FROM effect f WHERE f.consumer = %(consumer)s AND f.order_id = o.id)
         ORDER BY o.created_at, o.id LIMIT %(shown)s) AS bad
  LEFT JOIN LATERAL (SELECT * FROM event WHERE order_id = bad.id ORDER BY outbox_id LIMIT 1) AS e ON true
  LEFT JOIN processed_events p ON p.consumer = %(consumer)s AND p.outbox_id = e.outbox_id
  LEFT JOIN LATERAL (SELECT * FROM letter WHERE consumer = %(consumer)s AND order_id = bad.id
                      ORDER BY outcome = 'open' DESC, "partition", "offset" DESC LIMIT 1) AS l ON true
  LEFT JOIN LATERAL (SELECT "partition", "offset" FROM seen WHERE outbox_id = e.outbox_id
                      ORDER BY "partition", "offset" LIMIT 1) AS s ON true
  LEFT JOIN position g ON g.consumer = %(consumer)s AND g."partition" = s."partition"
 ORDER BY bad.created_at, bad.id

-- doubled --
SELECT count(*) OVER () AS total, 'order ' || order_id || ' has ' || count(*) || ' ' || %(effect)s || 's'
  FROM effect
 WHERE consumer = %(consumer)s
 GROUP BY order_id
HAVING count(*) > 1
 ORDER BY order_id
 LIMIT %(shown)s

-- orphans --
SELECT count(*) OVER () AS total, 'there is a ' || %(effect)s || ' of ' || f.order_id || ', which is no order'
  FROM effect f
 WHERE f.consumer = %(consumer)s AND NOT EXISTS (SELECT FROM orders o WHERE o.id = f.order_id)
 ORDER BY f.order_id
 LIMIT %(shown)s

-- dedup --
-- Dedup row and effect are one commit: neither is without the other, nor without its event.
SELECT count(*) OVER () AS total, offender
  FROM (SELECT p.outbox_id, 'outbox ' || p.outbox_id || CASE
                   WHEN e.outbox_id IS NULL THEN ' was processed, and is not in the outbox'
                   ELSE ' was processed, and order ' || e.order_id || ' has no ' || %(effect)s END AS offender
          FROM processed_events p
          LEFT JOIN event e ON e.outbox_id = p.outbox_id
         WHERE p.consumer = %(consumer)s
           AND (e.outbox_id IS NULL
                OR e.order_id IS NOT NULL
                   AND NOT EXISTS (SELECT FROM effect f
                                    WHERE f.consumer = %(consumer)s AND f.order_id = e.order_id))
        UNION ALL
        SELECT min(e.outbox_id), 'order ' || e.order_id || ' has a ' || %(effect)s || ', and its outbox '
               || min(e.outbox_id) || ' was never processed'
          FROM event e
          JOIN effect f ON f.consumer = %(consumer)s AND f.order_id = e.order_id
          LEFT JOIN processed_events p ON p.consumer = %(consumer)s AND p.outbox_id = e.outbox_id
         GROUP BY e.order_id
        HAVING count(p.outbox_id) = 0) AS bad
 ORDER BY outbox_id
 LIMIT %(shown)s

-- offsets --
-- A repeat that came in one batch with the copy that became a dead letter has no letter of its own.
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
          LEFT JOIN processed_events p ON p.consumer = %(consumer)s AND p.outbox_id = s.outbox_id
         WHERE (s.outbox_id IS NOT NULL OR s.unreadable)
           AND p.outbox_id IS NULL
           AND NOT EXISTS (SELECT FROM letter l
                            WHERE l.consumer = %(consumer)s AND l.source_partition = s."partition"
                              AND l.source_offset = s."offset")
           AND NOT EXISTS (SELECT FROM letter l
                            WHERE l.consumer = %(consumer)s AND l.outbox_id = s.outbox_id)) AS bad
 ORDER BY "partition", "offset"
 LIMIT %(shown)s

-- dead_letters --
-- What lies before a partition's first record can't be compared any more.
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

-- on_the_way --
-- Unpublished rows that a publisher will take: neither set aside nor behind one that is.
SELECT count(*)
  FROM outbox o
 WHERE o.published_at IS NULL
   AND o.failed_at IS NULL
   AND NOT EXISTS (SELECT FROM outbox p
                    WHERE p.aggregate_id = o.aggregate_id AND p.published_at IS NULL
                      AND p.failed_at IS NOT NULL AND p.id < o.id)

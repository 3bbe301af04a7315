-- The rights that each role of PostgreSQL needs for its commands, and no others: by table, or by column where a right to
-- the whole table would be more. Sections as in queries.sql; `:role` is the role's name. `brewctl db grants` makes one
-- script of them, and adds the owner of the tables and the reader of all of them.

-- everybody --
-- To see whether a newer program has migrated the database.
GRANT SELECT (number) ON schema_version TO :role;

-- replica --
-- Every process of a role: writes its row in `nodes`, and deletes rows that were not updated for a day.
GRANT SELECT,
      INSERT (node_id, role, host, pid, address, started_at, seen_at, stopped_at, processed, effects, skipped, dead, trouble, publishes),
      UPDATE (role, host, pid, address, started_at, seen_at, stopped_at, processed, effects, skipped, dead, trouble, publishes, rival),
      DELETE ON nodes TO :role;

-- order --
-- Creates, reads and cancels orders, and adds their events. It can't change events, or read their payloads.
GRANT SELECT,
      INSERT (id, tenant_id, customer_id, amount_cents, currency, status, idempotency_key, created_at),
      UPDATE (status, cancelled_at) ON orders TO :role;
GRANT SELECT (id, aggregate_id, aggregate_seq, published_at),
      INSERT (aggregate_id, topic, payload, event_id, event_type, aggregate_seq, tenant_id, trace_id, traceparent, content_type) ON outbox TO :role;
GRANT SELECT (aggregate_id, seq), INSERT (aggregate_id, seq), UPDATE (seq) ON aggregates TO :role;
GRANT EXECUTE ON FUNCTION make_partition TO :role;

-- publisher --
-- Reads the outbox and marks the rows that it has sent, or that Kafka refused.
GRANT SELECT,
      UPDATE (published_at, publisher_node, kafka_partition, kafka_offset, failed_at, failure, attempts) ON outbox TO :role;
GRANT SELECT (one, node_id, ends_at), INSERT (node_id, ends_at), UPDATE (node_id, ends_at) ON publishing TO :role;
GRANT EXECUTE ON FUNCTION make_partition TO :role;

-- registered --
-- Every downstream, in the story's database: reads which module its group is registered for.
GRANT SELECT (consumer, name) ON downstreams TO :role;

-- inbox --
-- Every downstream, in the database of its inbox: dedup rows, redeliveries, parked events.
GRANT SELECT (consumer, outbox_id, event_id, earlier_ids),
      INSERT (consumer, outbox_id, event_id),
      UPDATE (event_id, earlier_ids, processed_at) ON processed_events TO :role;
GRANT SELECT (came_at), INSERT (consumer, node_id, outbox_ids), DELETE ON redeliveries TO :role;
GRANT SELECT (consumer, key, outbox_id, outcome),
      INSERT (consumer, key, seq, outbox_id, event_id, event_type, topic, "partition", "offset", written_ms, value, headers, reason, attempts) ON parked_events TO :role;
GRANT EXECUTE ON FUNCTION make_partition TO :role;
GRANT SELECT (consumer) ON waiting_events TO :role;
GRANT SELECT (consumer, lanes), INSERT (consumer, name, lanes), UPDATE (lanes) ON downstreams TO :role;

-- lanes --
-- A downstream with lanes, in the database of its inbox: events that wait for its handler. It deletes the dedup rows of
-- events that it parks, so that a redrive processes them.
GRANT DELETE,
      SELECT (id, key, seq, outbox_id, event_id, event_type, topic, "partition", "offset", written_ms, value, headers, taken_at, attempts, failure, next_try_at, lease, lease_until, node_id),
      INSERT (consumer, key, seq, outbox_id, event_id, event_type, topic, "partition", "offset", written_ms, value, headers),
      UPDATE (attempts, failure, next_try_at, lease, lease_until, node_id) ON waiting_events TO :role;
GRANT DELETE ON processed_events TO :role;

-- inventory --
GRANT SELECT (order_id, seq, released_at),
      INSERT (order_id, node_id, seq, released_at),
      UPDATE (seq, released_at) ON inventory_reservations TO :role;

-- notifications --
GRANT SELECT (order_id, seq, state, cancelled_at),
      INSERT (order_id, node_id, channel, seq, state, cancelled_at),
      UPDATE (seq, state, cancelled_at) ON notifications_log TO :role;

-- operator --
-- `outbox retry`, `outbox republish`, and `dlq redrive` and `drop` of dead letters, in the story's database.
GRANT SELECT, UPDATE (published_at, publisher_node, kafka_partition, kafka_offset, failed_at, republished_at) ON outbox TO :role;
GRANT SELECT, INSERT (topic, "partition", "offset", written_at, outcome, new_partition, new_offset) ON dead_letters_settled TO :role;

-- redriver --
-- The operator, in the database of a downstream's inbox: `dlq redrive` calls the downstream's handler for parked events;
-- `dlq drop` writes their dedup rows.
GRANT SELECT, INSERT (consumer, outbox_id, event_id),
      UPDATE (event_id, earlier_ids, processed_at) ON processed_events TO :role;
GRANT INSERT (consumer, node_id, outbox_ids) ON redeliveries TO :role;
GRANT SELECT, UPDATE (outcome, settled_at) ON parked_events TO :role;
GRANT SELECT (consumer, lanes) ON downstreams TO :role;
GRANT EXECUTE ON FUNCTION make_partition TO :role;

-- Events of any type: columns for their headers, numbers within an aggregate, parking, cancels, downstreams.

-- Values of the record's headers. The version before leaves them empty: its rows are order.created.
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS event_id uuid;
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS event_type text;
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS aggregate_seq bigint;  -- 1, 2, 3 … within the aggregate
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS tenant_id text;
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS trace_id text;
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS traceparent text;
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS content_type text;  -- null: a Protobuf message
-- When an operator had the row published again: its record may then be behind those of later events of its aggregate.
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS republished_at timestamptz;

ALTER TABLE orders ADD COLUMN IF NOT EXISTS cancelled_at timestamptz;

-- The number of each aggregate's last event that outbox_add has added; the row is the aggregate's lock. An order's first
-- event is number 1 without a row here.
CREATE TABLE IF NOT EXISTS aggregates (
    aggregate_id text PRIMARY KEY,
    seq          bigint NOT NULL
);

-- Adds an event to the outbox in the caller's transaction, numbered within its aggregate, and returns its outbox id. The
-- aggregate stays locked to the end of the transaction: its events are in Kafka in the order in which they were committed.
-- `topic` NULL: the story's. `trace_id` NULL: that of the traceparent, else a new one. A malformed traceparent is left
-- out. The caller needs USAGE on the schema, SELECT, INSERT and UPDATE on aggregates, SELECT and INSERT on outbox,
-- and SELECT on orders. The function finds these tables whatever the caller's search_path is.
CREATE OR REPLACE FUNCTION outbox_add(
    topic text, aggregate_id text, event_type text, payload bytea,
    tenant_id text DEFAULT NULL, trace_id text DEFAULT NULL, traceparent text DEFAULT NULL,
    event_id uuid DEFAULT NULL, content_type text DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    into_topic text := coalesce(outbox_add.topic, 'usecase-09-01-order-created');
    tenant text := coalesce(outbox_add.tenant_id, 'brew');
    parent text := substring(outbox_add.traceparent FROM
        '^(?!ff)(?!00-.{53})[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.{0,200})?$');
    wrong text;
    number bigint;
    added bigint;
BEGIN
    wrong := CASE
        WHEN coalesce(octet_length(outbox_add.aggregate_id), 0) NOT BETWEEN 1 AND 1000
            THEN 'aggregate_id must have 1 to 1000 bytes'
        WHEN coalesce(octet_length(outbox_add.event_type), 0) NOT BETWEEN 1 AND 1000
            THEN 'event_type must have 1 to 1000 bytes'
        -- A record with an empty value is no event to those who read it.
        WHEN coalesce(octet_length(outbox_add.payload), 0) = 0
            THEN 'payload must not be empty'
        WHEN into_topic !~ '^[A-Za-z0-9._-]{1,249}$' OR into_topic IN ('.', '..')
            THEN 'topic must be 1 to 249 letters, digits, dots, "_" or "-"'
        WHEN tenant !~ '^[A-Za-z0-9._-]{1,64}$'
            THEN 'tenant_id must be 1 to 64 letters, digits, dots, "_" or "-"'
        WHEN octet_length(outbox_add.trace_id) > 1000
            THEN 'trace_id must have at most 1000 bytes'
        WHEN octet_length(outbox_add.content_type) > 1000
            THEN 'content_type must have at most 1000 bytes'
    END;
    IF wrong IS NOT NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = 'outbox_add: ' || wrong;
    END IF;
    INSERT INTO aggregates AS a (aggregate_id, seq) VALUES (outbox_add.aggregate_id, 1)
    ON CONFLICT (aggregate_id) DO UPDATE SET seq = a.seq + 1
    RETURNING a.seq INTO number;
    IF number = 1 THEN
        -- It may have events that were numbered without its row here: an order's first, whose outbox row may have been
        -- deleted since, or the version before's. Two halves: each has an index of its own.
        SELECT greatest(max(before.aggregate_seq), count(*),
                        (SELECT count(*) FROM orders o
                          WHERE o.id = substring(outbox_add.aggregate_id FROM
                                '^order-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$')::uuid)) + 1
          INTO number
          FROM (SELECT o.aggregate_seq FROM outbox o
                 WHERE o.aggregate_id = outbox_add.aggregate_id AND o.published_at IS NULL
                 UNION ALL
                SELECT o.aggregate_seq FROM outbox o
                 WHERE o.aggregate_id = outbox_add.aggregate_id AND o.published_at IS NOT NULL) AS before;
        UPDATE aggregates a SET seq = number WHERE a.aggregate_id = outbox_add.aggregate_id AND number > 1;
    END IF;
    INSERT INTO outbox (topic, aggregate_id, aggregate_seq, event_type, payload, event_id, tenant_id, trace_id,
                        traceparent, content_type)
    VALUES (into_topic, outbox_add.aggregate_id, number, outbox_add.event_type, outbox_add.payload,
            coalesce(outbox_add.event_id, gen_random_uuid()), tenant,
            coalesce(nullif(outbox_add.trace_id, ''), substr(parent, 4, 32), replace(gen_random_uuid()::text, '-', '')),
            parent, nullif(outbox_add.content_type, ''))
    RETURNING id INTO added;
    RETURN added;
END
$$;

-- The publishing lease: the node that publishes every node's rows, and when the lease ends. One row. Only the cost depends
-- on it: without it publishers skip each other's locked rows.
CREATE TABLE IF NOT EXISTS publishing (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    node_id text NOT NULL,
    ends_at timestamptz NOT NULL
);

-- The event id of the last event with this outbox id, and of those before it, where a restored database has used the
-- outbox id again. Null for an event without an id, and for rows of the version before.
ALTER TABLE processed_events ADD COLUMN IF NOT EXISTS event_id uuid;
ALTER TABLE processed_events ADD COLUMN IF NOT EXISTS earlier_ids uuid[];

-- Events that failed also when tried alone, and later events of their keys, with the records that they were read from.
-- While a key has an event without an outcome, later events of the key are parked behind it.
CREATE TABLE IF NOT EXISTS parked_events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer    text NOT NULL,
    key         text NOT NULL,
    seq         bigint,
    outbox_id   bigint NOT NULL,
    event_id    uuid,
    event_type  text NOT NULL,
    topic       text NOT NULL,
    "partition" integer NOT NULL,
    "offset"    bigint NOT NULL,
    written_ms  bigint NOT NULL,
    value       bytea NOT NULL,
    -- JSON: [name, text] for each header, or [name, null, hex] where the value is not UTF-8.
    headers     text NOT NULL,
    reason      text NOT NULL,
    -- How many tries failed; 0 for an event that was parked behind another.
    attempts    integer NOT NULL,
    parked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    outcome     text CHECK (outcome IN ('redriven', 'dropped')),
    settled_at  timestamptz
);
CREATE UNIQUE INDEX IF NOT EXISTS parked_events_once
    ON parked_events (consumer, outbox_id, coalesce(event_id, '00000000-0000-0000-0000-000000000000'));
CREATE INDEX IF NOT EXISTS parked_events_open
    ON parked_events (consumer, key, id) WHERE outcome IS NULL;

-- The MODULE:NAME that each consumer's name is registered for, so that no second downstream can use the name: it would
-- take a part of the events, and find others processed.
CREATE TABLE IF NOT EXISTS downstreams (
    consumer      text PRIMARY KEY,
    name          text NOT NULL,
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The seq of the last event that the reservation shows, and when it was released because the order was cancelled.
ALTER TABLE inventory_reservations ADD COLUMN IF NOT EXISTS seq bigint NOT NULL DEFAULT 1;
ALTER TABLE inventory_reservations ADD COLUMN IF NOT EXISTS released_at timestamptz;

-- The seq of the last event that the customer was notified of, the state in it, and when the customer was notified of the
-- cancel.
ALTER TABLE notifications_log ADD COLUMN IF NOT EXISTS seq bigint NOT NULL DEFAULT 1;
ALTER TABLE notifications_log ADD COLUMN IF NOT EXISTS state text NOT NULL DEFAULT 'created';
ALTER TABLE notifications_log ADD COLUMN IF NOT EXISTS cancelled_at timestamptz;

-- Whether a node publishes the outbox. Null for nodes of the version before, whose order nodes publish.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS publishes boolean;

-- Events of downstreams with lanes: taken from Kafka, with their dedup rows, and waiting for their handler. Only the oldest
-- row of a key may be handled: a lane leases it, renews the lease while the handler runs, and deletes the row in the commit
-- that ends the call. A row whose lease has expired can be leased again: its process was killed, or is paused.
CREATE TABLE IF NOT EXISTS waiting_events (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer    text NOT NULL,
    key         text NOT NULL,
    seq         bigint,
    outbox_id   bigint NOT NULL,
    event_id    uuid,
    event_type  text NOT NULL,
    -- The record, as in parked_events.
    topic       text NOT NULL,
    "partition" integer NOT NULL,
    "offset"    bigint NOT NULL,
    written_ms  bigint NOT NULL,
    value       bytea NOT NULL,
    headers     text NOT NULL,
    taken_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- How many failed tries count, and why the last try failed, counted or not; '' where it was only put back.
    attempts    integer NOT NULL DEFAULT 0,
    failure     text,
    next_try_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The lease of the running call, when it expires, and the node that has it.
    lease       uuid,
    lease_until timestamptz,
    node_id     text
);
CREATE INDEX IF NOT EXISTS waiting_events_in_order
    ON waiting_events (consumer, id);
CREATE INDEX IF NOT EXISTS waiting_events_by_key
    ON waiting_events (consumer, key, id);
-- The few rows that were put back, by the time of their next try.
CREATE INDEX IF NOT EXISTS waiting_events_failed
    ON waiting_events (consumer, next_try_at) WHERE failure IS NOT NULL;

-- Whether the group's nodes have lanes, as the last node that started had. If so, a redrive by a configuration without
-- lanes is refused: it would not run the nodes' handler. Null: no node has started since this column exists.
ALTER TABLE downstreams ADD COLUMN IF NOT EXISTS lanes boolean;

-- Events of downstreams with lanes: taken from Kafka, with their dedup rows, and waiting for their handler. The oldest
-- row of a key is the one that may be handled: a lane leases it, renews the lease while the handler runs, and deletes the
-- row in the commit that ends the call. A row whose lease is over is free again: its process is gone, or stands still.
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
    -- Tries that failed and count, and why the last one failed, counted or not: '' where it was only put back.
    attempts    integer NOT NULL DEFAULT 0,
    failure     text,
    next_try_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The call in hand, until when it is nobody else's, and on which node.
    lease       uuid,
    lease_until timestamptz,
    node_id     text
);
CREATE INDEX IF NOT EXISTS waiting_events_in_order
    ON waiting_events (consumer, id);
CREATE INDEX IF NOT EXISTS waiting_events_by_key
    ON waiting_events (consumer, key, id);
-- Those that were put back: few, and tried again by their time.
CREATE INDEX IF NOT EXISTS waiting_events_failed
    ON waiting_events (consumer, next_try_at) WHERE failure IS NOT NULL;

-- Whether the group's nodes have lanes, as the last one that started had: who redrives its events without them would
-- write rows, and call nobody. Null: none has started since this column is there.
ALTER TABLE downstreams ADD COLUMN IF NOT EXISTS lanes boolean;

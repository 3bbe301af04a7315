-- The Brew schema. Safe to apply again: it only creates what is missing.
-- Identity values are never restarted: a reused outbox id would make every
-- consumer swallow a new event as a duplicate.

CREATE TABLE IF NOT EXISTS orders (
    id              uuid PRIMARY KEY,
    tenant_id       text NOT NULL,
    customer_id     text NOT NULL,
    amount_cents    bigint NOT NULL CHECK (amount_cents > 0),
    currency        text NOT NULL,
    status          text NOT NULL,
    idempotency_key text,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX IF NOT EXISTS orders_idempotency_key
    ON orders (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

CREATE TABLE IF NOT EXISTS outbox (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    aggregate_id   text NOT NULL,
    topic          text NOT NULL,
    payload        bytea NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    published_at   timestamptz,
    publisher_node text,
    -- Where its record is, as Kafka acknowledged it.
    kafka_partition integer,
    kafka_offset    bigint,
    -- Set where Kafka will never take the row; later rows of its aggregate wait behind it.
    failed_at      timestamptz,
    failure        text,
    -- How often Kafka refused it.
    attempts       integer NOT NULL DEFAULT 0
);
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS attempts integer NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS kafka_partition integer;
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS kafka_offset bigint;
-- fetch_unpublished scans in id order, and looks each aggregate's oldest unpublished row up. The planner
-- can't take the one index for the other, whatever the statistics say: the look-up sees failed rows too.
DROP INDEX IF EXISTS outbox_unpublished;
CREATE INDEX IF NOT EXISTS outbox_ready
    ON outbox (id) WHERE published_at IS NULL AND failed_at IS NULL;
CREATE INDEX IF NOT EXISTS outbox_unpublished_by_aggregate
    ON outbox (aggregate_id, id) WHERE published_at IS NULL;
-- For whoever traces an order. Only of published rows: a Create pays nothing for it.
CREATE INDEX IF NOT EXISTS outbox_published_by_aggregate
    ON outbox (aggregate_id) WHERE published_at IS NOT NULL;

CREATE TABLE IF NOT EXISTS processed_events (
    consumer     text NOT NULL,
    outbox_id    bigint NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Written by older versions: how often it came again and was skipped, and when it last was.
    duplicates   integer NOT NULL DEFAULT 0,
    duplicate_at timestamptz,
    PRIMARY KEY (consumer, outbox_id)
);
ALTER TABLE processed_events ADD COLUMN IF NOT EXISTS duplicates integer NOT NULL DEFAULT 0;
ALTER TABLE processed_events ADD COLUMN IF NOT EXISTS duplicate_at timestamptz;

-- The events of a batch that a consumer had handled before, and skipped: one row a batch, an id for each time that it
-- came. Kept for a week, for `brewctl trace`; nothing relies on it.
CREATE TABLE IF NOT EXISTS redeliveries (
    consumer   text NOT NULL,
    node_id    text NOT NULL,
    came_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    outbox_ids bigint[] NOT NULL
);

CREATE TABLE IF NOT EXISTS inventory_reservations (
    order_id   uuid PRIMARY KEY,
    node_id    text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS notifications_log (
    order_id   uuid PRIMARY KEY,
    node_id    text NOT NULL,
    channel    text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Dead letters that were redriven or dropped. The time tells a letter from one that had its
-- place in a topic of the same name before.
CREATE TABLE IF NOT EXISTS dead_letters_settled (
    topic       text NOT NULL,
    "partition" integer NOT NULL,
    "offset"    bigint NOT NULL,
    written_at  timestamptz NOT NULL,
    outcome     text NOT NULL CHECK (outcome IN ('redriven', 'dropped')),
    -- Where a redriven one is now, in the topic that it had died in.
    new_partition integer,
    new_offset    bigint,
    settled_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, "partition", "offset", written_at)
);

-- One row a replica, written by itself every second: for whoever looks on, nothing relies on it.
-- One that was killed has no stopped_at, and an old seen_at.
CREATE TABLE IF NOT EXISTS nodes (
    node_id    text PRIMARY KEY,
    role       text NOT NULL,
    host       text NOT NULL,
    pid        integer NOT NULL,
    address    text NOT NULL,
    started_at timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL,
    stopped_at timestamptz,
    -- Since its start.
    processed  bigint NOT NULL DEFAULT 0,
    effects    bigint NOT NULL DEFAULT 0,
    skipped    bigint NOT NULL DEFAULT 0,
    dead       bigint NOT NULL DEFAULT 0,
    -- Another process of the same name, where one writes this row too.
    rival      text,
    -- What keeps it from its work; empty where nothing does.
    trouble    text NOT NULL DEFAULT ''
);
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS rival text;
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS trouble text NOT NULL DEFAULT '';

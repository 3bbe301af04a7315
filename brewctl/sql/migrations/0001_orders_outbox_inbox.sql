-- The first schema: orders with their outbox, and the tables of two downstreams.
-- brewctl never restarts identity values, but a restored database may use one again: so an event also has a UUID.

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
    failed_at      timestamptz,
    failure        text
);
CREATE INDEX IF NOT EXISTS outbox_unpublished
    ON outbox (id) WHERE published_at IS NULL;
CREATE INDEX IF NOT EXISTS outbox_unpublished_by_aggregate
    ON outbox (aggregate_id, id) WHERE published_at IS NULL;

CREATE TABLE IF NOT EXISTS processed_events (
    consumer     text NOT NULL,
    outbox_id    bigint NOT NULL,
    processed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, outbox_id)
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

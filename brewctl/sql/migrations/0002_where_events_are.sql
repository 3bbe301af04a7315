-- Where each event is in Kafka, how often it was refused or came again, what became of dead letters, who works.

ALTER TABLE outbox ADD COLUMN IF NOT EXISTS attempts integer NOT NULL DEFAULT 0;  -- how often Kafka refused it
-- Where its record is, as Kafka acknowledged it.
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS kafka_partition integer;
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS kafka_offset bigint;
-- fetch_unpublished scans in id order, and looks each aggregate's oldest unpublished row up. The planner
-- can't take the one index for the other, whatever the statistics say: the look-up sees failed rows too.
DROP INDEX IF EXISTS outbox_unpublished;
CREATE INDEX IF NOT EXISTS outbox_ready
    ON outbox (id) WHERE published_at IS NULL AND failed_at IS NULL;
-- For whoever traces an order. Only of published rows: a Create pays nothing for it.
CREATE INDEX IF NOT EXISTS outbox_published_by_aggregate
    ON outbox (aggregate_id) WHERE published_at IS NOT NULL;

-- Written by older versions: how often an event came again and was skipped, and when it last was.
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

-- One row a replica, written by itself every second: for whoever looks on. Nothing relies on it, but for a cancel, which
-- waits while an order node of the version before is there.
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
    dead       bigint NOT NULL DEFAULT 0
);
-- Another process of the same name, where one writes this row too.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS rival text;
-- What keeps it from its work; empty where nothing does.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS trouble text NOT NULL DEFAULT '';

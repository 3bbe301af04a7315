-- Adds each event's place in Kafka, counts of refusals and redeliveries, settled dead letters, and the replicas.

ALTER TABLE outbox ADD COLUMN IF NOT EXISTS attempts integer NOT NULL DEFAULT 0;  -- how often Kafka refused it
-- The place of the row's record, as Kafka acknowledged it.
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS kafka_partition integer;
ALTER TABLE outbox ADD COLUMN IF NOT EXISTS kafka_offset bigint;
-- fetch_unpublished scans rows in the order of ids, and looks up each aggregate's oldest unpublished row. Whatever the
-- statistics, the planner can't use this index for the look-up: that reads failed rows too.
DROP INDEX IF EXISTS outbox_unpublished;
CREATE INDEX IF NOT EXISTS outbox_ready
    ON outbox (id) WHERE published_at IS NULL AND failed_at IS NULL;
-- For `brewctl trace`. Only published rows are in it, so a Create does not write to it.
CREATE INDEX IF NOT EXISTS outbox_published_by_aggregate
    ON outbox (aggregate_id) WHERE published_at IS NOT NULL;

-- Written by older versions only: how often an event was redelivered and skipped, and when last.
ALTER TABLE processed_events ADD COLUMN IF NOT EXISTS duplicates integer NOT NULL DEFAULT 0;
ALTER TABLE processed_events ADD COLUMN IF NOT EXISTS duplicate_at timestamptz;

-- The events of a batch that a consumer has skipped because it had processed them: one row per batch, with the outbox id
-- once for each redelivery. Rows are kept for a week, for `brewctl trace`; no role depends on them.
CREATE TABLE IF NOT EXISTS redeliveries (
    consumer   text NOT NULL,
    node_id    text NOT NULL,
    came_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    outbox_ids bigint[] NOT NULL
);

-- Dead letters that were redriven or dropped. `written_at` tells a letter from one at the same offset of an earlier topic
-- with this name.
CREATE TABLE IF NOT EXISTS dead_letters_settled (
    topic       text NOT NULL,
    "partition" integer NOT NULL,
    "offset"    bigint NOT NULL,
    written_at  timestamptz NOT NULL,
    outcome     text NOT NULL CHECK (outcome IN ('redriven', 'dropped')),
    -- The place of a redriven letter's copy in the original topic.
    new_partition integer,
    new_offset    bigint,
    settled_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (topic, "partition", "offset", written_at)
);

-- One row per replica, which the replica writes every second, for tools. Of the roles only a cancel reads it: it is refused
-- while an order node of the version before runs. A replica that was killed has no stopped_at and an old seen_at.
CREATE TABLE IF NOT EXISTS nodes (
    node_id    text PRIMARY KEY,
    role       text NOT NULL,
    host       text NOT NULL,
    pid        integer NOT NULL,
    address    text NOT NULL,
    started_at timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL,
    stopped_at timestamptz,
    -- Counts since the replica's start.
    processed  bigint NOT NULL DEFAULT 0,
    effects    bigint NOT NULL DEFAULT 0,
    skipped    bigint NOT NULL DEFAULT 0,
    dead       bigint NOT NULL DEFAULT 0
);
-- Another process with the same name, which writes this row too.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS rival text;
-- Why the replica can't work now; empty where it can.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS trouble text NOT NULL DEFAULT '';

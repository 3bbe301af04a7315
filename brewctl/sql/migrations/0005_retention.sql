-- What `brewctl db retention` keeps of its work, and the index by which idempotency keys expire.

-- Orders up to this time may have events that were dropped, so many order.created among them.
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropped_until timestamptz;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropped_created bigint NOT NULL DEFAULT 0;
-- The partition that is being dropped: the next run finishes what a crash has cut off. What it added to the two above.
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropping text;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropping_from bigint;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropping_until bigint;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropping_created bigint NOT NULL DEFAULT 0;
-- Idempotency keys of orders before this time are gone.
ALTER TABLE retention ADD COLUMN IF NOT EXISTS keys_forgotten_until timestamptz;
-- Which run works, and until when the others leave it to that one.
ALTER TABLE retention ADD COLUMN IF NOT EXISTS node_id text;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS ends_at timestamptz;
-- The last whole run: when it ended, how many partitions may not go yet though they are full, and why the first may not.
ALTER TABLE retention ADD COLUMN IF NOT EXISTS ran_at timestamptz;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS held_back text NOT NULL DEFAULT '';
ALTER TABLE retention ADD COLUMN IF NOT EXISTS held_since timestamptz;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS refused boolean NOT NULL DEFAULT false;

-- Only of orders that still have their key, so its size is that of the days for which keys are kept. An order is added
-- at its right end.
CREATE INDEX IF NOT EXISTS orders_with_key
    ON orders (created_at) WHERE idempotency_key IS NOT NULL;

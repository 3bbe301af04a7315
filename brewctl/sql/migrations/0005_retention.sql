-- Adds the state of `brewctl db retention`, and the index by which idempotency keys expire.

-- Events of orders up to this time may have been dropped, and how many dropped events were order.created.
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropped_until timestamptz;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropped_created bigint NOT NULL DEFAULT 0;
-- The partition that is being dropped, so that the next run finishes an interrupted drop; its ids, and what it added to
-- dropped_created.
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropping text;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropping_from bigint;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropping_until bigint;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS dropping_created bigint NOT NULL DEFAULT 0;
-- Idempotency keys of orders before this time were deleted.
ALTER TABLE retention ADD COLUMN IF NOT EXISTS keys_forgotten_until timestamptz;
-- The lease of the run that works, and when it ends.
ALTER TABLE retention ADD COLUMN IF NOT EXISTS node_id text;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS ends_at timestamptz;
-- The last complete run: when it ended, why the first full partition had to stay, since when, and whether for a fault.
ALTER TABLE retention ADD COLUMN IF NOT EXISTS ran_at timestamptz;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS held_back text NOT NULL DEFAULT '';
ALTER TABLE retention ADD COLUMN IF NOT EXISTS held_since timestamptz;
ALTER TABLE retention ADD COLUMN IF NOT EXISTS refused boolean NOT NULL DEFAULT false;

-- Only orders that still have their key are in it, so its size follows from how long keys are kept. A Create adds to its
-- right end.
CREATE INDEX IF NOT EXISTS orders_with_key
    ON orders (created_at) WHERE idempotency_key IS NOT NULL;

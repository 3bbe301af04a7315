-- What was sold on each day, in each currency, without what was cancelled.
CREATE TABLE IF NOT EXISTS daily_revenue (
    day          date NOT NULL,
    currency     text NOT NULL,
    orders       bigint NOT NULL,
    amount_cents bigint NOT NULL,
    PRIMARY KEY (day, currency)
);

-- A cancellation says which order it is of, and not how much that was.
CREATE TABLE IF NOT EXISTS revenue_orders (
    order_id     uuid PRIMARY KEY,
    day          date NOT NULL,
    currency     text NOT NULL,
    amount_cents bigint NOT NULL
);

-- The orders of each day and currency that were not cancelled, and their amounts.
CREATE TABLE IF NOT EXISTS daily_revenue (
    day          date NOT NULL,
    currency     text NOT NULL,
    orders       bigint NOT NULL,
    amount_cents bigint NOT NULL,
    PRIMARY KEY (day, currency)
);

-- The amount of each order: an order.cancelled event has none.
CREATE TABLE IF NOT EXISTS revenue_orders (
    order_id     uuid PRIMARY KEY,
    day          date NOT NULL,
    currency     text NOT NULL,
    amount_cents bigint NOT NULL
);

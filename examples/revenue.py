"""A downstream in the batch form: the revenue of each day, in a few statements for hundreds of orders.

brewctl db init revenue:daily && brewctl start revenue:daily

A sum is right only if each event is added once. brewctl commits the event's dedup row and the sum in one transaction.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import Any

from brewctl import Event, OrderCancelled, OrderCreated, downstream

Sales = Counter[tuple[date, str]]


@downstream("revenue", schema="revenue.sql", done="SELECT order_id FROM revenue_orders")
def daily(events: Sequence[Event[OrderCreated | OrderCancelled]], tx: Any) -> None:
    """Add the orders to their days, and subtract the cancelled ones."""
    created = [event for event in events if event.type == "order.created"]
    cancelled = [event.data.order_id for event in events if event.type == "order.cancelled"]
    rows = [(e.data.order_id, e.occurred_at.date(), e.data.currency, e.data.amount_cents) for e in created]
    orders, cents = Sales(), Sales()
    if rows:
        columns = list(zip(*rows, strict=True))
        tx.execute(
            "INSERT INTO revenue_orders SELECT * FROM unnest(%s::text[]::uuid[], %s::date[], %s::text[], %s::bigint[])",
            [list(column) for column in columns],
        )
        for _, day, currency, amount_cents in rows:
            orders[day, currency] += 1
            cents[day, currency] += amount_cents
    if cancelled:
        found = tx.execute(
            "SELECT day, currency, amount_cents FROM revenue_orders WHERE order_id = ANY(%s::text[]::uuid[])",
            [cancelled],
        )
        for day, currency, amount_cents in found.fetchall():
            orders[day, currency] -= 1
            cents[day, currency] -= amount_cents
    # Sorted, so that two nodes lock the rows of the same days in the same order: else they could deadlock.
    days = sorted(orders)
    tx.execute(
        "INSERT INTO daily_revenue AS d"
        " SELECT * FROM unnest(%s::date[], %s::text[], %s::bigint[], %s::bigint[])"
        " ON CONFLICT (day, currency) DO UPDATE"
        " SET orders = d.orders + excluded.orders, amount_cents = d.amount_cents + excluded.amount_cents",
        [
            [day for day, _ in days],
            [currency for _, currency in days],
            [orders[each] for each in days],
            [cents[each] for each in days],
        ],
    )

"""A downstream that gives points for each order.

brewctl db init loyalty:points && brewctl start loyalty:points
"""

from typing import Any

from brewctl import Event, OrderCreated, downstream


@downstream(
    "loyalty",
    schema="CREATE TABLE IF NOT EXISTS points (order_id uuid PRIMARY KEY, points int NOT NULL)",
    done="SELECT order_id FROM points",
)
def points(event: Event[OrderCreated], tx: Any) -> None:
    """Give a point for each whole unit of the currency."""
    tx.execute("INSERT INTO points VALUES (%s, %s)", (event.data.order_id, event.data.amount_cents // 100))

"""inventory's effect of a new order, as a user would write it: a handler for each event, and one for each batch.

The bench compares both with inventory itself. Their table has the columns and keys of inventory's.
"""

from collections.abc import Sequence
from typing import LiteralString

from brewctl.delivery.database import Connection
from brewctl.delivery.downstream import downstream
from brewctl.delivery.events import Event
from brewctl.proto.orders_pb2 import OrderCreated

TABLE = "brewctl_bench"
_SCHEMA = f"CREATE TABLE IF NOT EXISTS {TABLE} (LIKE inventory_reservations INCLUDING ALL)"
INSERT: LiteralString = "INSERT INTO brewctl_bench (order_id, node_id, seq) VALUES (%s, 'bench', %s)"
_DONE = f"SELECT order_id, created_at FROM {TABLE}"  # noqa: S608


@downstream("brewctl-bench-event", schema=_SCHEMA, done=_DONE)
def each(event: Event[OrderCreated], tx: Connection) -> None:
    """Reserve one order's ingredients."""
    row = event.data.order_id, event.seq or 1
    tx.execute(INSERT, row)


@downstream("brewctl-bench-batch", schema=_SCHEMA, done=_DONE)
def batch(events: Sequence[Event[OrderCreated]], tx: Connection) -> None:
    """Reserve the ingredients of many orders."""
    tx.execute(
        "INSERT INTO brewctl_bench (order_id, node_id, seq)"
        " SELECT id, 'bench', seq FROM unnest(%s::uuid[], %s::bigint[]) AS fresh (id, seq)",
        ([event.data.order_id for event in events], [event.seq or 1 for event in events]),
    )

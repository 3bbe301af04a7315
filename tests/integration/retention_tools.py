"""A chain with small partitions, whose records can be removed, and retention that is stopped between two steps."""

from collections.abc import Sequence
from typing import Any

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.retention import retention
from brewctl.delivery.retention.plan import PartitionVerdict
from brewctl.delivery.retention.retention import RetentionOutcome
from brewctl.delivery.retention.turn import take_turn
from tests.integration.chain_tools import Chain, Row

ROWS = 10


def small_partitions(connection: BoundedConnection, rows: int = ROWS) -> None:
    """Give empty tables partitions of so few ids, the first from 0 on."""
    connection.execute("ALTER TABLE retention DROP CONSTRAINT IF EXISTS retention_partition_rows_check")
    connection.execute("INSERT INTO retention DEFAULT VALUES ON CONFLICT DO NOTHING")
    connection.execute("UPDATE retention SET partition_rows = %s", (rows,))
    for table in ("outbox", "processed_events"):
        if names := attached(connection, table):
            connection.execute(f"DROP TABLE {', '.join(names)}".encode())
            made = "SELECT make_partition(%s, place * %s) FROM generate_series(0, 3) AS place"
            connection.execute(made, (table, rows))


def attached(connection: BoundedConnection, table: str) -> list[str]:
    """Name a table's partitions, in the order of their ids."""
    found = connection.execute(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = to_regclass(%s) ORDER BY length(c.relname), c.relname",
        (table,),
    )
    return [name for (name,) in found]


def left(connection: BoundedConnection) -> list[str]:
    """Name tables that look like partitions, attached or not."""
    found = connection.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '_p[0-9]+_*$'")
    return [name for (name,) in found]


def fill(chain: Chain, count: int) -> list[Row]:
    """Publish so many orders, and let both groups have them."""
    rows = [chain.order() for _ in range(count)]
    for row in rows:
        chain.send(row)
    chain.consume()
    return rows


def remove_records(chain: Chain) -> None:
    """Remove every record of the topic, as its retention does in time."""
    chain.delete_records(chain.reader.bounds(chain.rig.settings.topic)[0][1])


def park(connection: BoundedConnection, consumer: str, outbox_id: int) -> None:
    """Park an event, which then waits to be redriven."""
    columns = 'key, event_type, topic, partition, "offset", written_ms, value, headers, reason, attempts'
    values = "'k', 'order.created', 't', 0, 0, 0, 'x', '[]', 'says the test', 1"
    insert = f"INSERT INTO parked_events (consumer, outbox_id, {columns}) VALUES (%s, %s, {values})"
    connection.execute(insert.encode(), (consumer, outbox_id))


def run(settings: Settings, **asked: Sequence[str]) -> RetentionOutcome:
    """Run retention once."""
    with database.connect(settings) as connection, take_turn(connection) as turn:
        return retention.Run(settings, connection, turn, lambda _text: None).drop(**asked)


def plan(settings: Settings, **asked: Sequence[str]) -> list[PartitionVerdict]:
    """Say of each partition whether it may go."""
    with database.connect(settings) as connection:
        return retention.plan(settings, connection, **asked)


def state(connection: BoundedConnection) -> dict[str, Any]:
    """Return what retention has noted."""
    names = ("dropped_below", "dropped_created", "dropping", "held_back", "refused", "node_id")
    row = connection.execute(f"SELECT {', '.join(names)} FROM retention".encode()).fetchone()
    return dict(zip(names, row or (), strict=True))

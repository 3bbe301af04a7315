"""The replicas, by the row in which each reports its state every second."""

from dataclasses import dataclass

from psycopg.rows import class_row

from brewctl.delivery.database import Connection
from brewctl.delivery.presence import EVERY_S
from brewctl.sql import queries

# A replica that has not written its row for so many seconds, three times in a row, is silent.
SILENT_S = 3 * EVERY_S


@dataclass(frozen=True)
class NodeRow:
    """A replica, by its own row. The counters are since its start."""

    name: str
    role: str  # order, publisher, or a downstream's group
    host: str
    pid: int
    address: str  # where it listens; "" for a consumer
    processed: int
    effects: int
    skipped: int
    dead: int
    stopped: bool  # whether it has shut down in order
    silent_s: float
    started_s: float  # since the epoch, by PostgreSQL's clock
    trouble: str = ""  # why it can't do its work
    publishes: bool = False  # whether it publishes outbox rows

    @property
    def there(self) -> bool:
        """Whether it wrote its row lately, and has not stopped."""
        return not self.stopped and self.silent_s < SILENT_S


def nodes(connection: Connection) -> list[NodeRow]:
    """Return all replicas, also those that ended within the last day: order-services first, then by name."""
    with connection.cursor(row_factory=class_row(NodeRow)) as cursor:
        return cursor.execute(queries["nodes"]).fetchall()

"""Which replicas there are: what each says of itself, in a row that it writes every second."""

from dataclasses import dataclass

from psycopg.rows import class_row

from brewctl.delivery.database import Connection
from brewctl.delivery.presence import EVERY_S
from brewctl.sql import queries

# Seconds of silence after which a replica is called silent: three rows in a row were not written.
SILENT_S = 3 * EVERY_S


@dataclass(frozen=True)
class NodeRow:
    """A replica as its own row has it. Its counters are those since its start."""

    name: str
    role: str  # order, publisher, or a downstream's group
    host: str
    pid: int
    address: str  # where it listens; "" of a consumer
    processed: int
    effects: int
    skipped: int
    dead: int
    stopped: bool  # it ended by itself
    silent_s: float
    started_s: float  # since the epoch, by PostgreSQL's clock
    trouble: str = ""  # what keeps it from its work
    publishes: bool = False  # the outbox's rows

    @property
    def there(self) -> bool:
        """Say whether it was heard of lately, and has not said that it stops."""
        return not self.stopped and self.silent_s < SILENT_S


def nodes(connection: Connection) -> list[NodeRow]:
    """Read the rows of all replicas, those that ended within the last day included: order-services first, by name."""
    with connection.cursor(row_factory=class_row(NodeRow)) as cursor:
        return cursor.execute(queries["nodes"]).fetchall()

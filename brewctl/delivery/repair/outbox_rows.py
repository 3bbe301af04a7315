"""Lists outbox rows that wait to be published, and puts rows that Kafka refused back into the queue."""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import class_row

from brewctl.delivery.database import Connection
from brewctl.sql import queries


@dataclass(frozen=True, slots=True)
class WaitingRow:
    """An unpublished outbox row. `head`: the first unpublished row of its aggregate, this one or one before it."""

    id: int
    aggregate_id: str
    topic: str
    bytes: int
    age_s: float
    attempts: int  # how often Kafka refused it
    set_aside: bool
    failure: str | None  # why it was set aside, last time
    head: int

    @property
    def state(self) -> str:
        """What the row waits for, for a table."""
        if self.set_aside:
            return "set aside"
        return "ready" if self.head == self.id else f"behind row {self.head}"


def waiting(connection: Connection, *, failed: bool = False, limit: int = 100) -> list[WaitingRow]:
    """Return unpublished rows, oldest first; `failed`: only those set aside."""
    with connection.cursor(row_factory=class_row(WaitingRow)) as cursor:
        return cursor.execute(queries["waiting_rows"], {"failed": failed, "limit": limit}).fetchall()


def retry(connection: Connection, ids: Sequence[int] | None = None) -> list[int]:
    """Put rows that were set aside back into the queue (`ids` None: all of them); return the ids that were set aside.

    Publishers take them at their next fetch. A row that Kafka refuses again is set aside again.
    """
    rows = connection.execute(queries["retry_rows"], {"ids": None if ids is None else list(ids)})
    return sorted(row_id for (row_id,) in rows)

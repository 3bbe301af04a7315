"""Outbox rows that wait to be published, and those among them that Kafka refused."""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import class_row

from brewctl.delivery.database import Connection
from brewctl.sql import queries


@dataclass(frozen=True, slots=True)
class WaitingRow:
    """An unpublished outbox row. `head` is the row of its aggregate that goes next: itself, or one before it."""

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
        """Say what it waits for."""
        if self.set_aside:
            return "set aside"
        return "ready" if self.head == self.id else f"behind row {self.head}"


def waiting(connection: Connection, *, failed: bool = False, limit: int = 100) -> list[WaitingRow]:
    """Read unpublished rows, oldest first; `failed`: just the ones set aside."""
    with connection.cursor(row_factory=class_row(WaitingRow)) as cursor:
        return cursor.execute(queries["waiting_rows"], {"failed": failed, "limit": limit}).fetchall()


def retry(connection: Connection, ids: Sequence[int] | None = None) -> list[int]:
    """Put rows that were set aside back into the queue, all of them without `ids`; return those that were there.

    Publishers take them at their next look. What Kafka refuses again is set aside again.
    """
    rows = connection.execute(queries["retry_rows"], {"ids": None if ids is None else list(ids)})
    return sorted(row_id for (row_id,) in rows)

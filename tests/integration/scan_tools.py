"""Publishers without a Kafka, that say how many rows of the outbox each of their fetches has read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.broker import Outcome, Place, Record
from brewctl.delivery.database import Connection, Pool
from brewctl.delivery.database.short_transaction import ShortTransaction
from brewctl.delivery.outbox.publisher import Publisher
from brewctl.delivery.outbox.scan import Fetched, Scan
from tests.conftest import Rig


def fill(rig: Rig, rows: int, aggregate: str, *, topic: str = "t") -> None:
    """Commit so many rows; `aggregate` says of which aggregate the n-th one is, in SQL."""
    columns = "aggregate_id, topic, payload, event_id, event_type, tenant_id, trace_id"
    values = f"{aggregate.replace('%', '%%')}, %(topic)s, 'x', gen_random_uuid(), 'e', 'brew', 't'"
    rig.connection.execute(
        f"INSERT INTO outbox ({columns}) SELECT {values} FROM generate_series(0, %(rows)s - 1) n",
        {"topic": topic, "rows": rows},
    )


def keep_vacuum_away(connection: Connection) -> None:
    """Nobody vacuums the outbox by himself, or analyzes it."""
    for (name,) in connection.execute("SELECT name::text FROM partitions_of('outbox')").fetchall():
        connection.execute(f"ALTER TABLE {name} SET (autovacuum_enabled = off)".encode())


def rows_read(connection: Connection | ShortTransaction) -> int:
    """Count what this session has read of the outbox and its indexes so far, dead entries of the indexes too."""
    ((count,),) = connection.execute(
        "SELECT sum(pg_stat_get_xact_tuples_returned(part.relid)"
        " + (SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid))"
        "      FROM pg_index WHERE indrelid = part.relid))::bigint"
        "  FROM pg_partition_tree('outbox') AS part"
    ).fetchall()
    assert isinstance(count, int)
    return count


class CountingScan(Scan):
    """Notes what each fetch has read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[int] = []

    def _fetch(self, transaction: ShortTransaction, asked: dict[str, Any], *, after: int, until: int) -> Fetched:
        before = rows_read(transaction)
        fetched = super()._fetch(transaction, asked, after=after, until=until)
        self.read.append(rows_read(transaction) - before)
        return fetched


class Instant:
    """Acknowledges what it is sent at once, and keeps it; `meanwhile` is called before."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.meanwhile = meanwhile
        self.sent: list[tuple[str, int]] = []  # aggregates, and outbox ids

    def send(self, records: Sequence[Record], *, timeout_s: float) -> list[Outcome]:
        assert timeout_s > 0
        self.meanwhile()
        self.sent += [((record.key or b"").decode(), int(dict(record.headers)["outbox-id"])) for record in records]
        return [Place(0, 0) for _ in records]

    def of(self, aggregate: str) -> list[int]:
        return [row_id for key, row_id in self.sent if key == aggregate]


class Reading(Publisher):
    """A publisher whose producer acknowledges at once."""

    def __init__(self, settings: Settings, pool: Pool, *, node: str = "n") -> None:
        super().__init__(settings, pool, node=node)
        self.scan = self._scan = CountingScan()
        self.producer: Any = Instant()

    def look(self) -> int:
        """Publish a batch, and return how many rows it had."""
        return self.publish_batch(self.producer)

    def look_until_nothing_is_left(self) -> list[int]:
        """Publish until it would rest, and return what each batch had."""
        found = [self.look()]
        while found[-1] or self._more:
            found.append(self.look())
        return found


@contextmanager
def reading(settings: Settings, count: int = 1) -> Iterator[list[Reading]]:
    """Publishers with a pool each, as their roles have it."""
    if not count:
        yield []
        return
    with (
        database.open_pool(settings, name="test", size=1, by_index=True) as pool,
        reading(settings, count - 1) as others,
    ):
        yield [Reading(settings, pool, node=f"n{count}"), *others]

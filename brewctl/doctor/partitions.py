"""Partitions: whether there are some for the ids that come next, in each database."""

from collections.abc import Iterator, Sequence

from brewctl.delivery.database import Connection
from brewctl.doctor.finding import Finding, ok, warn
from brewctl.sql import doctor_queries, exporter_queries

CHECK = "partitions"
_FEWEST = 2


def check(connection: Connection, last: int) -> Iterator[Finding]:
    """Count those ahead of `last`, the id of the outbox's last row. Says nothing of tables that have none."""
    counted = {table: ahead(connection, table, last) for table in ("outbox", "processed_events")}
    if found := [(table, count) for table, count in counted.items() if count is not None]:
        yield judge(CHECK, found)


def last_row(connection: Connection) -> int:
    """Return the highest id of the outbox's rows; 0 where it is empty."""
    (last,) = connection.execute(doctor_queries["last_row"]).fetchone() or (0,)
    return int(last)


def ahead(connection: Connection, table: str, last: int) -> int | None:
    """Count the partitions of a table that come next after an id without a gap; None where it has no partitions."""
    asked = {"table": table, "last": last}
    count, following = connection.execute(exporter_queries["partitions"], asked).fetchone() or (0, 0)
    return following if count else None


def judge(check: str, ahead: Sequence[tuple[str, int]], *, where: str = "") -> Finding:
    """Judge by how many partitions each table has whose ids are still to come."""
    said = ", ".join(f"{count} of {table}" for table, count in ahead) + where
    if min(count for _, count in ahead) < _FEWEST:
        what = f"ahead are {said}: whoever finds none for a row has to make it, and waits for that"
        return warn(check, what, mend="run `brewctl db retention`")
    return ok(check, f"ahead are {said}")

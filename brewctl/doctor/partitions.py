"""Whether each partitioned table has partitions for the next ids."""

from collections.abc import Iterator, Sequence

from brewctl.delivery.database import Connection
from brewctl.doctor.finding import Finding, ok, warn
from brewctl.sql import doctor_queries, exporter_queries

CHECK = "partitions"
_FEWEST = 2


def check(connection: Connection, last: int) -> Iterator[Finding]:
    """Judge the partitions for ids above `last`, the highest outbox id. Tables without partitions are left out."""
    counted = {table: ahead(connection, table, last) for table in ("outbox", "processed_events")}
    if found := [(table, count) for table, count in counted.items() if count is not None]:
        yield judge(CHECK, found)


def last_row(connection: Connection) -> int:
    """Return the highest id in the outbox; 0 where it is empty."""
    (last,) = connection.execute(doctor_queries["last_row"]).fetchone() or (0,)
    return int(last)


def ahead(connection: Connection, table: str, last: int) -> int | None:
    """Count the partitions that follow an id without a gap; None where the table is not partitioned."""
    asked = {"table": table, "last": last}
    count, following = connection.execute(exporter_queries["partitions"], asked).fetchone() or (0, 0)
    return following if count else None


def judge(check: str, ahead: Sequence[tuple[str, int]], *, where: str = "") -> Finding:
    """Warn where a table has fewer than two partitions for the next ids."""
    said = ", ".join(f"{count} of {table}" for table, count in ahead) + where
    if min(count for _, count in ahead) < _FEWEST:
        what = f"ahead are {said}: with none left, a write creates the next partition, and waits for a lock"
        return warn(check, what, mend="run `brewctl db retention`")
    return ok(check, f"ahead are {said}")

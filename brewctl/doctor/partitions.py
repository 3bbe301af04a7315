"""Partitions: whether there are some for the ids that come next."""

from collections.abc import Iterator, Sequence

from brewctl.delivery.database import Connection
from brewctl.doctor.finding import Finding, ok, warn
from brewctl.sql import doctor_queries, exporter_queries

_CHECK = "partitions"
_FEWEST = 2


def check(connection: Connection) -> Iterator[Finding]:
    """Count those ahead. Says nothing of tables that have none."""
    (last,) = connection.execute(doctor_queries["highest_id"]).fetchone() or (0,)
    found = []
    for table in ("outbox", "processed_events"):
        asked = {"table": table, "last": last}
        count, ahead = connection.execute(exporter_queries["partitions"], asked).fetchone() or (0, 0)
        found += [(table, ahead)] if count else []
    if found:
        yield judge(found)


def judge(ahead: Sequence[tuple[str, int]]) -> Finding:
    """Judge by how many partitions each table has whose ids are still to come."""
    said = ", ".join(f"{count} of {table}" for table, count in ahead)
    if min(count for _, count in ahead) < _FEWEST:
        what = f"ahead are {said}: whoever finds none for a row has to make it, and waits for that"
        return warn(_CHECK, what, mend="run `brewctl db retention`")
    return ok(_CHECK, f"ahead are {said}")

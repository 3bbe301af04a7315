"""Partitions: whether there are some for the ids that come next, in each database."""

from collections.abc import Iterator, Sequence

from brewctl.delivery.database import Connection
from brewctl.doctor.apart import Dedup
from brewctl.doctor.finding import Finding, ok, warn
from brewctl.sql import doctor_queries

_CHECK = "partitions"
_FEWEST = 2


def check(connection: Connection, apart: Sequence[Dedup] = ()) -> Iterator[Finding]:
    """Count those ahead. Says nothing of tables that have none. `apart`: the databases of downstreams' own."""
    if found := connection.execute(doctor_queries["partitions_ahead"]).fetchall():
        yield judge(_CHECK, [(str(table), int(ahead)) for table, ahead in found])
    for each in apart:
        if each.ahead is not None:
            yield judge(f"{_CHECK}-{each.groups}", [("processed_events", each.ahead)], where=f" in {each.where}")


def judge(check: str, ahead: Sequence[tuple[str, int]], *, where: str = "") -> Finding:
    """Judge by how many partitions each table has whose ids are still to come."""
    said = ", ".join(f"{count} of {table}" for table, count in ahead) + where
    if min(count for _, count in ahead) < _FEWEST:
        what = f"ahead are {said}: whoever finds none for a row has to make it, and waits for that"
        return warn(check, what, mend="run `brewctl db retention`")
    return ok(check, f"ahead are {said}")

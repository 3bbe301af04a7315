"""Whether the next outbox id is new. After a restored dump or a TRUNCATE … RESTART IDENTITY it may be a used one."""

from collections.abc import Iterator, Mapping, Sequence

from psycopg import sql

from brewctl.delivery.database import Connection
from brewctl.delivery.retention import retention
from brewctl.doctor.dedup import DedupState
from brewctl.doctor.finding import Finding, fail, ok, warn
from brewctl.sql import doctor_queries

_CHECK = "outbox-ids"


def check(connection: Connection, apart: Sequence[DedupState] = ()) -> Iterator[Finding]:
    """Compare the id sequence with the outbox, and with the ids that were processed or dropped.

    Yields nothing where this user may not read the sequence. `apart`: the dedup rows in databases of downstreams.
    """
    # The table is read first: a row that is added between the two reads only moves the sequence on.
    found = connection.execute(doctor_queries["outbox_ids"]).fetchone()
    if found is None:
        return
    name, schema, relation, rows, processed = found
    below = retention.watermark(connection)
    sequence = sql.Identifier(schema, relation)
    asked = connection.execute(sql.SQL("SELECT last_value + is_called::int FROM {}").format(sequence)).fetchone()
    if asked is not None:
        yield judge(
            name,
            following=asked[0],
            rows=rows,
            processed=max((processed, *(each.processed for each in apart))),
            below=below,
            elsewhere={each.where: each.dropped_below for each in apart},
        )


def judge(
    sequence: str, *, following: int, rows: int, processed: int, below: int, elsewhere: Mapping[str, int]
) -> Finding:
    """Compare the next id with the highest id of the table, and with the highest that a consumer has processed.

    `below`: retention dropped the outbox rows of smaller ids. `elsewhere`: the same bound for each database of
    downstreams, by its place.
    """
    ahead = {where: dropped for where, dropped in elsewhere.items() if dropped > following}
    beyond = max(rows, processed, *(dropped - 1 for dropped in (below, *ahead.values())))
    mend = f"in psql: `SELECT setval({sql.quote(sequence)}, {beyond});`"
    if following <= rows:
        return fail(_CHECK, f"the next is {following}, and the outbox has {rows}: new rows will be refused", mend=mend)
    if following < below:
        what = f"rows below {below} were dropped: new orders will be refused"
        return fail(_CHECK, f"the next is {following}, and {what}", mend=mend)
    if ahead:
        said = ", ".join(f"below {dropped} in {where}" for where, dropped in ahead.items())
        what = f"rows were dropped {said}: new events will become dead letters there"
        mend = f"{mend} in the orders' database; then see docs/operations.md, backup and restore"
        return fail(_CHECK, f"the next is {following}, and {what}", mend=mend)
    if following <= processed:
        what = "an event without an event-id would be taken for a repeat"
        found = f"the next is {following}, and {processed} was processed before: {what}"
        return warn(_CHECK, found, mend=f"unless another outbox gave it out, {mend}")
    return ok(_CHECK, f"the next is {following}, which is new")

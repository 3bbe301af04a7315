"""Outbox ids: whether the next one is new. After a restored dump or a TRUNCATE … RESTART IDENTITY it may not be."""

from collections.abc import Iterator, Mapping, Sequence

from psycopg import sql

from brewctl.delivery.database import Connection
from brewctl.delivery.retention import retention
from brewctl.doctor.dedup import Dedup
from brewctl.doctor.finding import Finding, fail, ok, warn
from brewctl.sql import doctor_queries

_CHECK = "outbox-ids"


def check(connection: Connection, apart: Sequence[Dedup] = ()) -> Iterator[Finding]:
    """Compare the sequence with its table, and with what was processed and dropped.

    Says nothing where it may not be read. `apart`: the databases of downstreams' own.
    """
    # The table first: what is written between the two looks only moves the sequence on.
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
    """Judge by the id that is given next, the highest of the table and the highest that a consumer has processed.

    `below`: rows of smaller ids are dropped ones; `elsewhere`: so they are in each database of downstreams' own.
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
        mend = f"{mend} in the orders' database; docs/operations.md, backup and restore, has what comes then"
        return fail(_CHECK, f"the next is {following}, and {what}", mend=mend)
    if following <= processed:
        what = "an event without an event-id would be taken for a repeat"
        found = f"the next is {following}, and {processed} was processed before: {what}"
        return warn(_CHECK, found, mend=f"unless another outbox gave it out, {mend}")
    return ok(_CHECK, f"the next is {following}, which is new")

"""Outbox ids: whether the next one is new. After a restored dump or a TRUNCATE … RESTART IDENTITY it may not be."""

import contextlib
from collections.abc import Iterator, Sequence

from psycopg import sql

from brewctl.delivery import homes
from brewctl.delivery.database import Connection
from brewctl.delivery.homes import Home
from brewctl.doctor.finding import Finding, fail, ok, warn
from brewctl.errors import BrewError
from brewctl.sql import doctor_queries

_CHECK = "outbox-ids"


def check(connection: Connection, apart: Sequence[Home] = ()) -> Iterator[Finding]:
    """Compare the sequence with its table and with what was processed. Says nothing where it may not be read.

    `apart`: the databases of downstreams' own, where these have processed; one that can't be asked is another check's.
    """
    # The table first: what is written between the two looks only moves the sequence on.
    found = connection.execute(doctor_queries["outbox_ids"]).fetchone()
    if found is None:
        return
    name, schema, relation, rows, processed = found
    sequence = sql.Identifier(schema, relation)
    asked = connection.execute(sql.SQL("SELECT last_value + is_called::int FROM {}").format(sequence)).fetchone()
    for home in apart:
        with contextlib.suppress(BrewError), homes.connect(home, name="brewctl doctor") as own:
            (highest,) = own.execute(doctor_queries["highest_processed"], {"groups": home.groups}).fetchone() or (0,)
            processed = max(processed, highest)
    if asked is not None:
        yield judge(name, following=asked[0], rows=rows, processed=processed)


def judge(sequence: str, *, following: int, rows: int, processed: int) -> Finding:
    """Judge by the id that is given next, the highest of the table and the highest that a consumer has processed."""
    quoted = "'" + sequence.replace("'", "''") + "'"
    mend = f"in psql: `SELECT setval({quoted}, {max(rows, processed)});`"
    if following <= rows:
        return fail(_CHECK, f"the next is {following}, and the outbox has {rows}: new rows will be refused", mend=mend)
    if following <= processed:
        what = "an event without an event-id would be taken for a repeat"
        found = f"the next is {following}, and {processed} was processed before: {what}"
        return warn(_CHECK, found, mend=f"unless another outbox gave it out, {mend}")
    return ok(_CHECK, f"the next is {following}, which is new")

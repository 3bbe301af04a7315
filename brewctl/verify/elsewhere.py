"""Copy the rows of downstreams in other databases to files, for the temporary tables of a verification.

They are copied before the snapshot of the story's database is taken. So for each effect in them, that snapshot has the
order and the outbox row. Each database is read in a snapshot of its own, which is held only while rows are copied.
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple

import psycopg
from psycopg import sql

from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.schema import homes
from brewctl.delivery.schema.homes import Home
from brewctl.sql import verify_queries
from brewctl.verify import bounds, done

Bounded = Callable[[], contextlib.AbstractContextManager[None]]
# The query that copies the rows out, and the one that copies them into the workspace.
_COPIES = {"elsewhere_processed": "copy_elsewhere_processed", "elsewhere_parked": "copy_elsewhere_parked"}


class CopiedRows(NamedTuple):
    """Rows for a table of the workspace, in COPY's format; for the table `effect`, of which group."""

    query: str  # copies them into the table
    file: IO[bytes]
    group: str = ""
    has_status: bool = False


@contextlib.contextmanager
def copied(apart: Sequence[Home], *, statement_s: float) -> Iterator[list[CopiedRows]]:
    """Copy the rows of these databases. Raises UnreachableError; BrewError where a table is missing or `done` fails."""
    with contextlib.ExitStack() as stack:
        found: list[CopiedRows] = []
        for home in apart:
            with homes.connect(home, name="verify") as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                bounded = functools.partial(bounds.bounded, home.settings, connection, statement_s=statement_s)
                with connection.transaction():
                    connection.execute(verify_queries["bounds"], bounds.parameters(statement_s) | {"local": True})
                    connection.execute("SET TRANSACTION READ ONLY")
                    found += _copy(home, connection, stack, bounded)
        yield found


def _copy(
    home: Home, connection: BoundedConnection, stack: contextlib.ExitStack, bounded: Bounded
) -> Iterator[CopiedRows]:
    for asked, copied_in in _COPIES.items():
        file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        with bounded(), connection.cursor().copy(verify_queries[asked], {"groups": home.groups}) as copy:
            file.writelines(copy)
        yield CopiedRows(copied_in, file)
    (there,) = connection.execute(verify_queries["has_ledger"]).fetchone() or (False,)
    if there:
        file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        with bounded(), connection.cursor().copy(verify_queries["elsewhere_ledger"], {"groups": home.groups}) as copy:
            file.writelines(copy)
        yield CopiedRows("copy_ledger", file)
    for downstream in home.downstreams:
        if not downstream.done:
            continue
        file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        with done.explained(downstream, init_command=home.settings.init_command), bounded():
            seen = done.look(connection, downstream)
            statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT BINARY)").format(seen.rows)
            with connection.cursor().copy(statement) as copy:
                file.writelines(copy)
        yield CopiedRows("copy_effect", file, downstream.group, seen.has_status)

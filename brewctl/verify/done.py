"""The `done` query of a downstream. Its first column is an order id; it may have a column `order_status`."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import psycopg
from psycopg import sql

from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError


class Done(NamedTuple):
    """A statement that selects rows for the table `effect`, and whether they have the order's status."""

    rows: sql.Composable
    has_status: bool


def look(connection: BoundedConnection, downstream: Downstream) -> Done:
    """Find out which columns the query has, in the caller's transaction. Raises psycopg.Error."""
    text = downstream.done.strip().rstrip(";")  # trusted: the user who runs the command wrote it
    table = sql.SQL("(\n{}\n) AS done (order_id)").format(sql.SQL(text))
    columns = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(table)).description or ()
    has_status = any(column.name == "order_status" for column in columns[1:])
    status = sql.SQL("done.order_status::text" if has_status else "NULL::text")
    named = sql.SQL("SELECT {}::text, done.order_id::uuid, {} FROM {}")
    return Done(named.format(downstream.group, status, table), has_status)


@contextlib.contextmanager
def explained(downstream: Downstream, *, init_command: str = "") -> Iterator[None]:
    """Turn an error of PostgreSQL about the query into a BrewError with a hint."""
    try:
        yield
    except psycopg.errors.QueryCanceled:
        raise
    except (psycopg.ProgrammingError, psycopg.DataError) as error:
        said = " ".join((error.diag.message_primary or str(error)).split())
        raise BrewError(
            f"the `done` query of downstream {downstream.group} fails: {said}",
            hint="where its table is missing: run "
            + (f"`{init_command}`" if init_command else "`brewctl db init MODULE:NAME` of that downstream"),
        ) from error

"""Makes the partition for a row that has none, so that the row can be written again.

`brewctl db retention` makes partitions ahead. Where it does not run, the role that finds no partition for a row makes
it with the rights of the tables' owner (make_partition), and writes the row again.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg

from brewctl import log
from brewctl.delivery.database.bounded import BoundedConnection
from brewctl.sql import queries

logger = log.get(__name__)

_TABLES = frozenset({"outbox", "processed_events"})
_HINT = "run `brewctl db retention` as the owner of the tables: it makes partitions ahead"
_failure = log.Seldom(logger, "no_partition", every_s=10.0)

Answer = TypeVar("Answer")


class NoPartitionError(psycopg.OperationalError):
    """A row has no partition, and it can't be made now. Nothing was written."""


def table_of(error: BaseException) -> str:
    """Return the table that has no partition for a row, where that is the error; else ""."""
    if not isinstance(error, psycopg.errors.CheckViolation) or error.diag.constraint_name:
        return ""
    table = error.diag.table_name or ""
    return table if table in _TABLES else ""


def make(connection: BoundedConnection, table: str, row_id: int | None = None) -> str:
    """Make the partition for an id (None: for the next outbox id); return why the id is refused, or "".

    Raises NoPartitionError where it can't be made now; the log says why, and what to run.
    """
    try:
        connection.execute(queries["make_partition"], {"table": table, "id": row_id})
    except psycopg.errors.NumericValueOutOfRange as error:
        if row_id is not None:
            return said(error)
        raise _failed(table, error) from error
    except psycopg.Error as error:
        if connection.closed:
            raise
        raise _failed(table, error) from error
    return ""


def make_ahead(connection: BoundedConnection, row_id: int) -> None:
    """Make the partition that follows this outbox row's: callers of outbox_add can't make it in their transactions.

    Where it can't be made now the log says why, and the publisher tries again after a later row.
    """
    try:
        connection.execute(queries["make_partition_ahead"], {"id": row_id})
    except psycopg.Error as error:
        if connection.closed:
            raise
        _failure.warn(table="outbox", reason=said(error), hint=_HINT)


def _failed(table: str, error: psycopg.Error) -> NoPartitionError:
    why = said(error)
    _failure.warn(table=table, reason=why, hint=_HINT)
    return NoPartitionError(f"{table} has no partition for the next row: {why}")


def said(error: psycopg.Error) -> str:
    """Return make_partition's error as one line."""
    text = error.diag.message_primary or log.reason(error)
    return " ".join(text.removeprefix("make_partition: ").split())


def with_room(connection: BoundedConnection, action: Callable[[], Answer]) -> Answer:
    """Return what `action` returns, which writes rows; where a row has no partition, make it and call `action` again.

    Must be called outside a transaction. Raises NoPartitionError, and what `action` raises.
    """
    try:
        return action()
    except psycopg.errors.CheckViolation as error:
        if not (table := table_of(error)):
            raise
        make(connection, table)
    try:
        return action()
    except psycopg.errors.CheckViolation as error:
        if not (table := table_of(error)):
            raise
        raise _failed(table, error) from error  # it was made for another table, such as one of another schema


def without(connection: BoundedConnection, ids: Sequence[int]) -> list[int]:
    """Return those of these outbox ids that have no partition in processed_events."""
    return [row_id for (row_id,) in connection.execute(queries["ids_without_partition"], {"ids": list(ids)})]

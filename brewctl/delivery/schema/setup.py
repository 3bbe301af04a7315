"""The tables that roles need: finds missing ones, requires them, makes them and empties them."""

import re
from collections.abc import Callable, Collection

from brewctl.config import Settings
from brewctl.delivery.database import BoundedConnection, Connection, table_locks
from brewctl.delivery.schema import parts, versions
from brewctl.errors import NotYetError
from brewctl.sql import queries


def missing_tables(
    connection: Connection, *, reading: bool = False, tables: Collection[str] | None = None
) -> list[str]:
    """Return the missing tables, columns, keys and indexes that roles need. Locks no table.

    `reading`: only those that a query needs, so no key and no index. `tables`: only of these.
    """
    lacking = versions.lacking(connection, tables)
    return [str(part) for part in lacking if (part.is_read if reading else part.is_needed)]


def require(
    connection: Connection,
    *,
    reading: bool = False,
    tables: Collection[str] | None = None,
    init_command: str = versions.INIT,
) -> None:
    """Raise NotYetError where something is missing that roles need, or with `reading`, that a query needs."""
    if missing := missing_tables(connection, reading=reading, tables=tables):
        raise NotYetError(
            f"missing in postgres: {', '.join(missing)}", hint=f"run `{versions.command(missing, init_command)}`"
        )


def required(settings: Settings, tables: Collection[str] | None = None) -> Callable[[BoundedConnection], None]:
    """Return a check for a pool's first connection: it raises NotYetError where one of these tables is missing."""
    return lambda connection: require(connection, tables=tables, init_command=settings.init_command)


def initialize(
    connection: BoundedConnection,
    *,
    reset: bool = False,
    tell: table_locks.Tell = lambda _text: None,
    tables: Collection[str] | None = None,
) -> None:
    """Add the missing parts of the schema, or of some `tables`, while roles use them; `reset` also empties the tables.

    With a complete schema, or a newer program's, it runs and locks nothing. Raises BrewError, which names the session
    at fault, where a table is in use for longer than schema_wait_s; `tell` gets a line about the wait before.
    """
    versions.bring_up(connection, tell, tables)
    if reset:
        table_locks.change(connection, parts.TABLES, _emptying(tables), tell)


def _emptying(tables: Collection[str] | None) -> str:
    """Return the statement that empties all tables of the schema, or only these."""
    if tables is None:
        return queries["reset"]
    every = [name for name in re.findall(r"\w+", queries["reset"]) if name in parts.TABLES]
    return f"TRUNCATE {', '.join(name for name in every if name in tables)} CONTINUE IDENTITY"

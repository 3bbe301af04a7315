"""The tables that the roles need: missing, required, made, or emptied."""

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
    """Name the tables, columns, keys and indexes that the roles need and that are not there. Locks no table.

    `reading`: only what a query fails without, so no key and no index. `tables`: only of these.
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
    """Raise BrewError where something that the roles need is missing, or, with `reading`, that a query needs."""
    if missing := missing_tables(connection, reading=reading, tables=tables):
        raise NotYetError(
            f"missing in postgres: {', '.join(missing)}", hint=f"run `{versions.command(missing, init_command)}`"
        )


def required(settings: Settings, tables: Collection[str] | None = None) -> Callable[[BoundedConnection], None]:
    """Return a check for a pool's first connection: that all these tables are there, or the whole schema."""
    return lambda connection: require(connection, tables=tables, init_command=settings.init_command)


def initialize(
    connection: BoundedConnection,
    *,
    reset: bool = False,
    tell: table_locks.Tell = lambda _text: None,
    tables: Collection[str] | None = None,
) -> None:
    """Add what is missing of the schema, or of some `tables`, beside roles at work; `reset` also empties them.

    On a complete schema, or a newer program's, it runs nothing and locks nothing. Raises BrewError, which names the
    session at fault, where a table is in use for longer than schema_wait_s; `tell` hears of it before.
    """
    versions.bring_up(connection, tell, tables)
    if reset:
        table_locks.change(connection, parts.TABLES, _emptying(tables), tell)


def _emptying(tables: Collection[str] | None) -> str:
    """Return the statement that empties the tables of the schema, or those of them that are named."""
    if tables is None:
        return queries["reset"]
    every = [name for name in re.findall(r"\w+", queries["reset"]) if name in parts.TABLES]
    return f"TRUNCATE {', '.join(name for name in every if name in tables)} CONTINUE IDENTITY"

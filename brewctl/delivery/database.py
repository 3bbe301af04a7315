"""PostgreSQL: connections, the pool, the schema, and its errors in the user's words."""

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from brewctl.config import Settings
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.sql import queries, schema

Connection = psycopg.Connection[TupleRow]
Pool = ConnectionPool[Connection]

_EXAMPLE = "use postgresql://USER@HOST:PORT/NAME"
_PORTS = 65536
# What a lost, refused or overloaded server raises, or one that gave up on a paused process; everything else is
# the statement's own fault.
UNAVAILABLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    PoolTimeout,
)


def place(url: str) -> str:
    """Say where a database is without its secrets: host:port/name."""
    try:
        parts = conninfo_to_dict(url)
        ports = [int(port) for port in str(parts.get("port", "5432")).split(",") if port]
    except (psycopg.ProgrammingError, ValueError):
        # libpq's own message quotes the text, password and all.
        raise UsageError("BREW_DATABASE_URL is no PostgreSQL URL", hint=_EXAMPLE) from None
    if not all(0 < port < _PORTS for port in ports):
        raise UsageError(f"BREW_DATABASE_URL has no such port: {ports[0]}", hint=_EXAMPLE)
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    return f"{host}:{parts.get('port', 5432)}/{parts.get('dbname', parts.get('user', ''))}"


@contextlib.contextmanager
def connect(settings: Settings) -> Iterator[Connection]:
    """One autocommit connection, for a command. Raises UnreachableError, BrewError."""
    with explained(settings), psycopg.connect(**_arguments(settings, "brewctl")) as connection:
        yield connection


@contextlib.contextmanager
def open_pool(settings: Settings, *, name: str, size: int) -> Iterator[Pool]:
    """A pool of at most `size` autocommit connections, each checked before it is handed out.

    The first connection is made now: raises UnreachableError where that fails, BrewError where the schema is missing.
    """
    with connect(settings) as connection:
        check_schema(connection)
    pool: Pool = ConnectionPool(
        kwargs=_arguments(settings, name),
        min_size=1,
        max_size=size,
        timeout=settings.limits.database_wait_s,
        reconnect_timeout=settings.limits.database_wait_s,
        check=ConnectionPool.check_connection,
        name=name,
        open=True,
    )
    with pool:
        yield pool


def missing_tables(connection: Connection) -> list[str]:
    """Name the tables, and the columns of later versions, that are not there."""
    return [str(name) for (name,) in connection.execute(queries["missing_tables"])]


def check_schema(connection: Connection) -> None:
    """Raise BrewError where a table is missing."""
    if missing := missing_tables(connection):
        plural = "s are" if len(missing) > 1 else " is"
        raise BrewError(f"table{plural} missing in postgres ({', '.join(missing)})", hint="run `brewctl db init`")


def initialize(connection: Connection, *, reset: bool = False) -> None:
    """Create what is missing of the schema, in one transaction; `reset` also empties every table."""
    with connection.transaction():
        connection.execute(schema)
        if reset:
            # A role in the middle of a transaction is waited for, but not for ever.
            connection.execute("SET LOCAL lock_timeout = '10s'")
            connection.execute(queries["reset"])


@contextlib.contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Turn psycopg's errors into the user's: which server, where, what to run."""
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        message = str(error).splitlines()[0].replace('"', "")
        raise BrewError(f"postgres {place(settings.database_url)}: {message}", hint="run `brewctl db init`") from error
    except psycopg.errors.LockNotAvailable as error:
        raise BrewError(
            f"postgres {place(settings.database_url)}: the tables are in use", hint="stop the roles that use them"
        ) from error
    except UNAVAILABLE as error:
        if "invalid" in str(error) and "value" in str(error):  # an option of the URL, such as sslmode
            raise UsageError(f"BREW_DATABASE_URL: {str(error).splitlines()[0]}", hint=_EXAMPLE) from error
        hint = "run `brewctl up`, or set BREW_DATABASE_URL"
        raise UnreachableError(f"postgres {place(settings.database_url)} {_reason(error)}", hint=hint) from error
    except psycopg.Error as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BrewError(f"postgres {place(settings.database_url)}: {reason}") from error


def _arguments(settings: Settings, name: str) -> dict[str, Any]:
    place(settings.database_url)  # a malformed URL is a usage error
    limits = settings.limits
    given = conninfo_to_dict(settings.database_url)
    return {
        # A peer that vanished without a goodbye is noticed within about 20 s.
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
        "connect_timeout": limits.database_connect_s,
        "application_name": name,
        **given,
        "options": f"-c statement_timeout={limits.database_statement_s}s"
        f" -c idle_in_transaction_session_timeout={limits.database_idle_transaction_s}s {given.get('options', '')}",
        "autocommit": True,
    }


def _reason(error: Exception) -> str:
    text = str(error).lower()
    for mark, reason in (
        ("refused", "refused the connection"),
        ("password authentication failed", "refused the password"),
        ("no password supplied", "wants a password"),
        ("does not exist", "has no such database or role"),
        ("timeout", "did not answer in time"),
        ("too many clients", "has no connection left"),
        ("starting up", "is still starting"),
        ("shutting down", "is shutting down"),
        ("name or service not known", "is an unknown host"),
        ("could not translate host name", "is an unknown host"),
        ("failed to resolve host", "is an unknown host"),
    ):
        if mark in text:
            return reason
    lines = str(error).strip().splitlines()
    return f"failed ({lines[0]})" if lines else f"failed ({type(error).__name__})"

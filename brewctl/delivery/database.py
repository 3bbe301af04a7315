"""PostgreSQL: connections, the pool, the schema, and its errors in the user's words."""

import contextlib
import getpass
import os
import select
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool, PoolTimeout

from brewctl.config import Settings
from brewctl.delivery import advice, bounded, rights, schema, table_locks, versions
from brewctl.delivery.session import Session, blamed, server
from brewctl.errors import BrewError, NotYetError, UnreachableError, UsageError
from brewctl.sql import queries

Connection = bounded.Connection
BoundedConnection = bounded.BoundedConnection
NoAnswerError = bounded.NoAnswerError

_EXAMPLE = "use postgresql://USER@HOST:PORT/NAME"
_ANOTHER_MODE = "set `pool_mode = transaction` there, or name postgres itself in BREW_DATABASE_URL"
_PORTS = 65536
_NO_WRITES = "takes no writes"  # a standby, or read-only
_SLICE_S = 0.1
# What a lost, refused or overloaded server raises, one that gave up on a paused process, or one that another has
# taken the lead from; everything else is the statement's own fault.
UNAVAILABLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
    PoolTimeout,
)


Answer = TypeVar("Answer")
Pool = ConnectionPool[BoundedConnection]


def place(url: str) -> str:
    """Say where a database is without its secrets: host:port/name."""
    try:
        parts = conninfo_to_dict(url)
        named = str(parts.get("port") or "").split(",")
        ports = [int(port) for port in named if port]
    except (psycopg.ProgrammingError, ValueError):
        # libpq's own message quotes the text, password and all.
        raise UsageError("BREW_DATABASE_URL is no PostgreSQL URL", hint=_EXAMPLE) from None
    if wrong := [port for port in ports if not 0 < port < _PORTS]:
        raise UsageError(f"BREW_DATABASE_URL has no such port: {wrong[0]}", hint=_EXAMPLE)
    # What the URL leaves out the shell may say.
    hosts = str(parts.get("host") or parts.get("hostaddr") or os.environ.get("PGHOST") or "localhost").split(",")
    usual = os.environ.get("PGPORT") or "5432"
    if len(named) == 1:  # for all hosts
        named *= len(hosts)
    elif len(named) != len(hosts):
        raise UsageError(f"BREW_DATABASE_URL has {len(named)} ports for {len(hosts)} hosts", hint=_EXAMPLE)
    where = ",".join(f"{host}:{port or usual}" for host, port in zip(hosts, named, strict=True))
    name = parts.get("dbname") or os.environ.get("PGDATABASE") or parts.get("user") or os.environ.get("PGUSER") or ""
    return f"{where}/{name}"


@contextlib.contextmanager
def connect(settings: Settings, *, name: str = "brewctl") -> Iterator[BoundedConnection]:
    """One autocommit connection. Raises UnreachableError, BrewError, in what is done with it too."""
    with explained(settings), BoundedConnection.connect(session=_session(settings, name)) as connection:
        yield connection


@contextlib.contextmanager
def open_pool(
    settings: Settings,
    *,
    name: str,
    size: int,
    statement_s: float | None = None,
    lock_s: float = 0,
    tables: Collection[str] | None = None,
    by_index: bool = False,
) -> Iterator[Pool]:
    """A pool of at most `size` autocommit connections, each checked before it is handed out.

    The server ends each statement after `statement_s` seconds (default: database_statement_s), and its wait for a
    lock after `lock_s` (0: no sooner). `by_index`: its statements read no table from one end to the other, whatever the
    statistics say, as those of a queue. The first connection is made now: raises UnreachableError where that fails,
    BrewError where the schema is missing, or, of it, one of `tables`.
    """
    with connect(settings, name=name) as connection:
        require_writable(connection, settings)
        check_schema(connection, tables=tables, init_command=settings.init_command)
    made: weakref.WeakSet[BoundedConnection] = weakref.WeakSet()
    pool: Pool = ConnectionPool(
        connection_class=BoundedConnection,
        kwargs={"session": _session(settings, name, statement_s=statement_s, lock_s=lock_s, by_index=by_index)},
        min_size=1,
        max_size=size,
        timeout=settings.limits.database_wait_s,
        reconnect_timeout=settings.limits.database_wait_s,
        configure=made.add,
        check=_check,
        name=name,
        open=True,
    )
    try:
        yield pool
    finally:
        # A drain whose time is up leaves connections in use: nothing of this process goes on in the database, and no
        # thread gets another connection to try it again.
        pool.close(timeout=_SLICE_S)
        _end_statements(list(made), within_s=settings.limits.database_look_s / 2)


def require_writable(connection: BoundedConnection, settings: Settings) -> None:
    """Raise UnreachableError where the server takes no writes: a standby is no place for a role."""
    if connection.refuses_writes:
        message = f"postgres {place(settings.database_url)} {_NO_WRITES}"
        raise UnreachableError(message, hint=advice.for_postgres(settings, _NO_WRITES))


def _end_statements(connections: Sequence[BoundedConnection], *, within_s: float) -> None:
    for connection in connections:
        connection.end_statement(within_s=within_s)
    until = time.monotonic() + within_s
    while any(connection.busy for connection in connections) and time.monotonic() < until:
        time.sleep(_SLICE_S)


def ask(pool: Pool, question: Callable[[BoundedConnection], Answer], *, wait_s: float) -> Answer:
    """Ask `question` with a connection of the pool, for which `wait_s` is waited; with another where it was dead.

    A server's goodbye may be on its way as the pool looks for it. `question` may read, and write in transactions: one
    that has begun is not asked again. Raises what `question` and the pool raise.
    """
    for _ in range(pool.max_size):
        with pool.connection(wait_s) as connection:
            connection.began = False
            try:
                return question(connection)
            except UNAVAILABLE as error:
                if connection.began or not connection.closed or isinstance(error, NoAnswerError):
                    raise
    with pool.connection(wait_s) as connection:
        return question(connection)


def _check(connection: BoundedConnection) -> None:
    # A server that ended the connection has written so; that of one which only vanished, TCP's keepalive finds out.
    if has_news(connection, within_s=0):
        with connection.answering_within(connection.limits.database_look_s):
            connection.execute("")


def has_news(connection: Connection, *, within_s: float) -> bool:
    """Say whether the server has written something that nobody asked for, such as a goodbye, within `within_s`."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def missing_tables(
    connection: Connection, *, reading: bool = False, tables: Collection[str] | None = None
) -> list[str]:
    """Name the tables, columns, keys and indexes that the roles need and that are not there. Locks no table.

    `reading`: only what a query fails without, so no key and no index. `tables`: only of these.
    """
    lacking = versions.lacking(connection, tables)
    return [str(part) for part in lacking if (part.is_read if reading else part.is_needed)]


def check_schema(
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


def initialize(
    connection: BoundedConnection,
    *,
    reset: bool = False,
    tell: table_locks.Tell = lambda _text: None,
    tables: Collection[str] | None = None,
) -> None:
    """Add what is missing of the schema, or of some `tables`, beside roles at work; `reset` also empties every table.

    On a complete schema, or a newer program's, it runs nothing and locks nothing. Raises BrewError, which names the
    session at fault, where a table is in use for longer than schema_wait_s; `tell` hears of it before.
    """
    versions.bring_up(connection, tell, tables)
    if reset:
        table_locks.change(connection, schema.TABLES, queries["reset"], tell)


@contextlib.contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Turn psycopg's errors into the user's: which server, where, what to run."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        message = str(error).splitlines()[0].replace('"', "")
        raise NotYetError(
            f"postgres {place(settings.database_url)}: {message}", hint=f"run `{settings.init_command}`"
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        hint = "run it again when they are free: `brewctl doctor` names who holds them for long"
        raise BrewError(f"postgres {place(settings.database_url)}: the tables are in use", hint=hint) from error
    except psycopg.errors.QueryCanceled as error:
        said = error.diag.message_primary or "a statement was cancelled"
        hint = "run it again: `brewctl doctor` names a session that holds a lock for long"
        raise BrewError(f"postgres {place(settings.database_url)}: {said}", hint=hint) from error
    except UNAVAILABLE as error:
        if "statement pooling mode" in str(error):
            message = f"the pooler at {place(settings.database_url)} pools statements, and orders need transactions"
            raise BrewError(message, hint=_ANOTHER_MODE) from error
        variables = blamed(error, settings.database_url)
        if not variables and "invalid" in str(error) and "value" in str(error):  # of the URL, such as sslmode
            raise UsageError(f"BREW_DATABASE_URL: {str(error).splitlines()[0]}", hint=_EXAMPLE) from error
        from brewctl.delivery import database_tls  # noqa: PLC0415 - few need it

        named = " and ".join(variables) or settings.database_variable
        if of_file := database_tls.of_file(error, named):
            raise of_file from error
        refusal = database_tls.refusal(error, settings, settings.database_variable)
        reason, hint = refusal or (said := _reason(error), advice.for_postgres(settings, said))
        if variables:
            hint = f"unset {' and '.join(variables)}, or say in BREW_DATABASE_URL what holds for this server"
        raise UnreachableError(f"postgres {place(settings.database_url)} {reason}", hint=hint) from error
    except psycopg.Error as error:
        raise _refused(settings, error) from error


def _refused(settings: Settings, error: psycopg.Error) -> BrewError:
    """Say why a server that is there did not run a statement."""
    where = place(settings.database_url)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        user = str(conninfo_to_dict(settings.database_url).get("user") or os.environ.get("PGUSER") or getpass.getuser())
        return rights.refused(where, user, error, _held(settings, error))
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BrewError(f"postgres {where}: {reason}")


def _held(settings: Settings, error: psycopg.Error) -> list[str] | None:
    """Return the rights that our user has to the table that it was denied one to; None where that can't be told."""
    if not (table := rights.table_of(error)):
        return None
    try:
        with BoundedConnection.connect(session=_session(settings.impatient, "brewctl")) as connection:
            return rights.held(connection, table)
    except psycopg.Error:
        return None


def _session(
    settings: Settings, name: str, *, statement_s: float | None = None, lock_s: float = 0, by_index: bool = False
) -> Session:
    secrets, limits = settings.database_security, settings.limits
    try:
        place(settings.database_url)  # a malformed URL is a usage error
    except UsageError as error:
        said = f"{secrets.url.variable}_FILE: {secrets.url.file}" if secrets.url.file else settings.database_variable
        raise UsageError(error.message.replace("BREW_DATABASE_URL", said), hint=error.hint) from None
    return Session(
        settings.database_url,
        name,
        limits,
        statement_s or limits.database_statement_s,
        lock_s,
        by_index,
        secrets=secrets,
    )


def conninfo(settings: Settings) -> str:
    """Return what another client of PostgreSQL connects with, secrets included. Raises UsageError for one's file."""
    return make_conninfo(**server(settings.database_url, settings.database_security))


def _reason(error: Exception) -> str:
    text = str(error).lower()
    for mark, reason in (
        # First: of several hosts one may be away and the other a standby.
        ("session is read-only", _NO_WRITES),
        ("server is in hot standby mode", _NO_WRITES),
        ("in a read-only transaction", _NO_WRITES),
        ("refused", "refused the connection"),
        ("password authentication failed", "refused the password"),
        ("no password supplied", "wants a password"),
        ("does not exist", "has no such database or role"),
        ("permission denied for database", "lets this user not in"),
        ("timeout", "did not answer in time"),
        ("too many clients", "has no connection left"),
        ("connection slots", "has no connection left"),
        ("starting up", "is still starting"),
        ("shutting down", "is shutting down"),
        ("name or service not known", "is an unknown host"),
        ("could not translate host name", "is an unknown host"),
        ("failed to resolve host", "is an unknown host"),
        ("server login", "can't be reached by the pooler in front of it"),
    ):
        if mark in text:
            return reason
    lines = str(error).strip().splitlines()
    return f"failed ({lines[0]})" if lines else f"failed ({type(error).__name__})"

"""PostgreSQL: connections, the pool, the schema, and its errors in the user's words."""

import contextlib
import math
import select
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from brewctl.config import Limits, Settings
from brewctl.delivery import advice, schema
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.sql import queries

Connection = psycopg.Connection[TupleRow]

_EXAMPLE = "use postgresql://USER@HOST:PORT/NAME"
_PORTS = 65536
# What a lost, refused or overloaded server raises, one that gave up on a paused process, or one that another has
# taken the lead from; everything else is the statement's own fault.
UNAVAILABLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.ReadOnlySqlTransaction,
    PoolTimeout,
)


class NoAnswerError(psycopg.OperationalError):
    """A server that took a question and says nothing any more. The connection is closed: what it did is unknown."""


class BoundedConnection(Connection):
    """A connection that waits for each answer a bounded time, whatever becomes of the server: NoAnswerError.

    statement_timeout is counted by the server, and TCP's timeouts end once its kernel has the question: neither
    helps against a stopped server or a proxy that swallows bytes.
    """

    limits = Limits()
    # What the session's statements are bounded by, as the server counts.
    statement_s: float = limits.database_statement_s
    _until: float | None = None

    @contextlib.contextmanager
    def answering_within(self, seconds: float) -> Iterator[None]:
        """Wait for all the answers inside for `seconds` together, instead of database_answer_s for each."""
        self._until = time.monotonic() + seconds
        try:
            yield
        finally:
            self._until = None

    @contextlib.contextmanager
    def transaction_within(self, seconds: float) -> Iterator[None]:
        """A transaction whose statements the server ends after `seconds`, rounded up to whole ones, each.

        Its answers, the commit's too, are waited for as long as that and database_look_s more, together.
        """
        bound_s = math.ceil(seconds)
        with self.answering_within(bound_s + self.limits.database_look_s), self.transaction():
            # A statement of its own: spared where the session's bound will do.
            if bound_s < self.statement_s:
                self.execute(queries["bound_statements"], {"timeout": f"{bound_s}s"})
            yield

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Wait for an answer, as psycopg does, until the bound."""
        until = self._until or time.monotonic() + self.limits.database_answer_s
        return super().wait(self._steps(gen, until), *args, **kwargs)

    def _steps(self, gen: PQGen[RV], until: float) -> PQGen[RV]:
        # psycopg resumes this when the socket is ready, and ten times a second.
        try:
            wanted = next(gen)
            while True:
                wanted = gen.send((yield wanted))
                if time.monotonic() > until:
                    break
        except StopIteration as done:
            answer: RV = done.value
            return answer
        self.close()
        raise NoAnswerError("the server does not answer")


Pool = ConnectionPool[BoundedConnection]


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
def connect(settings: Settings, *, name: str = "brewctl") -> Iterator[BoundedConnection]:
    """One autocommit connection. Raises UnreachableError, BrewError, in what is done with it too."""
    with explained(settings), BoundedConnection.connect(**_arguments(settings, name)) as connection:
        connection.limits = settings.limits
        yield connection


@contextlib.contextmanager
def open_pool(
    settings: Settings, *, name: str, size: int, statement_s: float | None = None, lock_s: float = 0
) -> Iterator[Pool]:
    """A pool of at most `size` autocommit connections, each checked before it is handed out.

    The server ends each statement after `statement_s` seconds (default: database_statement_s), and its wait for a
    lock after `lock_s` (0: no sooner). The first connection is made now: raises UnreachableError where that fails,
    BrewError where the schema is missing.
    """
    limits = settings.limits
    statement_s = statement_s or limits.database_statement_s
    with connect(settings, name=name) as connection:
        check_schema(connection)

    def configure(connection: BoundedConnection) -> None:
        connection.limits, connection.statement_s = limits, statement_s

    pool: Pool = ConnectionPool(
        connection_class=BoundedConnection,
        kwargs=_arguments(settings, name, statement_s=statement_s, lock_s=lock_s),
        min_size=1,
        max_size=size,
        timeout=limits.database_wait_s,
        reconnect_timeout=limits.database_wait_s,
        configure=configure,
        check=_check,
        name=name,
        open=True,
    )
    with pool:
        yield pool


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


def missing_tables(connection: Connection) -> list[str]:
    """Name the tables, columns, keys and indexes that the roles need and that are not there. Locks no table."""
    return [str(part) for part in schema.missing(connection) if part.is_needed]


def check_schema(connection: Connection) -> None:
    """Raise BrewError where something that the roles need is missing."""
    if missing := missing_tables(connection):
        raise BrewError(f"missing in postgres: {', '.join(missing)}", hint="run `brewctl db init`")


def initialize(connection: BoundedConnection, *, reset: bool = False, tell: schema.Tell = lambda _text: None) -> None:
    """Add what is missing of the schema, beside roles at work; `reset` also empties every table.

    On a complete schema it runs nothing and locks nothing. Raises BrewError, which names the session at fault, where
    a table is in use for longer than schema_wait_s; `tell` hears of it before.
    """
    schema.complete(connection, tell)
    if reset:
        schema.change(connection, schema.TABLES, queries["reset"], tell)


@contextlib.contextmanager
def explained(settings: Settings) -> Iterator[None]:
    """Turn psycopg's errors into the user's: which server, where, what to run."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        message = str(error).splitlines()[0].replace('"', "")
        raise BrewError(f"postgres {place(settings.database_url)}: {message}", hint="run `brewctl db init`") from error
    except psycopg.errors.LockNotAvailable as error:
        hint = "run it again when they are free: `brewctl doctor` names who holds them for long"
        raise BrewError(f"postgres {place(settings.database_url)}: the tables are in use", hint=hint) from error
    except UNAVAILABLE as error:
        if "invalid" in str(error) and "value" in str(error):  # an option of the URL, such as sslmode
            raise UsageError(f"BREW_DATABASE_URL: {str(error).splitlines()[0]}", hint=_EXAMPLE) from error
        reason = _reason(error)
        hint = advice.for_postgres(settings, reason)
        raise UnreachableError(f"postgres {place(settings.database_url)} {reason}", hint=hint) from error
    except psycopg.Error as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BrewError(f"postgres {place(settings.database_url)}: {reason}") from error


def _arguments(settings: Settings, name: str, *, statement_s: float | None = None, lock_s: float = 0) -> dict[str, Any]:
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
        "options": f"-c statement_timeout={int((statement_s or limits.database_statement_s) * 1000)}ms"
        f" -c lock_timeout={int(lock_s * 1000)}ms"
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
        ("connection slots", "has no connection left"),
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

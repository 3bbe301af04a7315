"""PostgreSQL: connections, the pool, the schema, and its errors in the user's words."""

import contextlib
import math
import select
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import generators, waiting
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGcancelConn
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from brewctl.config import Limits, Settings
from brewctl.errors import BrewError, UnreachableError, UsageError
from brewctl.sql import queries, schema

Connection = psycopg.Connection[TupleRow]

_EXAMPLE = "use postgresql://USER@HOST:PORT/NAME"
_PORTS = 65536
_SLICE_S = 0.1
_SCHEMA_S = 600  # indexes of tables of any size are made
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
    _ends_at = math.inf

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
                if time.monotonic() > min(until, self._ends_at):
                    break
        except StopIteration as done:
            answer: RV = done.value
            return answer
        # Closed alone it would go on in the server: at a lock it would wait on, and then write.
        self._cancel(self.limits.database_look_s)
        self.close()
        raise NoAnswerError("the server does not answer")

    @property
    def busy(self) -> bool:
        """Whether the server is at work for this connection, as far as is known."""
        return self.info.transaction_status is TransactionStatus.ACTIVE

    def end_statement(self, *, within_s: float) -> None:
        """Have the server end what it does for this connection, if anything. Returns at once; for other threads too.

        The thread that waits for the answer gets psycopg.errors.QueryCanceled, or NoAnswerError after `within_s`
        seconds.
        """
        if self._ends_at == math.inf and self.busy:
            self._ends_at = time.monotonic() + within_s
            self._cancel(within_s)

    def _cancel(self, within_s: float) -> None:
        with contextlib.suppress(psycopg.Error):  # a libpq before 17 can't, and a closed connection has nothing to end
            request = self.pgconn.cancel_conn()
            # In a thread: a server that gives no answer gives none to this either.
            threading.Thread(target=_send_cancel, args=(request, within_s), name="cancel", daemon=True).start()


def _send_cancel(request: PGcancelConn, within_s: float) -> None:
    with contextlib.suppress(psycopg.Error):
        request.start()
        waiting.wait_conn(generators.cancel(request), interval=_SLICE_S, timeout=within_s)


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

    made: weakref.WeakSet[BoundedConnection] = weakref.WeakSet()

    def configure(connection: BoundedConnection) -> None:
        connection.limits, connection.statement_s = limits, statement_s
        made.add(connection)

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
    try:
        yield pool
    finally:
        # A drain whose time is up leaves connections in use: nothing of this process goes on in the database, and no
        # thread gets another connection to try it again.
        pool.close(timeout=_SLICE_S)
        _end_statements(list(made), within_s=limits.database_look_s / 2)


def _end_statements(connections: Sequence[BoundedConnection], *, within_s: float) -> None:
    for connection in connections:
        connection.end_statement(within_s=within_s)
    until = time.monotonic() + within_s
    while any(connection.busy for connection in connections) and time.monotonic() < until:
        time.sleep(_SLICE_S)


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
    """Name the tables, and what later versions added and the roles need, that are not there."""
    return [str(name) for (name,) in connection.execute(queries["missing_tables"])]


def check_schema(connection: Connection) -> None:
    """Raise BrewError where a table is missing."""
    if missing := missing_tables(connection):
        plural = "s are" if len(missing) > 1 else " is"
        raise BrewError(f"table{plural} missing in postgres ({', '.join(missing)})", hint="run `brewctl db init`")


def initialize(connection: BoundedConnection, *, reset: bool = False) -> None:
    """Create what is missing of the schema, in one transaction; `reset` also empties every table.

    Nobody writes meanwhile: a second or two for a million orders, where an index is new.
    """
    with connection.answering_within(_SCHEMA_S), connection.transaction():
        connection.execute(queries["bound_statements"], {"timeout": f"{_SCHEMA_S}s"})
        # Whoever is in the middle of a transaction is waited for, but not for ever: all others wait behind us.
        connection.execute("SET LOCAL lock_timeout = '10s'")
        connection.execute(schema)
        if reset:
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

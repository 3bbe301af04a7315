"""Connections to PostgreSQL, one or a pool of them."""

import contextlib
import select
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from psycopg_pool import ConnectionPool

from brewctl.config import Settings
from brewctl.delivery import advice
from brewctl.delivery.database.address import place, session_of
from brewctl.delivery.database.bounded import BoundedConnection, Connection, NoAnswerError
from brewctl.delivery.database.errors import NO_WRITES, UNAVAILABLE, explained
from brewctl.errors import UnreachableError

_SLICE_S = 0.1

Answer = TypeVar("Answer")
Pool = ConnectionPool[BoundedConnection]


@contextlib.contextmanager
def connect(settings: Settings, *, name: str = "brewctl") -> Iterator[BoundedConnection]:
    """One autocommit connection. Raises UnreachableError, BrewError, in what is done with it too."""
    with explained(settings), BoundedConnection.connect(session=session_of(settings, name)) as connection:
        yield connection


@contextlib.contextmanager
def open_pool(
    settings: Settings,
    *,
    name: str,
    size: int,
    statement_s: float | None = None,
    lock_s: float = 0,
    ready: Callable[[BoundedConnection], None] | None = None,
    by_index: bool = False,
) -> Iterator[Pool]:
    """A pool of at most `size` autocommit connections, each checked before it is handed out.

    The server ends each statement after `statement_s` seconds (default: database_statement_s), and its wait for a
    lock after `lock_s` (0: no sooner). `by_index`: its statements read no table from one end to the other, whatever the
    statistics say, as those of a queue. The first connection is made now: raises UnreachableError where that fails, and
    what `ready` raises, which is called with it.
    """
    with connect(settings, name=name) as connection:
        require_writable(connection, settings)
        if ready:
            ready(connection)
    made: weakref.WeakSet[BoundedConnection] = weakref.WeakSet()
    pool: Pool = ConnectionPool(
        connection_class=BoundedConnection,
        kwargs={"session": session_of(settings, name, statement_s=statement_s, lock_s=lock_s, by_index=by_index)},
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
        message = f"postgres {place(settings.database_url)} {NO_WRITES}"
        raise UnreachableError(message, hint=advice.for_postgres(settings, NO_WRITES))


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

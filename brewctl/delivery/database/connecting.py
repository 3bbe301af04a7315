"""Opens connections to PostgreSQL: one, or a pool."""

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
    """One autocommit connection. Raises UnreachableError and BrewError, also for statements in the block."""
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

    The server ends each statement after `statement_s` seconds (default: database_statement_s), and a wait for a lock
    after `lock_s` (0: lock waits have no limit of their own). `by_index`: sequential scans are off, whatever the
    statistics say. The first connection is made now, and `ready` is called with it: raises UnreachableError where the
    connection fails, and what `ready` raises.
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
        # When a drain's time is up, connections are still in use. Their statements are cancelled, and no thread gets
        # another connection to try again.
        pool.close(timeout=_SLICE_S)
        _end_statements(list(made), within_s=settings.limits.database_look_s / 2)


def require_writable(connection: BoundedConnection, settings: Settings) -> None:
    """Raise UnreachableError where the server takes no writes, as a standby: every role writes."""
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
    """Call `question` with a connection of the pool, and again with another one where that connection was dead.

    The pool's check misses a server's closing message that has not arrived yet. `question` may read, and write in
    transactions: it is not called again once a transaction has begun. The pool waits `wait_s` for a connection. Raises
    what `question` and the pool raise.
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
    # A server that closes a connection sends a message first. Where the server vanished, TCP keepalive notices.
    if has_news(connection, within_s=0):
        with connection.answering_within(connection.limits.database_look_s):
            connection.execute("")


def has_news(connection: Connection, *, within_s: float) -> bool:
    """Return whether the server sends a message on an idle connection within `within_s`, such as that it closes it."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(within_s * 1000))

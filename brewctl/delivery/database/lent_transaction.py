"""A handler's `tx`: a psycopg connection that writes in the event's transaction and can't commit or roll it back.

It is a second connection object over the session of ours: cursors, savepoints, pipelines, COPY, row factories and
adapters are psycopg's, and a handler's changes to them end with the object. Whatever would end the transaction raises
HandlerError, and so does every use after the handler has returned.
"""

import functools
import time
from types import TracebackType
from typing import Any, NoReturn

import psycopg
from psycopg import sql
from psycopg.abc import RV, PQGen
from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from brewctl.delivery import sql_text
from brewctl.delivery.database import BoundedConnection, Connection, NoAnswerError, has_news
from brewctl.installed import require

ASSUMED = {"psycopg:Connection": ("_adapters", "_prepared")}
require("psycopg", ASSUMED)

_OURS = "the transaction is brewctl's, which commits it once the handler has returned"
_ROLL_BACK = "to take back a part, use `with tx.transaction():`; to give the event up, raise an exception"


class HandlerError(Exception):
    """A handler misused its transaction. The message says how, and what to do instead."""


class HeldTooLongError(HandlerError):
    """A handler kept its transaction for longer than PostgreSQL allows, and PostgreSQL ended the session."""


# The errors of a session that timed out. They are remembered even where the handler catches them.
_ENDS = (NoAnswerError, psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.TransactionTimeout)


class lent:  # noqa: N801 - used as a function is; a generator would cost each event more
    """Lend the transaction that is open on a connection to a handler, for as long as the block runs.

    Raises HandlerError where the handler left the transaction so that it can't be committed, or kept it so long that
    PostgreSQL ended the session; psycopg.OperationalError where the session was lost for another reason, even if the
    handler caught that error. In each case nothing of the transaction is committed.
    """

    __slots__ = ("_began", "_connection", "_given", "_handlers", "_threshold", "_tx")

    def __init__(self, connection: BoundedConnection, given: "Lent | None" = None) -> None:
        """`given`: the object that the handler already has as `tx`; default: a new one."""
        self._connection = connection
        self._given = given

    def __enter__(self) -> Connection:
        pgconn = self._connection.pgconn
        self._handlers = pgconn.notice_handler, pgconn.notify_handler
        self._threshold = self._connection.prepare_threshold
        if self._given is None:
            self._tx = Lent(self._connection)
        else:
            self._tx = self._given
            object.__setattr__(self._tx, "__class__", Lent)
            Lent.__init__(self._tx, self._connection)
        self._began = time.monotonic()
        return self._tx

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection, tx, pgconn = self._connection, self._tx, self._connection.pgconn
        # The lock is held where a stream, a COPY or another thread is in the middle of a statement.
        lock = tx.lock
        idle = lock.acquire(blocking=False)
        ended, waited_s = tx._ended, tx._waited_s  # noqa: SLF001 - of this module
        tx.__class__ = Returned
        if idle:
            lock.release()
        pgconn.notice_handler, pgconn.notify_handler = self._handlers
        connection.prepare_threshold = self._threshold
        if not idle or pgconn.pipeline_status != PipelineStatus.OFF:
            connection.close()  # in this state not even ROLLBACK can be sent
            if error is None:
                raise HandlerError(
                    "the handler returned while its statement was still running: read a stream to its end,"
                    " close a COPY or a pipeline, and wait for its threads"
                )
            return
        ended = self._goodbye() or ended
        if pgconn.status != ConnStatus.OK:
            self._raise_lost(error, ended, waited_s)
        if isinstance(error, psycopg.Rollback):  # psycopg would roll back without an error
            raise HandlerError(f"the handler raised psycopg.Rollback outside `with tx.transaction():`; {_ROLL_BACK}")
        if error is not None:
            return
        if pgconn.transaction_status == TransactionStatus.INERROR:
            raise HandlerError(
                "a statement of the handler's failed, and the handler returned as if it had not: PostgreSQL keeps"
                " nothing of this transaction; let the exception pass, or run the statement in `with tx.transaction():`"
            )
        if pgconn.transaction_status != TransactionStatus.INTRANS:
            raise HandlerError(f"the handler ended the transaction; {_OURS}")

    def _goodbye(self) -> psycopg.Error | None:
        """Return the error with which the server has ended the session; None where it has not."""
        connection = self._connection
        if connection.pgconn.status == ConnStatus.OK and has_news(connection, within_s=0):
            try:
                connection.execute("")
            except psycopg.Error as error:
                return error
        return None

    def _raise_lost(self, error: BaseException | None, ended: psycopg.Error | None, waited_s: float) -> None:
        """Raise why the session was lost, unless the handler's own error is that."""
        if error is not None and not isinstance(error, Exception):
            return
        if isinstance(ended, psycopg.errors.IdleInTransactionSessionTimeout):
            bound = self._connection.session.idle_bound
            raise HeldTooLongError(
                f"the handler kept its transaction idle for longer than {bound}, and PostgreSQL ended it: do slow work"
                " elsewhere, or put `options=-c idle_in_transaction_session_timeout=60s` into the database's URL"
            ) from error
        # The handler is at fault only where most of the time passed outside statements: those may wait for a lock.
        if isinstance(ended, psycopg.errors.TransactionTimeout) and time.monotonic() - self._began > 2 * waited_s:
            raise HeldTooLongError(
                "the handler kept its transaction for longer than PostgreSQL's transaction_timeout allows"
            ) from error
        if isinstance(error, psycopg.Error):
            return
        if isinstance(ended, _ENDS):
            raise ended  # the server was too slow
        raise psycopg.OperationalError("the session was lost while the handler had its transaction") from error


def _refuse(name: str) -> Any:
    def refused(self: Any, *_: object, **__: object) -> NoReturn:  # noqa: ARG001
        raise HandlerError(f"the handler used tx.{name}: {_OURS}; {_ROLL_BACK}")

    return refused


class Lent(psycopg.Connection[TupleRow]):
    """A handler's `tx`: psycopg's connection without the methods that would end the transaction."""

    def __init__(self, connection: BoundedConnection) -> None:
        super().__init__(connection.pgconn, tuple_row)
        self._ended: psycopg.Error | None = None  # the error that ended the session, also where the handler caught it
        self._waited_s = 0.0  # for the server
        self._wait = connection.wait  # with its time limit
        self._prepared = connection._prepared  # noqa: SLF001 - prepared statements belong to the session
        self._adapters = connection._adapters and type(connection._adapters)(connection._adapters)  # noqa: SLF001
        self.cursor_factory = _checked(psycopg.Cursor)
        self.server_cursor_factory = _checked(psycopg.ServerCursor)

    def __del__(self, *_: object) -> None:
        """Say nothing of the open session, as psycopg's destructor would: it belongs to another connection object."""

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Wait for an answer. Raises HandlerError instead where the transaction is over: it would autocommit."""
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            raise HandlerError(f"the handler ended the transaction and went on; {_OURS}")
        began = time.monotonic()
        try:
            return self._wait(gen, *args, **kwargs)
        except _ENDS as error:
            self._ended = error
            raise
        finally:
            self._waited_s += time.monotonic() - began

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor as psycopg does, which refuses SQL that would end the transaction."""
        if kwargs.get("withhold"):
            raise HandlerError(
                f"the handler made a cursor with withhold=True, which would outlast the transaction; {_OURS}"
            )
        cursor = super().cursor(*args, **kwargs)
        if not isinstance(cursor, _Checked):  # the handler named a class of its own
            cursor.__class__ = _checked(cursor.__class__)
        return cursor

    commit = _refuse("commit")
    rollback = _refuse("rollback")
    close = _refuse("close")
    set_autocommit = _refuse("autocommit")
    set_isolation_level = _refuse("isolation_level")
    set_read_only = _refuse("read_only")
    set_deferrable = _refuse("deferrable")
    tpc_begin = _refuse("tpc_begin")
    tpc_prepare = _refuse("tpc_prepare")
    tpc_commit = _refuse("tpc_commit")
    tpc_rollback = _refuse("tpc_rollback")
    tpc_recover = _refuse("tpc_recover")
    __enter__ = _refuse("__enter__ (`with tx:`)")


class Returned(Lent):
    """A handler's `tx` after the handler has returned: every use raises HandlerError."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return Returned
        raise _too_late()

    def __setattr__(self, name: str, value: object) -> None:
        raise _too_late()

    def __enter__(self) -> NoReturn:
        raise _too_late()

    def __repr__(self) -> str:
        return "<tx of a handler that has returned>"


def _too_late() -> HandlerError:
    return HandlerError(
        "tx, or a cursor of it, was used after the handler had returned: its transaction is over,"
        " and the next call gets a tx of its own"
    )


class _Checked:
    """A handler's cursor: refuses SQL that would end the transaction, and any fetch after the handler has returned."""

    __slots__ = ()

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _check(query, self)
        return super().execute(query, *args, **kwargs)  # type: ignore[misc]

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _check(query, self)
        return super().executemany(query, *args, **kwargs)  # type: ignore[misc]

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _check(query, self)
        return super().stream(query, *args, **kwargs)  # type: ignore[misc]

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        _check(statement, self)
        return super().copy(statement, *args, **kwargs)  # type: ignore[misc]

    def _check_result_for_fetch(self) -> Any:  # psycopg calls it in each fetch, also of rows that are here already
        if type(self._conn) is Returned:  # type: ignore[attr-defined]
            raise _too_late()
        return super()._check_result_for_fetch()  # type: ignore[misc]


@functools.cache
def _checked(kind: type[Any]) -> type[Any]:
    return type(kind.__name__, (_Checked, kind), {"__slots__": (), "__module__": kind.__module__})


def _check(query: Any, cursor: Any) -> None:
    if isinstance(query, bytes):
        query = query.decode("latin-1")  # its words are ASCII
    elif not isinstance(query, str):
        as_bytes = query.as_bytes if isinstance(query, sql.Composable) else functools.partial(sql.as_bytes, query)
        query = as_bytes(cursor).decode("latin-1")
    if why := sql_text.refusal(query):
        raise HandlerError(f"the handler sent SQL that was refused: {why}; {_OURS}")

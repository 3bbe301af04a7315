"""A connection to PostgreSQL whose every wait has a time limit, and which also works behind a pooler."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import psycopg
from psycopg import generators, waiting
from psycopg.abc import RV, Params, PQGen
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGcancelConn
from psycopg.rows import Row, TupleRow

from brewctl.delivery.database.session import Session
from brewctl.limits import Limits
from brewctl.sql import queries

Connection = psycopg.Connection[TupleRow]

_SLICE_S = 0.1


class NoAnswerError(psycopg.OperationalError):
    """The server did not answer a statement in time. The connection is closed; whether the statement ran is unknown."""


class BoundedConnection(Connection):
    """A psycopg connection that raises NoAnswerError where an answer takes longer than database_answer_s.

    The server itself counts statement_timeout, and TCP's timeouts don't apply once its kernel has acknowledged the
    bytes: neither helps against a stopped server process or a proxy that swallows bytes.

    Behind a pooler each transaction may run in another session of the server. So each transaction begins with all
    settings, in the round trip of its BEGIN; a statement outside a transaction gets a transaction of its own; and no
    statement is prepared.
    """

    session: Session
    limits = Limits()
    statement_s: float = limits.database_statement_s  # the session's statement_timeout
    pooled = False  # whether the connection goes through a pooler, such as PgBouncer
    began = False  # set when a transaction begins, never unset here: see `database.ask`
    prepared: dict[str, tuple[str, tuple[str, ...]]]  # by statement, its name and parameters: see `short_transaction`
    _until: float | None = None
    _ends_at = math.inf
    _transaction_s: float = math.inf

    @classmethod
    def connect(cls, conninfo: str = "", *, session: Session, **kwargs: Any) -> Self:  # type: ignore[override]
        """Connect as `session` says, and find out whether it goes through a pooler. Raises what psycopg raises."""
        try:
            connection = super().connect(conninfo, **session.arguments() | kwargs, autocommit=True)
        except psycopg.OperationalError as error:
            if not session.refused(error):
                raise
            connection = super().connect(conninfo, **session.arguments() | kwargs, autocommit=True)
        connection.session, connection.limits, connection.statement_s = session, session.limits, session.statement_s
        connection.prepared = {}
        try:
            with connection.answering_within(session.limits.database_connect_s):
                connection._look_for_pooler()  # noqa: SLF001 - of this class
        except BaseException:
            connection.close()
            raise
        return connection

    def _look_for_pooler(self) -> None:
        pid, ours = self.execute(queries["session"]).fetchone() or (0, False)
        if ours and pid == self.info.backend_pid:
            return
        # A pooler in statement mode refuses transactions. It says so only where BEGIN is sent alone; where BEGIN comes
        # with other statements it closes the connection.
        self.execute("BEGIN")
        self.execute("ROLLBACK")
        self.pooled = True
        self.prepare_threshold = None
        self.cursor_factory = _PooledCursor
        self.isolation_level = psycopg.IsolationLevel.READ_COMMITTED

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
        """A transaction in which the server ends each statement after `seconds`, rounded up to whole seconds.

        This side waits for all answers together, the commit's too, that long and database_look_s more.
        """
        bound_s = math.ceil(seconds)
        with self.answering_within(bound_s + self.limits.database_look_s):
            self._transaction_s = bound_s
            try:
                with self.transaction():
                    yield
            finally:
                self._transaction_s = math.inf

    @contextlib.contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """As psycopg's: a transaction, or a savepoint inside one; with the session's settings."""
        bounded = self._transaction_s < self.statement_s
        if self.pgconn.transaction_status != TransactionStatus.IDLE or not (self.pooled or bounded):
            with super().transaction(savepoint_name, force_rollback) as transaction:
                self.began = True
                yield transaction
            return
        transaction = psycopg.Transaction(self, savepoint_name, force_rollback)
        with contextlib.ExitStack() as stack:
            with self.pipeline():  # BEGIN and the settings are one round trip
                stack.enter_context(transaction)
                self._set_locally()
            self.began = True
            yield transaction

    @contextlib.contextmanager
    def transaction_of_one(self) -> Iterator[None]:
        """Run the one statement inside in a transaction: BEGIN, the settings, it, COMMIT, in one round trip.

        Raises what psycopg raises. An error with an SQLSTATE means that it was rolled back. Where the connection was
        lost the error has no SQLSTATE, because the statement may be committed.
        """
        try:
            with self.pipeline():
                psycopg.Cursor(self).execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                self._set_locally()
                yield
                psycopg.Cursor(self).execute("COMMIT")
        except psycopg.Error as error:
            if self.closed and error.sqlstate:
                raise psycopg.OperationalError(str(error)) from error
            raise
        finally:
            if self.pgconn.transaction_status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
                psycopg.Cursor(self).execute("ROLLBACK")

    def _set_locally(self) -> None:
        if self.pooled:
            query, settings = self.session.transaction_settings(min(self._transaction_s, self.statement_s))
            psycopg.Cursor(self).execute(query, settings)
        else:
            psycopg.Cursor(self).execute(queries["bound_statements"], {"timeout": f"{self._transaction_s}s"})

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Wait for an answer as psycopg does. Raises NoAnswerError when the time is up."""
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
        except psycopg.errors.ReadOnlySqlTransaction:
            # After a failover this server is a standby and refuses every write: the next connection finds the primary.
            self.close()
            raise
        # Closing alone does not end the statement in the server: after a wait for a lock it would still write.
        self._cancel(self.limits.database_look_s)
        self.close()
        raise NoAnswerError("the server does not answer")

    @property
    def refuses_writes(self) -> bool:
        """Whether the server has said that it takes no writes, as a standby does. Behind a pooler always False.

        The server reports each change with its next answer (PostgreSQL 14 and later).
        """
        return not self.pooled and b"on" in {
            self.pgconn.parameter_status(b"in_hot_standby"),
            self.pgconn.parameter_status(b"default_transaction_read_only"),
        }

    @property
    def busy(self) -> bool:
        """Whether a statement of this connection is running, as far as this side knows."""
        return self.info.transaction_status is TransactionStatus.ACTIVE

    def end_statement(self, *, within_s: float) -> None:
        """Cancel the statement that runs on this connection, if any. Returns at once. Thread-safe.

        The thread that waits for the answer gets psycopg.errors.QueryCanceled, or NoAnswerError after `within_s`
        seconds.
        """
        if self._ends_at == math.inf and self.busy:
            self._ends_at = time.monotonic() + within_s
            self._cancel(within_s)

    def _cancel(self, within_s: float) -> None:
        with contextlib.suppress(psycopg.Error):  # libpq before 17 can't cancel; a closed connection has no statement
            request = self.pgconn.cancel_conn()
            # In a thread: a server that does not answer does not answer a cancel request either.
            threading.Thread(target=_send_cancel, args=(request, within_s), name="cancel", daemon=True).start()


def _send_cancel(request: PGcancelConn, within_s: float) -> None:
    with contextlib.suppress(psycopg.Error):
        request.start()
        waiting.wait_conn(generators.cancel(request), interval=_SLICE_S, timeout=within_s)


class _PooledCursor(psycopg.Cursor[Row]):
    """Runs a statement outside a transaction in a transaction of its own."""

    def execute(self, query: Any, params: Params | None = None, **options: Any) -> Self:
        connection = self.connection
        assert isinstance(connection, BoundedConnection)
        state = connection.pgconn
        if state.transaction_status != TransactionStatus.IDLE or state.pipeline_status != PipelineStatus.OFF:
            return super().execute(query, params, **options)
        with connection.transaction_of_one():
            return super().execute(query, params, **options)

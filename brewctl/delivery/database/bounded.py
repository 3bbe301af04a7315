"""A connection to PostgreSQL that ends every wait, and is correct behind a pooler too."""

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
    """A server that took a question and says nothing any more. The connection is closed: what it did is unknown."""


class BoundedConnection(Connection):
    """A connection that waits for each answer a bounded time, whatever becomes of the server: NoAnswerError.

    statement_timeout is counted by the server, and TCP's timeouts end once its kernel has the question: neither
    helps against a stopped server or a proxy that swallows bytes.

    Behind a pooler each transaction may run in another session of the server. So each begins with all its settings, in
    the round trip of its BEGIN; a statement outside a transaction gets one of its own; and no statement is prepared.
    """

    session: Session
    limits = Limits()
    # What the session's statements are bounded by, as the server counts.
    statement_s: float = limits.database_statement_s
    pooled = False  # whether a pooler, such as PgBouncer, stands between
    began = False  # set when a transaction begins, never unset here: see `database.ask`
    prepared: dict[str, tuple[str, tuple[str, ...]]]  # by statement, its name and parameters: see `short_transaction`
    _until: float | None = None
    _ends_at = math.inf
    _transaction_s: float = math.inf

    @classmethod
    def connect(cls, conninfo: str = "", *, session: Session, **kwargs: Any) -> Self:  # type: ignore[override]
        """Connect as `session` says, and find out whether a pooler stands between. Raises what psycopg raises."""
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
        # A pooler in statement mode takes no transaction. It says so where BEGIN is sent alone; else it just hangs up.
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
        """A transaction whose statements the server ends after `seconds`, rounded up to whole ones, each.

        Its answers, the commit's too, are waited for as long as that and database_look_s more, together.
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
        """A transaction, or one inside another; as psycopg's, with what the session asks for."""
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

        Raises what psycopg raises. After an error with an SQLSTATE it was rolled back; where the connection was lost
        the error has none, for the statement may be committed.
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
        except psycopg.errors.ReadOnlySqlTransaction:
            # The lead has moved to another server: this one would refuse every write from now on.
            self.close()
            raise
        # Closed alone it would go on in the server: at a lock it would wait on, and then write.
        self._cancel(self.limits.database_look_s)
        self.close()
        raise NoAnswerError("the server does not answer")

    @property
    def refuses_writes(self) -> bool:
        """Whether the server has said that it takes no writes, as a standby does. A pooler's word is not its server's.

        The server reports each change, with its next answer (PostgreSQL 14 and later).
        """
        return not self.pooled and b"on" in {
            self.pgconn.parameter_status(b"in_hot_standby"),
            self.pgconn.parameter_status(b"default_transaction_read_only"),
        }

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


class _PooledCursor(psycopg.Cursor[Row]):
    """Gives a statement outside a transaction one of its own."""

    def execute(self, query: Any, params: Params | None = None, **options: Any) -> Self:
        connection = self.connection
        assert isinstance(connection, BoundedConnection)
        state = connection.pgconn
        if state.transaction_status != TransactionStatus.IDLE or state.pipeline_status != PipelineStatus.OFF:
            return super().execute(query, params, **options)
        with connection.transaction_of_one():
            return super().execute(query, params, **options)

"""A transaction in two round trips: its first statement travels with BEGIN, its last one with COMMIT.

Each message wakes this process and one of the server, which costs more than a small statement itself. Statements are
sent as text, several in one message of the simple protocol, which every pooler supports. On a direct connection each
statement is prepared once per session and run with EXECUTE; behind a pooler its whole text is sent, after the
transaction's settings.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import generators, sql
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import TupleRow

from brewctl.delivery.database import arrays
from brewctl.delivery.database.bounded import BoundedConnection
from brewctl.sql import queries

_PLACEHOLDER = re.compile(r"%\((\w+)\)[sbt]")
_MANY = 100
_DONE = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
_OPEN = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


@cache
def _name_of(query: str) -> str:
    """Return the name to prepare a statement under, so that pg_stat_activity shows which query of queries.sql runs."""
    return next((f"brew_{name}" for name, text in queries.items() if text == query), "")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that a statement returned."""

    rows: list[TupleRow]

    def fetchall(self) -> list[TupleRow]:
        """Return the rows, as a cursor does."""
        return self.rows


class ShortTransaction:
    """Runs statements in one transaction, as a context manager: without `commit` they are rolled back.

    The connection must be in no transaction. After an error nothing was written, unless the connection was lost at the
    commit. After a psycopg.Error the connection is closed, because it is not known which statements are prepared.
    """

    def __init__(self, connection: BoundedConnection) -> None:
        """Nothing is sent until the first statement."""
        self._connection = connection
        self.began = False  # whether a transaction is open

    def execute(self, query: str, parameters: Mapping[str, Any] | None = None) -> Rows:
        """Run a statement, with BEGIN before the first one. Raises psycopg.Error."""
        before, text = self._texts(query, parameters or {})
        return self._send([*before, *self._begin(), text])

    def peek(self, query: str, parameters: Mapping[str, Any]) -> Rows:
        """Run a statement before the transaction begins, in one round trip. Raises psycopg.Error."""
        before, text = self._texts(query, parameters)
        if not self._connection.pooled:
            return self._send([*before, text])
        return self._send([*self._beginning(), text], ["COMMIT"])

    def commit(self, query: str | None = None, parameters: Mapping[str, Any] | None = None) -> None:
        """Run a last statement, if any, and commit. Raises psycopg.Error."""
        if query is not None:
            before, text = self._texts(query, parameters or {})
            self._send([*before, *self._begin(), text], ["COMMIT"])
        elif self.began:
            self._send(["COMMIT"])
        self.began = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection = self._connection
        if isinstance(error, psycopg.Error):
            connection.close()
        elif connection.pgconn.transaction_status in _OPEN:
            try:
                self._send(["ROLLBACK"])
            except psycopg.Error:
                connection.close()
                if error is None:
                    raise

    def _begin(self) -> list[str]:
        if self.began:
            return []
        self._connection.began = self.began = True
        return self._beginning()

    def _beginning(self) -> list[str]:
        connection = self._connection
        if not connection.pooled:
            return ["BEGIN"]
        query, settings = connection.session.transaction_settings(connection.statement_s)
        return ["BEGIN ISOLATION LEVEL READ COMMITTED", self._filled_in(query, settings)]

    def _texts(self, query: str, parameters: Mapping[str, Any]) -> tuple[list[str], str]:
        """Return the statements that have to be run before it in this session, and the statement as text."""
        connection = self._connection
        # A prepared statement's plan is made for short lists: one with a long list is planned anew each time.
        many = any(isinstance(value, list) and len(value) > _MANY for value in parameters.values())
        if connection.pooled or many:
            return [], self._filled_in(query, parameters)
        before = []
        if query not in connection.prepared:
            names = tuple(dict.fromkeys(_PLACEHOLDER.findall(query)))
            name = _name_of(query) or f"brew_{len(connection.prepared) + 1}"
            numbered = _PLACEHOLDER.sub(lambda match: f"${names.index(match[1]) + 1}", query)
            before = [f"PREPARE {name} AS {numbered}"]
            connection.prepared[query] = (name, names)
        name, names = connection.prepared[query]
        values = ",".join([self._literal(parameters[each]) for each in names])
        return before, f"EXECUTE {name}({values})" if names else f"EXECUTE {name}"

    def _filled_in(self, query: str, parameters: Mapping[str, Any]) -> str:
        return _PLACEHOLDER.sub(lambda match: self._literal(parameters[match[1]]), query)

    def _literal(self, value: object) -> str:
        if isinstance(value, int):
            return str(value) if value >= 0 else f"'{value}'"  # unquoted after a minus it would begin a comment, "--1"
        if isinstance(value, list) and value and all(type(each) is int for each in value):
            return f"'{arrays.of_numbers(value)}'"
        return sql.Literal(value).as_string(self._connection)

    def _send(self, statements: Sequence[str], last: Sequence[str] = ()) -> Rows:
        """Send statements in one message, wait for the answers, and return that of the last one before `last`."""
        connection = self._connection
        with connection.lock:
            # The line break ends a comment on a statement's last line.
            connection.pgconn.send_query("\n;".join([*statements, *last]).encode())
            results = connection.wait(generators.execute(connection.pgconn))
        for result in results:
            if result.status not in _DONE:
                raise psycopg.errors.error_from_result(result)
        result = results[-1 - len(last)]
        if result.status != ExecStatus.TUPLES_OK:
            return Rows([])
        loader = Transformer(connection)
        loader.set_pgresult(result)
        return Rows(loader.load_rows(0, result.ntuples, tuple))

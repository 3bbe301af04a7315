"""The temporary tables of a verification, filled from one short snapshot.

An open snapshot keeps VACUUM from removing rows that were deleted or replaced since: so what is needed of the tables is
copied at once and the snapshot is let go, before the topic is read and anything is compared. Behind a pooler, such as
PgBouncer in transaction mode, the next transaction may be another session's, without these tables: there all of it is
one transaction, which holds the snapshot to its end.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from brewctl.config import Settings
from brewctl.delivery import database
from brewctl.delivery.database import BoundedConnection
from brewctl.delivery.downstream import Downstream
from brewctl.errors import BrewError
from brewctl.sql import verify_queries

_TABLES = (
    "create_event",
    "create_placed",
    "create_taker",
    "create_effect",
    "create_processed",
    "create_parked",
    "create_ledger",
    "create_edge",
    "create_position",
    "create_seen",
    "create_letter",
    "create_gap",
)
_COPIES = ("fill_event", "fill_placed", "fill_taker", "fill_processed", "fill_parked")
# How long the session of a pooled verification may wait for Kafka: longer than kafka_request_s.
_IDLE_S = 120


class Workspace:
    """One session with the temporary tables. Each of its statements may take `statement_s` seconds."""

    def __init__(
        self,
        settings: Settings,
        connection: BoundedConnection,
        downstreams: Sequence[Downstream],
        parameters: dict[str, Any],
        *,
        statement_s: float,
    ) -> None:
        self._settings = settings
        self._connection = connection
        bounds = {"statement_ms": str(int(statement_s * 1000)), "idle_ms": str(_IDLE_S * 1000)}
        takers = [(downstream.group, event_type) for downstream in downstreams for event_type in downstream.events]
        self._parameters = parameters | bounds
        self._parameters["groups"] = [downstream.group for downstream in downstreams]
        self._parameters["takers"] = [group for group, _ in takers]
        self._parameters["types"] = [event_type for _, event_type in takers]
        self._downstreams = downstreams
        self.states: set[str] = set()  # groups whose effects show their order's status
        self._statement_s = statement_s
        self._pooled = connection.pooled
        self._took = 0.0  # when the snapshot was taken
        self._held_s: float | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Make the tables, and fill them from the snapshot of this moment."""
        self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with contextlib.ExitStack() as stack:
            self._took = time.monotonic()
            if self._pooled:
                stack.enter_context(self._connection.transaction(force_rollback=True))
                self._fill()
            else:
                with self._connection.transaction():
                    self._fill()
                self._held_s = time.monotonic() - self._took
                self.execute("bounds", local=False)
                self._connection.isolation_level = None
            yield

    @property
    def held_s(self) -> float:
        """How long the snapshot was held, in seconds; so far, where it is held to the end."""
        return time.monotonic() - self._took if self._held_s is None else self._held_s

    def execute(self, query: str, **parameters: Any) -> psycopg.Cursor[Any]:
        """Run a query of verify.sql. Raises BrewError where it takes longer than it may."""
        with self._bounded():
            return self._connection.execute(verify_queries[query], self._parameters | parameters)

    def row(self, query: str, **parameters: Any) -> dict[str, Any]:
        """Return the one row of a query, by the names of its columns."""
        with self._bounded(), self._connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(verify_queries[query], self._parameters | parameters).fetchone()
        assert row is not None
        return row

    @contextlib.contextmanager
    def copy(self, query: str) -> Iterator[psycopg.Copy]:
        """Write rows into a table."""
        with self._bounded(), self._connection.cursor().copy(verify_queries[query]) as copy:
            yield copy

    def _fill(self) -> None:
        self.execute("bounds", local=True)
        for table in _TABLES:
            with self._bounded():
                # The end of a pooled session's transaction is nobody else's to clean up after.
                kept = " ON COMMIT DROP" if self._pooled else ""
                self._connection.execute(verify_queries[table] + kept)
        # From here on nothing but temporary tables can be written.
        self._connection.execute("SET TRANSACTION READ ONLY")
        for query in _COPIES:
            self.execute(query)
        for downstream in self._downstreams:
            if downstream.done:
                self._fill_effects(downstream)
        if self.row("has_ledger")["there"]:
            self.execute("fill_ledger")

    def _fill_effects(self, downstream: Downstream) -> None:
        """Copy what the `done` query of a downstream returns: order ids first, and `order_status` where it has that."""
        text = downstream.done.strip().rstrip(";")  # its author is who runs it
        table = sql.SQL("(\n{}\n) AS done (order_id)").format(sql.SQL(text))
        try:
            with self._bounded():
                columns = self._connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(table)).description or ()
                has_status = any(column.name == "order_status" for column in columns[1:])
                self._connection.execute(
                    sql.SQL("INSERT INTO effect SELECT {}, done.order_id::uuid, {} FROM {}").format(
                        downstream.group, sql.SQL("done.order_status::text" if has_status else "NULL"), table
                    )
                )
        except psycopg.errors.QueryCanceled:
            raise
        except (psycopg.ProgrammingError, psycopg.DataError) as error:
            said = " ".join((error.diag.message_primary or str(error)).split())
            raise BrewError(
                f"the `done` query of downstream {downstream.group} fails: {said}",
                hint="where its table is missing: run `brewctl db init MODULE:NAME` of that downstream",
            ) from error
        if has_status:
            self.states.add(downstream.group)

    def look(self, present: BoundedConnection, query: str, **parameters: Any) -> psycopg.Cursor[Any]:
        """Run a query in another session, whose snapshot is of now, under the same bounds."""
        with self._bounded(present), present.transaction():
            present.execute(verify_queries["bounds"], self._parameters | {"local": True})
            return present.execute(verify_queries[query], parameters, binary=True)

    @contextlib.contextmanager
    def _bounded(self, connection: BoundedConnection | None = None) -> Iterator[None]:
        limits, began = self._settings.limits, time.monotonic()
        # Later than the server's own bound: then it is silent, and not slow.
        answer_s = self._statement_s + limits.database_answer_s - limits.database_statement_s
        try:
            with (connection or self._connection).answering_within(answer_s):
                yield
        except psycopg.errors.QueryCanceled as error:
            where = database.place(self._settings.database_url)
            took_s = time.monotonic() - began
            raise BrewError(
                f"postgres {where} ended a statement of verify after {took_s:.0f} s ({error.diag.message_primary})",
                hint=f"large tables take their time: allow more with --statement-timeout {self._statement_s * 4:g}",
            ) from error


@contextlib.contextmanager
def open_workspace(
    settings: Settings, downstreams: Sequence[Downstream], parameters: dict[str, Any], *, statement_s: float
) -> Iterator[Workspace]:
    """Take the snapshot of this moment into temporary tables.

    Raises UnreachableError, BrewError where a table is missing, a statement takes longer than `statement_s` seconds, or
    the `done` query of a downstream fails.
    """
    with database.connect(settings) as connection:
        database.check_schema(connection, reading=True)
        workspace = Workspace(settings, connection, downstreams, parameters, statement_s=statement_s)
        with workspace.open():
            yield workspace

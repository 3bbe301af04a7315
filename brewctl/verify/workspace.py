"""The temporary tables of a verification, filled from one short snapshot.

An open snapshot keeps VACUUM from removing rows that were deleted or replaced since. So the rows are copied at once,
and the snapshot ends before the topic is read. Behind a pooler, such as PgBouncer in transaction mode, the next
transaction may run in another session, which does not have the temporary tables. There the whole verification is one
transaction, which holds the snapshot to its end.
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
from brewctl.delivery.schema import registration
from brewctl.delivery.schema.homes import Home
from brewctl.sql import verify_queries
from brewctl.verify import bounds, done, elsewhere
from brewctl.verify.elsewhere import CopiedRows

_TABLES = (
    "create_event",
    "create_placed",
    "create_gone",
    "create_taker",
    "create_effect",
    "create_processed",
    "create_parked",
    "create_elsewhere_processed",
    "create_elsewhere_parked",
    "create_ledger",
    "create_edge",
    "create_position",
    "create_seen",
    "create_letter",
    "create_gap",
)
_COPIES = ("fill_event", "fill_placed", "fill_gone", "fill_taker", "fill_processed", "fill_parked")
_CHUNK_BYTES = 64 * 1024


class Workspace:
    """One session with the temporary tables. Each of its statements may take `statement_s` seconds."""

    def __init__(
        self,
        settings: Settings,
        connection: BoundedConnection,
        homes: Sequence[Home],
        parameters: dict[str, Any],
        copied: Sequence[CopiedRows],
        *,
        statement_s: float,
    ) -> None:
        self._settings = settings
        self._connection = connection
        story, *_ = homes
        downstreams = [downstream for home in homes for downstream in home.downstreams]
        takers = [(downstream.group, event_type) for downstream in downstreams for event_type in downstream.events]
        self._parameters = parameters | bounds.parameters(statement_s)
        self._parameters["here"] = story.groups
        self._parameters["groups"] = [downstream.group for downstream in downstreams]
        self._parameters["takers"] = [group for group, _ in takers]
        self._parameters["types"] = [event_type for _, event_type in takers]
        self._story = story.downstreams
        self._copied = copied
        self.states: set[str] = set()  # groups whose effects show their order's status
        self._statement_s = statement_s
        self._pooled = connection.pooled
        self._took = 0.0  # when the snapshot was taken
        self._held_s: float | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Create the temporary tables, and fill them from a snapshot of this moment."""
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
        """How long the snapshot was held, in seconds; so far, where it still is."""
        return time.monotonic() - self._took if self._held_s is None else self._held_s

    def execute(self, query: str, **parameters: Any) -> psycopg.Cursor[Any]:
        """Run a query of verify.sql. Raises BrewError where it takes longer than `statement_s` seconds."""
        with self._bounded():
            return self._connection.execute(verify_queries[query], self._parameters | parameters)

    def row(self, query: str, **parameters: Any) -> dict[str, Any]:
        """Run a query that returns one row; return its values by column name."""
        with self._bounded(), self._connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(verify_queries[query], self._parameters | parameters).fetchone()
        assert row is not None
        return row

    @contextlib.contextmanager
    def copy(self, query: str) -> Iterator[psycopg.Copy]:
        """Open a COPY into a table of the workspace."""
        with self._bounded(), self._connection.cursor().copy(verify_queries[query]) as copy:
            yield copy

    def _fill(self) -> None:
        self.execute("bounds", local=True)
        for table in _TABLES:
            with self._bounded():
                # A pooler hands the session on to other clients: the tables must be gone with the transaction.
                kept = " ON COMMIT DROP" if self._pooled else ""
                self._connection.execute(verify_queries[table] + kept)
        for rows in self._copied:
            self._copy_in(rows)
        # From here on only temporary tables can be written.
        self._connection.execute("SET TRANSACTION READ ONLY")
        for query in _COPIES:
            self.execute(query)
        for downstream in self._story:
            if downstream.done:
                self._fill_effects(downstream)
        if self.row("has_ledger")["there"]:
            self.execute("fill_ledger")

    def _fill_effects(self, downstream: Downstream) -> None:
        with done.explained(downstream), self._bounded():
            seen = done.look(self._connection, downstream)
            self._connection.execute(sql.SQL("INSERT INTO effect {}").format(seen.rows))
        if seen.has_status:
            self.states.add(downstream.group)

    def _copy_in(self, rows: CopiedRows) -> None:
        rows.file.seek(0)
        with self.copy(rows.query) as copy:
            while chunk := rows.file.read(_CHUNK_BYTES):
                copy.write(chunk)
        if rows.has_status:
            self.states.add(rows.group)

    def look(self, present: BoundedConnection, query: str, **parameters: Any) -> psycopg.Cursor[Any]:
        """Run a query in another session, which sees the rows as they are now, under the same bounds."""
        with self._bounded(present), present.transaction():
            present.execute(verify_queries["bounds"], self._parameters | {"local": True})
            return present.execute(verify_queries[query], parameters, binary=True)

    def _bounded(self, connection: BoundedConnection | None = None) -> contextlib.AbstractContextManager[None]:
        return bounds.bounded(self._settings, connection or self._connection, statement_s=self._statement_s)


@contextlib.contextmanager
def open_workspace(
    settings: Settings, homes: Sequence[Home], parameters: dict[str, Any], *, statement_s: float
) -> Iterator[Workspace]:
    """Copy a snapshot of all these databases into temporary tables of the first one, the story's.

    Raises UnreachableError, BrewError where a table is missing, a statement takes longer than `statement_s` seconds, or
    the `done` query of a downstream fails.
    """
    _, *apart = homes
    with elsewhere.copied(apart, statement_s=statement_s) as copied, database.connect(settings) as connection:
        registration.require_story(settings, connection, reading=True)
        workspace = Workspace(settings, connection, homes, parameters, copied, statement_s=statement_s)
        with workspace.open():
            yield workspace

"""Drops old partitions of the outbox, then of the dedup tables up to the same id, and makes new ones ahead.

    watermark ─► DETACH CONCURRENTLY ─► look again ─► DROP ─► each home: watermark ─► its dedup partitions
                                            └─ a row was committed late: ATTACH, watermark back

Each step is committed before the next, and `retention.dropping` names the partition, so that the next run finishes what
a crash interrupts. DETACH CONCURRENTLY waits for transactions that use the table, and none of them waits for it. One
run works at a time: see `turn`.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import namedtuple_row

from brewctl.config import Settings
from brewctl.delivery.database import BoundedConnection, Connection, table_locks
from brewctl.delivery.retention.look import Evidence, last_order, open_look, partitions, sequence
from brewctl.delivery.retention.plan import PartitionVerdict, TablePartition, stray
from brewctl.delivery.retention.turn import Turn
from brewctl.delivery.schema import homes, no_partition
from brewctl.delivery.schema.homes import Home
from brewctl.errors import BrewError, UnreachableError
from brewctl.sql import queries, retention_queries

AHEAD = 4  # how many empty partitions follow the one that rows are written to
# How long one attempt of DETACH waits for open transactions. It must be shorter than the run's lease (`turn`).
_STEP_S = 20
_OUTBOX, _DEDUP = "outbox", "processed_events"
_FINISHED_BY_ANOTHER = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.WrongObjectType,
)
Tell = table_locks.Tell


@dataclass
class RetentionOutcome:
    """The result of a run."""

    dropped: list[str] = field(default_factory=list)
    kept: PartitionVerdict | None = None  # the first full partition that must stay
    refused: bool = False
    away: list[str] = field(default_factory=list)  # errors of homes that could not be reached: a later run does them
    watermark: int = 0


def state(connection: BoundedConnection) -> Any:
    """Return the row of table `retention`; makes it where it is missing."""
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        found = cursor.execute(retention_queries["state"]).fetchone()
        if found is None:
            connection.execute(retention_queries["ensure_state"])
            found = cursor.execute(retention_queries["state"]).fetchone()
        return found


def watermark(connection: Connection) -> int:
    """Return the id below which rows were dropped."""
    found, _ = connection.execute(retention_queries["watermark"]).fetchone() or (0, 0)
    return int(found)


def size(settings: Settings, connection: BoundedConnection, rows: int) -> None:
    """Set how many ids new partitions have, in every home. Raises UnreachableError where one is away."""
    for home in homes.of(settings):
        with homes.connect(home, connection, name="retention") as own:
            state(own)
            own.execute(retention_queries["size_partitions"], {"rows": rows})


def plan(settings: Settings, connection: BoundedConnection, **asked: Sequence[str]) -> list[PartitionVerdict]:
    """Return the verdict on each partition of the outbox. Changes nothing. `asked`: arguments of `open_look`."""
    with open_look(settings, connection, **asked) as look:
        return list(look.verdicts())


def strays(settings: Settings, connection: BoundedConnection) -> list[tuple[Home, PartitionVerdict]]:
    """Return the dedup partitions for ids far beyond the outbox's. Changes nothing.

    A home that can't be reached is left out: the verdict on an outbox partition that must stay for it says so.
    """
    _, rows = connection.execute(retention_queries["watermark"]).fetchone() or (0, 0)
    far = sequence(connection) + (2 * AHEAD + 1) * rows
    found = []
    for home in homes.of(settings):
        with contextlib.suppress(BrewError), homes.connect(home, connection, name="retention") as own:
            found += [(home, stray(each)) for each in partitions(own, _DEDUP) if each.high > far]
    return found


class Run:
    """One run of retention, while it holds the lease."""

    def __init__(self, settings: Settings, connection: BoundedConnection, ours: Turn, tell: Tell) -> None:
        self._settings = settings
        self._connection = connection
        self._turn = ours
        self._tell = tell
        self._outcome = RetentionOutcome()

    def drop(self, **asked: Sequence[str]) -> RetentionOutcome:
        """Make partitions ahead and drop old ones, of the outbox, then of every home. `asked`: as of `open_look`.

        Raises UnreachableError; BrewError where a partition can't be detached because a transaction keeps the table.
        """
        outcome = self._outcome
        self._ahead(self._connection, _OUTBOX)
        with open_look(self._settings, self._connection, **asked) as look:
            stopped = self._finish(look)
            # All verdicts come before the first drop: where there is a fault, no partition is dropped.
            verdicts = [] if stopped else list(look.verdicts(whole=False))
            outcome.kept = next((each for each in verdicts if not each.may_go), None) or stopped
            outcome.refused = bool(outcome.kept and any(each.refused for each in outcome.kept.reasons))
            for verdict in () if outcome.refused else verdicts:
                if verdict.may_go and (late := self._drop_outbox(look, verdict)):
                    outcome.kept = late
                    break
        outcome.watermark = state(self._connection).dropped_below
        for home in homes.of(self._settings):
            self._do_home(home)
        kept = outcome.kept
        held_back = kept.reasons[0].text if kept and kept.partition.high <= sequence(self._connection) else ""
        if not held_back:
            outcome.kept = None
        self._connection.execute(
            retention_queries["end_run"], {"held_back": held_back[:500], "refused": outcome.refused}
        )
        return outcome

    def _finish(self, look: Evidence) -> PartitionVerdict | None:
        """Finish a drop that an earlier run began. Return the verdict where the partition must stay after all."""
        begun = state(self._connection)
        if not begun.dropping:
            return None
        self._tell(f"finishes what an earlier run began with {begun.dropping}")
        if not begun.dropping.startswith(f"{_OUTBOX}_p"):
            self._remove(self._connection, _DEDUP, begun.dropping)
            return None
        partition = TablePartition(begun.dropping, begun.dropping_from, begun.dropping_until)
        return self._remove_outbox(look, partition)

    def _drop_outbox(self, look: Evidence, verdict: PartitionVerdict) -> PartitionVerdict | None:
        partition = verdict.partition
        latest = [at for at in (verdict.newest, last_order(self._connection, partition.name)) if at]
        self._turn.renew()
        began = {
            "partition": partition.name,
            "low": partition.low,
            "high": partition.high,
            "until": max(latest, default=None),
            "created": verdict.created,
        }
        self._connection.execute(retention_queries["begin_drop"], began)
        return self._remove_outbox(look, partition)

    def _remove_outbox(self, look: Evidence, partition: TablePartition) -> PartitionVerdict | None:
        """Detach an outbox partition and drop it; attach it again, and return the verdict, where a row has to stay."""
        self._detach(self._connection, _OUTBOX, partition.name)
        if _relation(self._connection, partition.name):
            again = look.of_rows(partition, detached=True)
            if not again.may_go:
                self._take_back(partition)
                self._tell(f"{partition.name} stays, {again.reasons[0].text}: it was attached again")
                return again
        self._turn.renew()  # reading the rows takes long: another run may have attached the partition meanwhile
        self._drop(self._connection, partition.name)
        return None

    def _do_home(self, home: Home) -> None:
        """Make a home's dedup partitions ahead, and drop those whose ids are all below the watermark."""
        watermark = self._outcome.watermark
        try:
            with homes.connect(home, self._connection, name="retention") as connection:
                self._ahead(connection, _DEDUP)
                if home.apart:
                    begun = state(connection)
                    connection.execute(retention_queries["raise_watermark"], {"watermark": watermark})
                    if begun.dropping:
                        self._remove(connection, _DEDUP, begun.dropping)
                for partition in partitions(connection, _DEDUP):
                    if partition.high <= watermark:
                        self._turn.renew()
                        began = {"partition": partition.name, "low": partition.low, "high": partition.high,
                                 "until": None, "created": 0}  # fmt: skip
                        connection.execute(retention_queries["begin_drop"], began)
                        self._remove(connection, _DEDUP, partition.name)
        except UnreachableError as error:
            self._outcome.away.append(error.message)

    def _remove(self, connection: BoundedConnection, table: str, name: str) -> None:
        self._detach(connection, table, name)
        self._drop(connection, name)

    def _detach(self, connection: BoundedConnection, table: str, name: str) -> None:
        """Detach a partition while roles write. Raises BrewError where that takes longer than schema_s."""
        names = {"table": sql.Identifier(table), "name": sql.Identifier(name)}
        until = time.monotonic() + self._settings.limits.schema_s
        told = False
        while (now := _relation(connection, name)) in {"partition", "pending"}:
            self._turn.renew()
            how = "CONCURRENTLY" if now == "partition" else "FINALIZE"
            statement = sql.SQL(f"ALTER TABLE {{table}} DETACH PARTITION {{name}} {how}").format(**names)
            try:
                with _bounded_step(connection):
                    # psycopg's own cursor begins no transaction behind a pooler: CONCURRENTLY is refused in one.
                    psycopg.Cursor(connection).execute(statement)
            except _FINISHED_BY_ANOTHER:
                continue  # the session of a killed run has finished this step in the server
            except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable) as error:
                holders = table_locks.holders(connection, [table], snapshots=True)
                if time.monotonic() > until:
                    hint = "run it again when that is over: what was begun is finished then"
                    whom = holders[0] if holders else "other transactions"
                    raise BrewError(f"{name} can't be detached: {whom} uses table {table}", hint=hint) from error
                if holders and not told:
                    self._tell(f"waits for {holders[0]} before {name} goes …")
                    told = True

    def _drop(self, connection: BoundedConnection, name: str) -> None:
        with table_locks.bounded(connection):
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(name)))
            connection.execute(retention_queries["end_drop"], {"partition": name})
        self._outcome.dropped.append(name)
        self._tell(f"dropped {name}")

    def _take_back(self, partition: TablePartition) -> None:
        bound = sql.SQL("MINVALUE") if partition.low is None else sql.Literal(partition.low)
        attach = sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
            sql.Identifier(_OUTBOX), sql.Identifier(partition.name), bound, sql.Literal(partition.high)
        )

        def attempt() -> bool:
            with table_locks.bounded(self._connection):
                self._connection.execute(attach)
                self._connection.execute(retention_queries["take_back"], {"partition": partition.name})
            return True

        table_locks.until_free(
            self._connection, attempt, lambda: table_locks.in_use(f"table {_OUTBOX}", [], what_for="attached to")
        )

    def _ahead(self, connection: BoundedConnection, table: str) -> None:
        """Make the partition of the next id and the AHEAD partitions behind it, where they are missing."""
        last = sequence(self._connection)
        row_id, far = last + 1, last + 2 * AHEAD * state(connection).partition_rows
        for _ in range(AHEAD + 1):
            part = _holding(connection, table, row_id)
            if part is None and row_id < far:  # ids so far are reached only where partitions were larger before
                self._make(connection, table, row_id)
                part = _holding(connection, table, row_id)
            if part is None:
                return
            row_id = part.high

    def _make(self, connection: BoundedConnection, table: str, row_id: int) -> None:
        def attempt() -> bool:
            with table_locks.bounded(connection):
                connection.execute("SELECT make_partition(%s, %s)", (table, row_id))
            return True

        try:
            table_locks.until_free(connection, attempt, lambda: table_locks.in_use(f"table {table}", []))
        except psycopg.errors.NumericValueOutOfRange as error:  # a downstream's own database has too many strays
            self._tell(no_partition.said(error))


def _holding(connection: BoundedConnection, table: str, row_id: int) -> TablePartition | None:
    """Return the partition that has an id; None where there is none."""
    for each in partitions(connection, table):
        if (each.low is None or each.low <= row_id) and row_id < each.high:
            return each
    return None


def _relation(connection: BoundedConnection, name: str) -> str:
    """Return what a table is: "partition", "pending" (its DETACH has begun) or "table"; "" where it does not exist."""
    row = connection.execute(retention_queries["relation"], {"name": name}).fetchone()
    return row[0] if row else ""


@contextlib.contextmanager
def _bounded_step(connection: BoundedConnection) -> Iterator[None]:
    """The server ends the statement in the block after _STEP_S; behind a pooler only this side stops waiting."""
    bound, own = connection.execute(queries["statement_bound"]).fetchone() or ("0ms", False)
    try:
        if own:
            connection.execute(queries["rebound_session"], {"timeout": f"{_STEP_S}s"})
        with connection.answering_within(_STEP_S + connection.limits.database_look_s):
            yield
    finally:
        if own and not connection.closed:
            connection.execute(queries["rebound_session"], {"timeout": bound})

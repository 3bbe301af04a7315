"""Adds the missing parts of the schema while roles use the tables.

The catalog says which parts are missing, and only their statements run: with a complete schema none runs and no table
is locked. Columns are added in one statement per table (table_locks.py), and indexes are built concurrently.
"""

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import LiteralString

import psycopg

from brewctl.delivery.database import BoundedConnection, Connection
from brewctl.delivery.database.table_locks import Tell, bounded, change, holders, in_use, nobody, pauses, until_free
from brewctl.delivery.schema import partitioning
from brewctl.delivery.schema.parts import (
    PARTS,
    Kind,
    SchemaPart,
    adopting_statement,
    columns_statement,
    concurrent_statement,
    of_partition,
    steps,
    whole_key_statement,
)
from brewctl.errors import BrewError
from brewctl.sql import queries

_HAS_A_KEY = (psycopg.errors.InvalidTableDefinition, psycopg.errors.ObjectNotInPrerequisiteState)
_HAS_PARTITIONS = psycopg.errors.FeatureNotSupported  # another session has just partitioned the table
_STATE = ("kinds", "tables", "names", "columns")


def missing(connection: "Connection", tables: Collection[str] | None = None) -> list[SchemaPart]:
    """Return the parts that are missing or differ from the migrations, and leftovers, in their order. Locks no table.

    Of a missing table neither columns nor key nor indexes are named. `tables`: only of these.
    """
    lacking = state(connection, [part for part in PARTS if tables is None or part.table in tables])
    new = {part.table for part in lacking if part.kind is Kind.TABLE}
    return [part for part in lacking if part.kind is Kind.TABLE or part.table not in new]


def state(connection: "Connection", parts: Sequence[SchemaPart]) -> list[SchemaPart]:
    """Return those of these parts that are missing or differ. Reads the catalog alone."""
    rows = [(part.kind.value, part.table, part.name, part.body or ",".join(part.columns)) for part in parts]
    asked = dict(zip(_STATE, map(list, zip(*rows, strict=True)), strict=True))
    found = connection.execute(queries["schema_state"], asked).fetchall()
    return [
        replace(part, invalid=invalid) for part, invalid in ((parts[place - 1], invalid) for place, invalid in found)
    ]


def complete(
    connection: "BoundedConnection",
    tell: Tell = nobody,
    tables: Collection[str] | None = None,
    *,
    until: int | None = None,
) -> None:
    """Add the missing parts; an index whose build was interrupted is built anew. Several sessions may call it at once.

    Roles go on writing: a statement of theirs waits at most schema_lock_s at a time. Raises BrewError where a table is
    in use for longer than schema_wait_s, or where rows break a key; the parts added until then stay, and a later call
    adds the rest. `tell` gets a line for each step with its time, and for a transaction that it waits for. `tables`:
    only these. `until`: only the parts of this migration and of those before.
    """
    lacking = [part for part in missing(connection, tables) if until is None or part.migration <= until]
    for step in steps(lacking):
        part = step[0]
        match part.kind:
            case Kind.TABLE:
                new = [each.table for each in step if each.kind is Kind.TABLE]
                with _told(tell, f"made {_counted('table', new)}", names=new):
                    _create(connection, step)
            case Kind.COLUMN:
                names = [each.name for each in step]
                with _told(tell, f"added {_counted('column', names)} to {part.table}", names=names):
                    change(connection, [part.table], columns_statement(step), tell)
            case Kind.INDEX | Kind.LEFTOVER:
                _build(connection, part, tell)
            case Kind.FUNCTION:
                with _told(tell, f"made function {part}"):
                    _create(connection, step)
            case Kind.KEY:
                _build_key(connection, part, tell)
            case Kind.PARTITIONS:
                with _told(tell, f"put partitions into {part.table}"):
                    partitioning.partition(connection, part.table, part.statement, tell)


@contextlib.contextmanager
def _told(tell: Tell, what: str, *, names: Sequence[str] = ()) -> Iterator[None]:
    """Tell what the block has done, and how long that took, waits for locks included."""
    began = time.monotonic()
    yield
    tell(f"{what} in {time.monotonic() - began:.2f} s{': ' * bool(names)}{', '.join(names)}")


def _counted(noun: str, things: Sequence[str]) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) > 1)}"


def _create(connection: "BoundedConnection", parts: Sequence[SchemaPart]) -> None:
    """Create tables with their columns and indexes, or a function, in one transaction.

    A primary key is part of its table's statement.
    """

    def attempt() -> bool:
        with bounded(connection):
            connection.execute(queries["lock_schema"])
            connection.execute(queries["fix_search_path"])
            connection.execute(queries["act_as_owner"])
            for part in parts:
                if part.kind not in {Kind.KEY, Kind.PARTITIONS}:
                    connection.execute(part.statement)
        return True

    until_free(connection, attempt, lambda: in_use("the schema", []))


def _build(connection: "BoundedConnection", part: SchemaPart, tell: Tell) -> None:
    """Build an index, or drop a leftover, while roles write. An index that a crash left half-built is dropped first."""
    if partitions := partitioning.partitions(connection, part.table):
        _build_in(connection, partitions, part, tell)
        return
    deadline = time.monotonic() + connection.limits.schema_s
    between = pauses()
    while lacking := state(connection, [part]):
        if time.monotonic() > deadline:
            raise in_use(f"table {part.table}", holders(connection, [part.table]))
        # Wait until another session's build of an index of this table, or its vacuum, has finished.
        free = connection.execute(queries["builders"], {"table": part.table}).fetchone() == (0,)
        # Two builds at the same time may wait for each other's snapshots: PostgreSQL ends one as a deadlock.
        with contextlib.suppress(psycopg.errors.DeadlockDetected, _HAS_PARTITIONS):
            if free and (part.kind is Kind.LEFTOVER or lacking[0].invalid):
                with _told(tell, f"dropped index {part.name}"):
                    _concurrently(connection, part, f"DROP INDEX IF EXISTS {part.name}")
                continue
            if free:
                tell(f"builds index {part.name}, as soon as open transactions have ended …")
                with _told(tell, f"built index {part.name}"):
                    _concurrently(connection, part, part.statement)
                continue
        between.pause()
        if partitioning.partitions(connection, part.table):
            _build(connection, part, tell)


def _build_in(
    connection: "BoundedConnection", partitions: Sequence[LiteralString], part: SchemaPart, tell: Tell
) -> None:
    """Build an index of a partitioned table, or drop a leftover.

    PostgreSQL builds concurrently only the index of a single partition. The table's index then attaches those, which
    builds nothing.
    """
    if part.kind is Kind.INDEX and (lacking := state(connection, [part])):
        if lacking[0].invalid:  # it lacks the indexes of some partitions
            change(connection, [part.table], f"DROP INDEX IF EXISTS {part.name}", tell)
        for partition in partitions:
            _build(connection, of_partition(part, partition), tell)
    if state(connection, [part]):
        change(connection, [part.table], part.statement, tell)


def _build_key(connection: "BoundedConnection", part: SchemaPart, tell: Tell) -> None:
    """Build a primary key while roles write: its unique index first, which then becomes the key."""
    if partitions := partitioning.partitions(connection, part.table):
        for partition in partitions:
            _build_key(connection, of_partition(part, partition), tell)
        adopt = whole_key_statement(part)
    else:
        _build(connection, SchemaPart(Kind.INDEX, part.name, part.table, part.statement), tell)
        adopt = adopting_statement(part)
    with contextlib.suppress(*_HAS_A_KEY, _HAS_PARTITIONS):  # another session has done it
        change(connection, [part.table], adopt, tell)


def _concurrently(connection: "BoundedConnection", part: SchemaPart, statement: LiteralString) -> None:
    """Build or drop an index concurrently. It waits up to schema_s for open transactions; no writer waits for it."""
    limits = connection.limits
    bound, own = connection.execute(queries["statement_bound"]).fetchone() or ("0ms", False)
    try:
        if own:
            connection.execute(queries["rebound_session"], {"timeout": f"{limits.schema_s}s"})
        with connection.answering_within(limits.schema_s + limits.database_look_s):
            # psycopg's own cursor begins no transaction behind a pooler: in one PostgreSQL refuses CONCURRENTLY.
            psycopg.Cursor(connection).execute(concurrent_statement(statement))
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
        found = holders(connection, [part.table], snapshots=True)
        raise in_use(f"index {part.name}", found, what_for="made or dropped") from None
    except psycopg.errors.UniqueViolation as error:
        detail = (error.diag.message_detail or str(error).splitlines()[0]).rstrip(".")
        raise BrewError(
            f"{part.name} can't be made, for rows of {part.table} are there twice: {detail}",
            hint="delete all but one of them, then run this again",
        ) from None
    finally:
        if own and not connection.closed:
            connection.execute(queries["rebound_session"], {"timeout": bound})

"""The schema in a database: what is missing of it, and how that is added beside roles at work.

schema.sql says how it is to be. The catalog says what is missing, and only that is run: on a complete schema no
statement is, and no table is locked. A statement that needs a table for itself waits for its lock a fraction of a
second at a time, and not at all while another transaction keeps one: all later statements would wait behind it.
Indexes are built concurrently.
"""

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, LiteralString, NamedTuple

import psycopg

from brewctl import lifecycle, sql
from brewctl.errors import BrewError
from brewctl.sql import queries

if TYPE_CHECKING:
    from brewctl.delivery.database import BoundedConnection, Connection

_COMMENT = re.compile(r"--.*")
_HAS_A_KEY = (psycopg.errors.InvalidTableDefinition, psycopg.errors.ObjectNotInPrerequisiteState)
_FIRST_S, _LONGEST_S = 0.1, 1.0  # pauses between two looks at a table that is in use
Tell = Callable[[str], None]
_STATE = ("kinds", "tables", "names", "columns")


def _nobody(_text: str) -> None:
    pass


class Kind(StrEnum):
    """What a part of the schema is."""

    TABLE = "table"
    COLUMN = "column"  # that a later version added
    KEY = "key"  # a table's primary key
    INDEX = "index"
    LEFTOVER = "leftover"  # an older version's index, to be dropped
    FUNCTION = "function"  # missing where its body is another one


# How each statement of schema.sql begins, with the table and the name of the part.
_FORMS = {
    Kind.TABLE: re.compile(r"CREATE TABLE IF NOT EXISTS (?P<name>\w+) "),
    Kind.COLUMN: re.compile(r"ALTER TABLE (?P<table>\w+) ADD COLUMN IF NOT EXISTS (?P<name>\w+) "),
    Kind.INDEX: re.compile(r"CREATE (?:UNIQUE )?INDEX IF NOT EXISTS (?P<name>\w+) ON (?P<table>\w+) "),
    Kind.LEFTOVER: re.compile(r"DROP INDEX IF EXISTS (?P<name>\w+)$"),
    Kind.FUNCTION: re.compile(r"CREATE OR REPLACE FUNCTION (?P<name>\w+)\("),
}
# A statement, up to its semicolon or that of the file's end; a function's body may have some of its own.
_STATEMENT = re.compile(r"(?:\$\$.*?\$\$|[^;$])+", re.DOTALL)
_BODY = re.compile(r"\$\$(.*)\$\$", re.DOTALL)
_KEY = re.compile(r"(\w+) [^,]*?\bPRIMARY KEY|\bPRIMARY KEY \(([^)]*)\)")


@dataclass(frozen=True, slots=True)
class Part:
    """One thing of the schema, and the statement that makes it so. A leftover's table is that of the part before."""

    kind: Kind
    name: str
    table: str
    statement: LiteralString
    columns: tuple[str, ...] = ()
    # Of one that is missing: its index is there, and its build was cut off or still goes on.
    invalid: bool = False
    body: str = ""  # of a function

    @property
    def is_read(self) -> bool:
        """Whether a query fails without it."""
        return self.kind in {Kind.TABLE, Kind.COLUMN, Kind.FUNCTION}

    @property
    def is_needed(self) -> bool:
        """Whether a role must not work without it: its statements would fail, or let repeats through."""
        return self.is_read or self.kind is Kind.KEY or "UNIQUE" in self.statement or self.name in _NEEDED

    def __str__(self) -> str:
        match self.kind:
            case Kind.COLUMN:
                return f"{self.table}.{self.name}"
            case Kind.FUNCTION:
                return f"{self.name}()"
            case Kind.KEY:
                return f"the primary key of {self.table} ({', '.join(self.columns)})"
            case _:
                return f"{self.name} (invalid)" if self.invalid else self.name


# An index that tells the version: without it, publishers read all that ever waited.
_NEEDED = {"outbox_ready"}


class Holder(NamedTuple):
    """A transaction that a change of the schema has to wait for. A prepared one has a `gid` and no `pid`."""

    transaction: str
    pid: int | None
    name: str
    gid: str | None
    age_s: float | None

    def __str__(self) -> str:
        who = f"prepared transaction {self.gid!r}" if self.gid else f"pid {self.pid} ({self.name or 'no name'})"
        return who if self.age_s is None else f"{who}, whose transaction is {self.age_s:.0f} s old"

    @property
    def mend(self) -> str:
        """The statement that ends it."""
        return f"ROLLBACK PREPARED '{self.gid}';" if self.gid else f"SELECT pg_terminate_backend({self.pid});"


def parse(text: LiteralString) -> list[Part]:
    """Split a schema into its parts, in their order. Raises ValueError at a statement of an unknown form."""
    parts: list[Part] = []
    for piece in _STATEMENT.findall(_COMMENT.sub("", text)):
        if not (statement := " ".join(piece.split())):
            continue
        for kind, form in _FORMS.items():
            if match := form.match(statement):
                named = match.groupdict()
                table = parts[-1].table if kind is Kind.LEFTOVER else named.get("table", named["name"])
                body = _BODY.search(statement)
                parts.append(Part(kind, named["name"], table, statement, body=body[1].strip() if body else ""))
                break
        else:
            raise ValueError(f"a statement of no known form: {statement[:60]}")
        if kind is Kind.TABLE and (key := _key(named["name"], statement)):
            parts.append(key)
    return parts


def _key(table: str, statement: LiteralString) -> Part | None:
    if not (found := _KEY.search(statement.partition("(")[2])):
        return None
    columns = tuple(column.strip(' "') for column in (found[1] or found[2]).split(","))
    quoted = ", ".join(f'"{column}"' for column in columns)
    index = f"CREATE UNIQUE INDEX IF NOT EXISTS {table}_pkey ON {table} ({quoted})"
    return Part(Kind.KEY, f"{table}_pkey", table, index, columns)


PARTS = parse(sql.schema)
TABLES = [part.name for part in PARTS if part.kind is Kind.TABLE]


# What a downstream needs beside its own tables, in a database of its own: of these tables those that there are.
INBOX_TABLES = frozenset({"processed_events", "redeliveries", "parked_events", "downstreams"}.intersection(TABLES))


def missing(connection: "Connection", tables: Collection[str] | None = None) -> list[Part]:
    """Name what is not as schema.sql wants it, leftovers too, in its order. Takes no lock of any table.

    Of a table that is missing, its columns, key and indexes are not named. `tables`: only these, and no function.
    """
    lacking = _missing(connection, [part for part in PARTS if tables is None or part.table in tables])
    new = {part.table for part in lacking if part.kind is Kind.TABLE}
    return [part for part in lacking if part.kind is Kind.TABLE or part.table not in new]


def _missing(connection: "Connection", parts: Sequence[Part]) -> list[Part]:
    rows = [(part.kind.value, part.table, part.name, part.body or ",".join(part.columns)) for part in parts]
    asked = dict(zip(_STATE, map(list, zip(*rows, strict=True)), strict=True))
    found = connection.execute(queries["schema_state"], asked).fetchall()
    return [
        replace(part, invalid=invalid) for part, invalid in ((parts[place - 1], invalid) for place, invalid in found)
    ]


def complete(connection: "BoundedConnection", tell: Tell = _nobody, tables: Collection[str] | None = None) -> None:
    """Add what is missing, and nothing else; an index whose build was cut off is made anew. Several may call at once.

    Writers go on: a statement of theirs waits at most schema_lock_s for it at a time. Raises BrewError where a table is
    in use for longer than schema_wait_s, or where rows break a key; what was added until then stays, and a later
    call adds the rest. `tell` hears what takes a while, and whom it waits for. `tables`: only these.
    """
    lacking = missing(connection, tables)
    # Tables with all that is theirs, at once: nobody uses them yet.
    if new := {part.table for part in lacking if part.kind is Kind.TABLE}:
        _create(connection, [part for part in PARTS if part.table in new])
    for part in lacking:
        match part.kind:
            case Kind.COLUMN:
                change(connection, [part.table], part.statement, tell)
            case Kind.INDEX | Kind.LEFTOVER:
                _build(connection, part, tell)
            case Kind.FUNCTION:
                _create(connection, [part])
            case Kind.KEY:
                _build(connection, Part(Kind.INDEX, part.name, part.table, part.statement), tell)
                adopt = f"ALTER TABLE {part.table} ADD PRIMARY KEY USING INDEX {part.name}"
                with contextlib.suppress(*_HAS_A_KEY):  # another session was quicker
                    change(connection, [part.table], adopt, tell)


def change(
    connection: "BoundedConnection", tables: Sequence[str], statement: LiteralString, tell: Tell = _nobody
) -> None:
    """Run a statement that needs tables for itself, in a transaction, as soon as they are free.

    Raises BrewError, with those who hold them, where they are not free within schema_wait_s.
    """
    limits = connection.limits
    deadline = time.monotonic() + limits.schema_wait_s
    pauses = lifecycle.Backoff(threading.Event(), first_s=_FIRST_S, longest_s=_LONGEST_S)
    seen: set[str] = set()
    told = False
    while True:
        holders = _holders(connection, tables)
        staying = [holder for holder in holders if holder.transaction in seen]
        # A transaction that was there at the look before may stay for hours, as pg_dump's does: while this session
        # waited for its lock, all later statements would wait behind. Short transactions are waited for.
        if not staying and (seen or not holders):
            with contextlib.suppress(psycopg.errors.LockNotAvailable), bounded(connection):
                connection.execute(statement)
                return
        if time.monotonic() > deadline:
            raise _in_use(f"table {tables[0]}" if len(tables) == 1 else "tables", staying or holders)
        if staying and not told:
            tell(f"waits for {staying[0]} …")
            told = True
        seen = {holder.transaction for holder in holders}
        pauses.pause()


@contextlib.contextmanager
def bounded(connection: "BoundedConnection") -> Iterator[None]:
    """A transaction whose statements wait schema_lock_s for a lock, and take schema_s at most."""
    limits = connection.limits
    with connection.answering_within(limits.schema_s + limits.database_look_s), connection.transaction():
        connection.execute(queries["bound_statements"], {"timeout": f"{limits.schema_s}s"})
        connection.execute(queries["bound_locks"], {"timeout": f"{math.ceil(limits.schema_lock_s * 1000)}ms"})
        yield


def _create(connection: "BoundedConnection", parts: Sequence[Part]) -> None:
    """Create tables with their indexes, or a function, in one transaction. A table's key is in its own statement."""
    deadline = time.monotonic() + connection.limits.schema_wait_s
    pauses = lifecycle.Backoff(threading.Event(), first_s=_FIRST_S, longest_s=_LONGEST_S)
    while True:
        try:
            with bounded(connection):
                connection.execute(queries["lock_schema"])
                connection.execute(queries["fix_search_path"])
                for part in parts:
                    if part.kind in {Kind.TABLE, Kind.INDEX, Kind.FUNCTION}:
                        connection.execute(part.statement)
                return
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise _in_use("the schema", []) from None
            pauses.pause()


def _build(connection: "BoundedConnection", part: Part, tell: Tell) -> None:
    """Build an index beside writers, or drop a leftover; one that a crash has left half-built is dropped, and built."""
    deadline = time.monotonic() + connection.limits.schema_s
    pauses = lifecycle.Backoff(threading.Event(), first_s=_FIRST_S, longest_s=_LONGEST_S)
    while lacking := _missing(connection, [part]):
        if time.monotonic() > deadline:
            raise _in_use(f"table {part.table}", _holders(connection, [part.table]))
        # Another session that builds an index of this table, or a vacuum: let it finish first.
        free = connection.execute(queries["builders"], {"table": part.table}).fetchone() == (0,)
        # Two that build at the same time may wait for each other's snapshots: PostgreSQL ends one of them.
        with contextlib.suppress(psycopg.errors.DeadlockDetected):
            if free and (part.kind is Kind.LEFTOVER or lacking[0].invalid):
                _concurrently(connection, part, f"DROP INDEX IF EXISTS {part.name}")
                continue
            if free:
                tell(f"builds index {part.name}, as soon as open transactions have ended …")
                _concurrently(connection, part, part.statement)
                continue
        pauses.pause()


def _concurrently(connection: "BoundedConnection", part: Part, statement: LiteralString) -> None:
    """Build or drop an index. It waits for open transactions, up to schema_s; no writer waits behind it."""
    limits = connection.limits
    bound, own = connection.execute(queries["statement_bound"]).fetchone() or ("0ms", False)
    try:
        if own:
            connection.execute(queries["rebound_session"], {"timeout": f"{limits.schema_s}s"})
        with connection.answering_within(limits.schema_s + limits.database_look_s):
            # A cursor of psycopg's own: it opens no transaction, in which no index is built concurrently.
            psycopg.Cursor(connection).execute(statement.replace(" INDEX IF", " INDEX CONCURRENTLY IF", 1))
    except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
        found = _holders(connection, [part.table], snapshots=True)
        raise _in_use(f"index {part.name}", found, what_for="made or dropped") from None
    except psycopg.errors.UniqueViolation as error:
        detail = (error.diag.message_detail or str(error).splitlines()[0]).rstrip(".")
        raise BrewError(
            f"{part.name} can't be made, for rows of {part.table} are there twice: {detail}",
            hint="delete all but one of them, then run `brewctl db init` again",
        ) from None
    finally:
        if own and not connection.closed:
            connection.execute(queries["rebound_session"], {"timeout": bound})


def _holders(connection: "Connection", tables: Sequence[str], *, snapshots: bool = False) -> list[Holder]:
    asked = {"tables": list(tables), "snapshots": snapshots}
    return [Holder(*row) for row in connection.execute(queries["table_holders"], asked)]


def _in_use(what: str, holders: Sequence[Holder], *, what_for: str = "changed") -> BrewError:
    if not holders:
        found = f"{what} can't be {what_for}: transactions hold it one after the other"
        return BrewError(found, hint="run `brewctl db init` again when the roles have less to do")
    more = f", and {len(holders) - 1} more" if len(holders) > 1 else ""
    found = f"{what} can't be {what_for}: it is in use by {holders[0]}{more}"
    hint = f"run `brewctl db init` again when that is over, or end it in psql: `{holders[0].mend}`"
    return BrewError(found, hint=hint)

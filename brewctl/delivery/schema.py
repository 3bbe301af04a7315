"""The schema in a database: what is missing of it, and how that is added beside roles at work.

The migrations say how it is to be: the last one that makes, changes or drops a thing has the last word. The catalog
says what is missing, and only that is run: on a complete schema no statement is, and no table is locked. Columns are
added in one statement a table (table_locks.py), and indexes are built concurrently.
"""

import contextlib
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, LiteralString

import psycopg

from brewctl import sql
from brewctl.delivery import partitioning
from brewctl.delivery.table_locks import Tell, bounded, change, holders, in_use, nobody, pauses, until_free
from brewctl.errors import BrewError
from brewctl.sql import queries

if TYPE_CHECKING:
    from brewctl.delivery.database import BoundedConnection, Connection

_COMMENT = re.compile(r"--.*")
_HAS_A_KEY = (psycopg.errors.InvalidTableDefinition, psycopg.errors.ObjectNotInPrerequisiteState)
_HAS_PARTITIONS = psycopg.errors.FeatureNotSupported  # since a moment ago: another session was quicker
# Says which migrations are complete: no role's statements need it.
VERSIONS = "schema_version"
_STATE = ("kinds", "tables", "names", "columns")


class Kind(StrEnum):
    """What a part of the schema is."""

    TABLE = "table"
    COLUMN = "column"  # that a later version added
    KEY = "key"  # a table's primary key
    INDEX = "index"
    LEFTOVER = "leftover"  # an older version's index, to be dropped
    FUNCTION = "function"  # missing where its body is another one
    PARTITIONS = "partitions"  # those of a table


# How each statement of a migration begins, with the table and the name of the part.
_FORMS = {
    Kind.TABLE: re.compile(r"CREATE TABLE IF NOT EXISTS (?P<name>\w+) "),
    Kind.COLUMN: re.compile(r"ALTER TABLE (?P<table>\w+) ADD COLUMN IF NOT EXISTS (?P<name>\w+) "),
    Kind.INDEX: re.compile(r"CREATE (?:UNIQUE )?INDEX IF NOT EXISTS (?P<name>\w+) ON (?P<table>\w+) "),
    Kind.LEFTOVER: re.compile(r"DROP INDEX IF EXISTS (?P<name>\w+)$"),
    Kind.FUNCTION: re.compile(r"CREATE OR REPLACE FUNCTION (?P<name>\w+)\("),
    Kind.PARTITIONS: re.compile(r"SELECT partition_table\('(?P<name>\w+)', '\w+'\)$"),
}
PARTITION_FUNCTIONS = ("partitions_of", "make_partition", "keep_to_owner", "partition_table")
# Functions that come with a table, wherever that is.
_COME_WITH = dict.fromkeys(PARTITION_FUNCTIONS, "retention")
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
    migration: int = 0  # the number of the one that says so

    @property
    def is_read(self) -> bool:
        """Whether a query fails without it."""
        return self.kind in {Kind.TABLE, Kind.COLUMN, Kind.FUNCTION} and self.table != VERSIONS

    @property
    def is_needed(self) -> bool:
        """Whether a role must not work without it: its statements would fail, or let repeats through."""
        if self.table == VERSIONS:
            return False
        return self.is_read or self.kind is Kind.KEY or "UNIQUE" in self.statement or self.name in _NEEDED

    def __str__(self) -> str:
        match self.kind:
            case Kind.COLUMN:
                return f"{self.table}.{self.name}"
            case Kind.FUNCTION:
                return f"{self.name}()"
            case Kind.PARTITIONS:
                return f"the partitions of {self.table}"
            case Kind.KEY:
                return f"the primary key of {self.table} ({', '.join(self.columns)})"
            case _:
                return f"{self.name} (invalid)" if self.invalid else self.name


# An index that tells the version: without it, publishers read all that ever waited.
_NEEDED = {"outbox_ready"}


def parse(text: LiteralString, migration: int = 0) -> list[Part]:
    """Split a migration into its parts, in their order. Raises ValueError at a statement of an unknown form."""
    parts: list[Part] = []
    for piece in _STATEMENT.findall(_COMMENT.sub("", text)):
        if not (statement := " ".join(piece.split())):
            continue
        for kind, form in _FORMS.items():
            if match := form.match(statement):
                named = match.groupdict()
                table = parts[-1].table if kind is Kind.LEFTOVER else named.get("table", named["name"])
                if kind is Kind.FUNCTION:
                    table = _COME_WITH.get(table, table)
                body = _BODY.search(statement)
                text_of_body = body[1].strip() if body else ""
                parts.append(Part(kind, named["name"], table, statement, body=text_of_body, migration=migration))
                break
        else:
            raise ValueError(f"a statement of no known form: {statement[:60]}")
        if kind is Kind.TABLE and (key := _key(named["name"], statement, migration)):
            parts.append(key)
    return parts


def _key(table: str, statement: LiteralString, migration: int) -> Part | None:
    if not (found := _KEY.search(statement.partition("(")[2])):
        return None
    columns = tuple(column.strip(' "') for column in (found[1] or found[2]).split(","))
    quoted = ", ".join(f'"{column}"' for column in columns)
    index = f"CREATE UNIQUE INDEX IF NOT EXISTS {table}_pkey ON {table} ({quoted})"
    return Part(Kind.KEY, f"{table}_pkey", table, index, columns, migration=migration)


def wanted(migrations: Mapping[int, LiteralString]) -> list[Part]:
    """Return the parts of the schema after these migrations: of two that name the same thing, the later one."""
    found: dict[tuple[str, str], Part] = {}
    for number, text in migrations.items():
        for part in parse(text, number):
            kind = Kind.INDEX if part.kind is Kind.LEFTOVER else part.kind
            place = kind.value, str(part) if kind is Kind.COLUMN else part.name
            found.pop(place, None)
            found[place] = part
    return [*found.values()]


PARTS = wanted(sql.migrations)
TABLES = [part.name for part in PARTS if part.kind is Kind.TABLE]


# What a downstream needs beside its own tables, in a database of its own: of these tables those that there are.
INBOX_TABLES = frozenset(
    {VERSIONS, "processed_events", "redeliveries", "parked_events", "downstreams", "retention"}.intersection(TABLES)
)


def missing(connection: "Connection", tables: Collection[str] | None = None) -> list[Part]:
    """Name what is not as the migrations want it, leftovers too, in its order. Takes no lock of any table.

    Of a table that is missing, its columns, key and indexes are not named. `tables`: only these, and no function.
    """
    lacking = state(connection, [part for part in PARTS if tables is None or part.table in tables])
    new = {part.table for part in lacking if part.kind is Kind.TABLE}
    return [part for part in lacking if part.kind is Kind.TABLE or part.table not in new]


def state(connection: "Connection", parts: Sequence[Part]) -> list[Part]:
    """Return those of some parts that are not as they are wanted. Looks into the catalog alone."""
    rows = [(part.kind.value, part.table, part.name, part.body or ",".join(part.columns)) for part in parts]
    asked = dict(zip(_STATE, map(list, zip(*rows, strict=True)), strict=True))
    found = connection.execute(queries["schema_state"], asked).fetchall()
    return [
        replace(part, invalid=invalid) for part, invalid in ((parts[place - 1], invalid) for place, invalid in found)
    ]


_LAST = {Kind.LEFTOVER: 1, Kind.PARTITIONS: 2}


def steps(lacking: Sequence[Part]) -> Iterator[list[Part]]:
    """Split what is missing into what is run together, in the order in which it is run: migration by migration.

    New tables with all that is theirs, whichever migration says so: nobody uses them yet. The columns of a table. Each
    other part alone, leftovers and partitions last.
    """
    for number in sorted({part.migration for part in lacking}):
        here = [part for part in lacking if part.migration == number]
        if new := [part.table for part in here if part.kind is Kind.TABLE]:
            yield [part for part in PARTS if part.table in new]
        columns = [part for part in here if part.kind is Kind.COLUMN]
        for table in dict.fromkeys(part.table for part in columns):
            yield [part for part in columns if part.table == table]
        others = [part for part in here if part.kind not in {Kind.TABLE, Kind.COLUMN}]
        # An index that is no longer wanted goes when the one that replaces it is there. What has to be made of a table
        # is made of one table.
        yield from ([part] for part in sorted(others, key=lambda part: _LAST.get(part.kind, 0)))


def complete(
    connection: "BoundedConnection",
    tell: Tell = nobody,
    tables: Collection[str] | None = None,
    *,
    until: int | None = None,
) -> None:
    """Add what is missing, and nothing else; an index whose build was cut off is made anew. Several may call at once.

    Writers go on: a statement of theirs waits at most schema_lock_s for it at a time. Raises BrewError where a table is
    in use for longer than schema_wait_s, or where rows break a key; what was added until then stays, and a later
    call adds the rest. `tell` hears of each step and how long it took, and whom it waits for. `tables`: only these.
    `until`: only what this migration and those before it say.
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
    """Say what the block has done, and how long that took, its waits for others included."""
    began = time.monotonic()
    yield
    tell(f"{what} in {time.monotonic() - began:.2f} s{': ' * bool(names)}{', '.join(names)}")


def _counted(noun: str, things: Sequence[str]) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) > 1)}"


def columns_statement(parts: Sequence[Part]) -> LiteralString:
    """Return the one statement that adds columns to a table, which is locked once for all of them."""
    first, *others = parts
    statement = first.statement
    for part in others:
        statement += ", ADD " + part.statement.partition(" ADD ")[2]
    return statement


def adopting_statement(key: Part) -> LiteralString:
    """Return the statement that makes a table's primary key of the unique index that was built for it."""
    return f"ALTER TABLE {key.table} ADD PRIMARY KEY USING INDEX {key.name}"


def whole_key_statement(key: Part) -> LiteralString:
    """Return the statement that makes a partitioned table's primary key of those of its partitions."""
    columns = ", ".join(f'"{column}"' for column in key.columns)
    return f"ALTER TABLE {key.table} ADD PRIMARY KEY ({columns})"


def concurrent_statement(statement: LiteralString) -> LiteralString:
    """Return a statement that builds or drops an index such that no writer waits for it."""
    return statement.replace(" INDEX IF", " INDEX CONCURRENTLY IF", 1)


def _create(connection: "BoundedConnection", parts: Sequence[Part]) -> None:
    """Create tables with all that is theirs, or a function, in one transaction. A key is in its table's statement."""

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


def _build(connection: "BoundedConnection", part: Part, tell: Tell) -> None:
    """Build an index beside writers, or drop a leftover; one that a crash has left half-built is dropped, and built."""
    if partitions := partitioning.partitions(connection, part.table):
        # Only that of a partition is built concurrently. The table's then takes these for its own, and builds nothing.
        if part.kind is Kind.INDEX and (lacking := state(connection, [part])):
            if lacking[0].invalid:  # somebody has made it of some partitions alone
                change(connection, [part.table], f"DROP INDEX IF EXISTS {part.name}", tell)
            for partition in partitions:
                _build(connection, of_partition(part, partition), tell)
        if state(connection, [part]):
            change(connection, [part.table], part.statement, tell)
        return
    deadline = time.monotonic() + connection.limits.schema_s
    between = pauses()
    while lacking := state(connection, [part]):
        if time.monotonic() > deadline:
            raise in_use(f"table {part.table}", holders(connection, [part.table]))
        # Another session that builds an index of this table, or a vacuum: let it finish first.
        free = connection.execute(queries["builders"], {"table": part.table}).fetchone() == (0,)
        # Two that build at the same time may wait for each other's snapshots: PostgreSQL ends one of them.
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


def _build_key(connection: "BoundedConnection", part: Part, tell: Tell) -> None:
    """Build a primary key beside writers: its index, which the table then takes for it."""
    if partitions := partitioning.partitions(connection, part.table):
        for partition in partitions:
            _build_key(connection, of_partition(part, partition), tell)
        adopt = whole_key_statement(part)
    else:
        _build(connection, Part(Kind.INDEX, part.name, part.table, part.statement), tell)
        adopt = adopting_statement(part)
    with contextlib.suppress(*_HAS_A_KEY, _HAS_PARTITIONS):  # another session was quicker
        change(connection, [part.table], adopt, tell)


def of_partition(part: Part, partition: LiteralString) -> Part:
    """Return the part of one partition that an index or key is made of."""
    name = part.name + partition.removeprefix(part.table)
    statement = part.statement.replace(f" {part.name} ON {part.table} ", f" {name} ON {partition} ", 1)
    return replace(part, name=name, table=partition, statement=statement)


def _concurrently(connection: "BoundedConnection", part: Part, statement: LiteralString) -> None:
    """Build or drop an index. It waits for open transactions, up to schema_s; no writer waits behind it."""
    limits = connection.limits
    bound, own = connection.execute(queries["statement_bound"]).fetchone() or ("0ms", False)
    try:
        if own:
            connection.execute(queries["rebound_session"], {"timeout": f"{limits.schema_s}s"})
        with connection.answering_within(limits.schema_s + limits.database_look_s):
            # A cursor of psycopg's own: it opens no transaction, in which no index is built concurrently.
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

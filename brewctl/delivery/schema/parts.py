"""The parts of the schema, read from the migrations: tables, columns, keys, indexes, functions, partitions.

Where several migrations name the same part, the last one counts.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import LiteralString

from brewctl import sql

_COMMENT = re.compile(r"--.*")
# The table of complete migrations. No role's statements need it.
VERSIONS = "schema_version"


class Kind(StrEnum):
    """What a part of the schema is."""

    TABLE = "table"
    COLUMN = "column"  # added by a later migration
    KEY = "key"  # a table's primary key
    INDEX = "index"
    LEFTOVER = "leftover"  # an older version's index, to be dropped
    FUNCTION = "function"  # also missing where its body differs
    PARTITIONS = "partitions"  # of a table


# The beginnings of a migration's statements, with the table and the name of the part.
_FORMS = {
    Kind.TABLE: re.compile(r"CREATE TABLE IF NOT EXISTS (?P<name>\w+) "),
    Kind.COLUMN: re.compile(r"ALTER TABLE (?P<table>\w+) ADD COLUMN IF NOT EXISTS (?P<name>\w+) "),
    Kind.INDEX: re.compile(r"CREATE (?:UNIQUE )?INDEX IF NOT EXISTS (?P<name>\w+) ON (?P<table>\w+) "),
    Kind.LEFTOVER: re.compile(r"DROP INDEX IF EXISTS (?P<name>\w+)$"),
    Kind.FUNCTION: re.compile(r"CREATE OR REPLACE FUNCTION (?P<name>\w+)\("),
    Kind.PARTITIONS: re.compile(r"SELECT partition_table\('(?P<name>\w+)', '\w+'\)$"),
}
PARTITION_FUNCTIONS = ("partitions_of", "make_partition", "keep_to_owner", "partition_table")
# Functions that belong to a table: a database that needs the table needs them too.
_COME_WITH = dict.fromkeys(PARTITION_FUNCTIONS, "retention")
# A statement up to its semicolon or the file's end; semicolons in a function's body don't end it.
_STATEMENT = re.compile(r"(?:\$\$.*?\$\$|[^;$])+", re.DOTALL)
_BODY = re.compile(r"\$\$(.*)\$\$", re.DOTALL)
_KEY = re.compile(r"(\w+) [^,]*?\bPRIMARY KEY|\bPRIMARY KEY \(([^)]*)\)")


@dataclass(frozen=True, slots=True)
class SchemaPart:
    """One part of the schema, and the statement that makes it. A leftover's table is that of the part before it."""

    kind: Kind
    name: str
    table: str
    statement: LiteralString
    columns: tuple[str, ...] = ()
    # The index is there, but its build was interrupted or still goes on.
    invalid: bool = False
    body: str = ""  # of a function
    migration: int = 0  # the number of its migration

    @property
    def is_read(self) -> bool:
        """Whether a query fails without it."""
        return self.kind in {Kind.TABLE, Kind.COLUMN, Kind.FUNCTION} and self.table != VERSIONS

    @property
    def is_needed(self) -> bool:
        """Whether a role must not start without it: its statements would fail, or accept duplicates."""
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


# Without this index publishers would read every row that ever waited.
_NEEDED = {"outbox_ready"}


def parse(text: LiteralString, migration: int = 0) -> list[SchemaPart]:
    """Return a migration's parts in their order. Raises ValueError for a statement of an unknown form."""
    parts: list[SchemaPart] = []
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
                parts.append(SchemaPart(kind, named["name"], table, statement, body=text_of_body, migration=migration))
                break
        else:
            raise ValueError(f"a statement of no known form: {statement[:60]}")
        if kind is Kind.TABLE and (key := _key(named["name"], statement, migration)):
            parts.append(key)
    return parts


def _key(table: str, statement: LiteralString, migration: int) -> SchemaPart | None:
    if not (found := _KEY.search(statement.partition("(")[2])):
        return None
    columns = tuple(column.strip(' "') for column in (found[1] or found[2]).split(","))
    quoted = ", ".join(f'"{column}"' for column in columns)
    index = f"CREATE UNIQUE INDEX IF NOT EXISTS {table}_pkey ON {table} ({quoted})"
    return SchemaPart(Kind.KEY, f"{table}_pkey", table, index, columns, migration=migration)


def wanted(migrations: Mapping[int, LiteralString]) -> list[SchemaPart]:
    """Return the parts of the schema after these migrations: of two for the same thing the later one."""
    found: dict[tuple[str, str], SchemaPart] = {}
    for number, text in migrations.items():
        for part in parse(text, number):
            kind = Kind.INDEX if part.kind is Kind.LEFTOVER else part.kind
            place = kind.value, str(part) if kind is Kind.COLUMN else part.name
            found.pop(place, None)
            found[place] = part
    return [*found.values()]


PARTS = wanted(sql.migrations)
TABLES = [part.name for part in PARTS if part.kind is Kind.TABLE]


# The tables that a downstream needs in a database of its own, beside those of its `schema`.
INBOX_TABLES = frozenset(
    {
        VERSIONS,
        "processed_events",
        "redeliveries",
        "parked_events",
        "waiting_events",
        "downstreams",
        "retention",
    }.intersection(TABLES)
)


_LAST = {Kind.LEFTOVER: 1, Kind.PARTITIONS: 2}


def steps(lacking: Sequence[SchemaPart]) -> Iterator[list[SchemaPart]]:
    """Yield the missing parts in groups that run together, in the order to run them, migration by migration.

    First new tables, with all their parts from any migration, since no role uses them yet; then a table's columns
    together; then each other part alone, leftovers and partitions last.
    """
    for number in sorted({part.migration for part in lacking}):
        here = [part for part in lacking if part.migration == number]
        if new := [part.table for part in here if part.kind is Kind.TABLE]:
            yield [part for part in PARTS if part.table in new]
        columns = [part for part in here if part.kind is Kind.COLUMN]
        for table in dict.fromkeys(part.table for part in columns):
            yield [part for part in columns if part.table == table]
        others = [part for part in here if part.kind not in {Kind.TABLE, Kind.COLUMN}]
        # A leftover index is dropped once the one that replaces it is there. Indexes and keys come before partitions,
        # so that they are made of one table.
        yield from ([part] for part in sorted(others, key=lambda part: _LAST.get(part.kind, 0)))


def columns_statement(parts: Sequence[SchemaPart]) -> LiteralString:
    """Return one statement that adds several columns, so that the table is locked once."""
    first, *others = parts
    statement = first.statement
    for part in others:
        statement += ", ADD " + part.statement.partition(" ADD ")[2]
    return statement


def adopting_statement(key: SchemaPart) -> LiteralString:
    """Return the statement that makes the unique index of a key the table's primary key."""
    return f"ALTER TABLE {key.table} ADD PRIMARY KEY USING INDEX {key.name}"


def whole_key_statement(key: SchemaPart) -> LiteralString:
    """Return the statement that adds a partitioned table's primary key, which attaches those of its partitions."""
    columns = ", ".join(f'"{column}"' for column in key.columns)
    return f"ALTER TABLE {key.table} ADD PRIMARY KEY ({columns})"


def concurrent_statement(statement: LiteralString) -> LiteralString:
    """Return the CONCURRENTLY form of a statement that builds or drops an index."""
    return statement.replace(" INDEX IF", " INDEX CONCURRENTLY IF", 1)


def of_partition(part: SchemaPart, partition: LiteralString) -> SchemaPart:
    """Return the part for one partition's index or key, from that of the partitioned table."""
    name = part.name + partition.removeprefix(part.table)
    statement = part.statement.replace(f" {part.name} ON {part.table} ", f" {name} ON {partition} ", 1)
    return replace(part, name=name, table=partition, statement=statement)

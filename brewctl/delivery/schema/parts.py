"""The parts of the schema, read from the migrations: tables, columns, keys, indexes, functions, partitions.

The last migration that makes, changes or drops a thing has the last word.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import LiteralString

from brewctl import sql

_COMMENT = re.compile(r"--.*")
# Says which migrations are complete: no role's statements need it.
VERSIONS = "schema_version"


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
class SchemaPart:
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


def parse(text: LiteralString, migration: int = 0) -> list[SchemaPart]:
    """Split a migration into its parts, in their order. Raises ValueError at a statement of an unknown form."""
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
    """Return the parts of the schema after these migrations: of two that name the same thing, the later one."""
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


# What a downstream needs beside its own tables, in a database of its own: of these tables those that there are.
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


def columns_statement(parts: Sequence[SchemaPart]) -> LiteralString:
    """Return the one statement that adds columns to a table, which is locked once for all of them."""
    first, *others = parts
    statement = first.statement
    for part in others:
        statement += ", ADD " + part.statement.partition(" ADD ")[2]
    return statement


def adopting_statement(key: SchemaPart) -> LiteralString:
    """Return the statement that makes a table's primary key of the unique index that was built for it."""
    return f"ALTER TABLE {key.table} ADD PRIMARY KEY USING INDEX {key.name}"


def whole_key_statement(key: SchemaPart) -> LiteralString:
    """Return the statement that makes a partitioned table's primary key of those of its partitions."""
    columns = ", ".join(f'"{column}"' for column in key.columns)
    return f"ALTER TABLE {key.table} ADD PRIMARY KEY ({columns})"


def concurrent_statement(statement: LiteralString) -> LiteralString:
    """Return a statement that builds or drops an index such that no writer waits for it."""
    return statement.replace(" INDEX IF", " INDEX CONCURRENTLY IF", 1)


def of_partition(part: SchemaPart, partition: LiteralString) -> SchemaPart:
    """Return the part of one partition that an index or key is made of."""
    name = part.name + partition.removeprefix(part.table)
    statement = part.statement.replace(f" {part.name} ON {part.table} ", f" {name} ON {partition} ", 1)
    return replace(part, name=name, table=partition, statement=statement)

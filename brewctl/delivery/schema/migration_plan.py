"""The SQL that `brewctl db migrate` would run, for psql, with a comment on what each step locks and reads."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import LiteralString

from brewctl import __version__, sql
from brewctl.delivery.schema import partitioning, parts
from brewctl.delivery.schema.parts import Kind, SchemaPart
from brewctl.limits import Limits
from brewctl.sql import queries

_FOR_A_MOMENT = (
    "locks {table} (ACCESS EXCLUSIVE) for a moment; waits {lock_ms} ms at a time for that, and others behind it"
)
# By the kind of part: which locks adding it takes, and which rows it reads or rewrites.
LOCKS = {
    Kind.TABLE: "locks nothing that is in use: the tables are new",
    Kind.COLUMN: f"{_FOR_A_MOMENT}; no row is read or rewritten, as each default is a constant",
    Kind.KEY: f"{_FOR_A_MOMENT}; no row is read or rewritten, as the index is there",
    Kind.INDEX: "locks {table} (SHARE UPDATE EXCLUSIVE): reads and writes go on; waits for open transactions, up to"
    " {whole_s} s; reads all rows twice, rewrites none",
    Kind.LEFTOVER: "locks {table} (SHARE UPDATE EXCLUSIVE): reads and writes go on; waits for open transactions, up to"
    " {whole_s} s; reads no row",
    Kind.FUNCTION: "locks no table",
    Kind.PARTITIONS: f"locks {{table}}: {partitioning.LOCKS}; waits {{lock_ms}} ms at a time for that; rewrites no row",
}
# For the index or key of a partitioned table, which attaches those of its partitions.
_WHOLE = f"{_FOR_A_MOMENT}; no row is read or rewritten, as those of the partitions are there"
Partitions = Mapping[str, Sequence[LiteralString]]


def from_nothing() -> list[SchemaPart]:
    """Return the parts that an empty database lacks: tables, which include their other parts, and functions."""
    tables = [part for part in parts.PARTS if part.kind is Kind.TABLE]
    others = [part for part in parts.PARTS if part.kind is Kind.FUNCTION and part.table not in parts.TABLES]
    return [*tables, *others]


def lines(
    lacking: Sequence[SchemaPart], recorded: Collection[int], limits: Limits, partitions: Partitions | None = None
) -> Iterator[str]:
    """Yield the SQL, migration by migration, each followed by its row in schema_version.

    `partitions`: the names of the partitions of each table that has any.
    """
    new = {part.table for part in lacking if part.kind is Kind.TABLE}
    whole = [*lacking, *(part for part in parts.PARTS if part.kind is Kind.PARTITIONS and part.table in new)]
    for number, name in sql.migration_names.items():
        for step in parts.steps([part for part in whole if part.migration == number]):
            yield from _step(name, step, limits, partitions or {})
        if number and number not in recorded:
            yield f"-- {name} is complete."
            row = f"({number}, '{name}', '{__version__}')"
            yield f"INSERT INTO schema_version (number, name, program) VALUES {row} ON CONFLICT (number) DO NOTHING;\n"  # noqa: S608 - of our own


def _step(name: str, step: Sequence[SchemaPart], limits: Limits, partitions: Partitions) -> Iterator[str]:
    part = step[0]
    match part.kind:
        case Kind.TABLE:
            tables = ", ".join(each.name for each in step if each.kind is Kind.TABLE)
            statements = [each.statement for each in step if each.kind not in {Kind.KEY, Kind.PARTITIONS}]
            yield _comment(name, f"tables {tables}", part, limits)
            yield from _creating(statements, limits)
        case Kind.FUNCTION:
            yield _comment(name, f"function {part}", part, limits)
            yield from _creating([part.statement], limits)
        case Kind.COLUMN:
            yield _comment(name, f"columns {', '.join(each.name for each in step)}", part, limits)
            yield from _transaction([parts.columns_statement(step)], limits)
        case Kind.PARTITIONS:
            yield _comment(name, str(part), part, limits)
            for statements in partitioning.statements(part.statement):
                yield from _transaction(statements, limits)
        case Kind.KEY:
            yield from _key(name, part, limits, partitions)
        case _:
            yield from _index(name, part, limits, partitions)


def _key(name: str, part: SchemaPart, limits: Limits, partitions: Partitions) -> Iterator[str]:
    for partition in (own := partitions.get(part.table, ())):
        yield from _key(name, parts.of_partition(part, partition), limits, {})
    if not own:
        yield from _index(name, SchemaPart(Kind.INDEX, part.name, part.table, part.statement), limits, {})
    yield _comment(name, str(part), part, limits, _WHOLE if own else "")
    yield from _transaction([parts.whole_key_statement(part) if own else parts.adopting_statement(part)], limits)


def _comment(name: str, what: str, part: SchemaPart, limits: Limits, locks: str = "") -> str:
    """Return the comment on what the next statements add, lock and read."""
    lock_ms = round(limits.schema_lock_s * 1000)
    said = (locks or LOCKS[part.kind]).format(table=part.table, lock_ms=lock_ms, whole_s=limits.schema_s)
    return f"-- {name}: {what}: {said}."


def _index(name: str, part: SchemaPart, limits: Limits, partitions: Partitions) -> Iterator[str]:
    """Yield the SQL that builds or drops an index, without a transaction. A half-built index is dropped first.

    For a partitioned table the indexes of its partitions are built so, and the table's attaches them.
    """
    dropped = part.kind is Kind.LEFTOVER
    what = f"{'drops ' * dropped}index {part.name}"
    if own := partitions.get(part.table):
        if part.invalid:
            yield _comment(name, f"drops index {part.name}", part, limits, _FOR_A_MOMENT)
            yield from _transaction([f"DROP INDEX IF EXISTS {part.name}"], limits)
        if not dropped:
            for partition in own:
                yield from _index(name, parts.of_partition(replace(part, invalid=False), partition), limits, {})
        yield _comment(name, what, part, limits, _FOR_A_MOMENT if dropped else _WHOLE)
        yield from _transaction([part.statement], limits)
        return
    if part.invalid:
        half_built = SchemaPart(Kind.LEFTOVER, part.name, part.table, f"DROP INDEX IF EXISTS {part.name}")
        yield from _index(name, half_built, limits, {})
    yield _comment(name, what, part, limits)
    yield f"{parts.concurrent_statement(part.statement)};\n"


def _creating(statements: Sequence[str], limits: Limits) -> Iterator[str]:
    around = [queries[name] for name in ("lock_schema", "fix_search_path", "act_as_owner")]
    yield from _transaction([*around, *statements], limits)


def _transaction(statements: Sequence[str], limits: Limits) -> Iterator[str]:
    yield "BEGIN;"
    yield f"SET LOCAL statement_timeout = '{limits.schema_s}s';"
    yield f"SET LOCAL lock_timeout = '{round(limits.schema_lock_s * 1000)}ms';"
    yield from (f"{statement};" for statement in statements)
    yield "COMMIT;\n"

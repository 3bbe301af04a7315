"""What `brewctl db migrate` would run, as SQL that psql takes: each step with what it locks and what it reads."""

from collections.abc import Collection, Iterator, Sequence
from typing import LiteralString

from brewctl import __version__, sql
from brewctl.delivery import schema
from brewctl.delivery.schema import Kind, Part
from brewctl.limits import Limits
from brewctl.sql import queries

_FOR_A_MOMENT = (
    "locks {table} (ACCESS EXCLUSIVE) for a moment; waits {lock_ms} ms at a time for that, and others behind it"
)
# Of each kind of part that is added to a table in use: what it locks, and what it does with rows.
LOCKS = {
    Kind.TABLE: "locks nothing that is in use: the tables are new",
    Kind.COLUMN: f"{_FOR_A_MOMENT}; no row is read or rewritten, as each default is a constant",
    Kind.KEY: f"{_FOR_A_MOMENT}; no row is read or rewritten, as the index is there",
    Kind.INDEX: "locks {table} (SHARE UPDATE EXCLUSIVE): reads and writes go on; waits for open transactions, up to"
    " {whole_s} s; reads all rows twice, rewrites none",
    Kind.LEFTOVER: "locks {table} (SHARE UPDATE EXCLUSIVE): reads and writes go on; waits for open transactions, up to"
    " {whole_s} s; reads no row",
    Kind.FUNCTION: "locks no table",
}


def from_nothing() -> list[Part]:
    """Return what is missing in an empty database: the tables have the rest with them."""
    return [part for part in schema.PARTS if part.kind in {Kind.TABLE, Kind.FUNCTION}]


def lines(lacking: Sequence[Part], recorded: Collection[int], limits: Limits) -> Iterator[str]:
    """Write the SQL, migration by migration, each with the row that says that it is complete."""
    for number, name in sql.migration_names.items():
        for step in schema.steps([part for part in lacking if part.migration == number]):
            yield from _step(name, step, limits)
        if number and number not in recorded:
            yield f"-- {name} is complete."
            row = f"({number}, '{name}', '{__version__}')"
            yield f"INSERT INTO schema_version (number, name, program) VALUES {row} ON CONFLICT (number) DO NOTHING;\n"  # noqa: S608 - of our own


def _step(name: str, step: Sequence[Part], limits: Limits) -> Iterator[str]:
    part = step[0]
    match part.kind:
        case Kind.TABLE:
            tables = ", ".join(each.name for each in step if each.kind is Kind.TABLE)
            statements = [each.statement for each in step if each.kind is not Kind.KEY]
            yield _comment(name, f"tables {tables}", part, limits)
            yield from _creating(statements, limits)
        case Kind.FUNCTION:
            yield _comment(name, f"function {part}", part, limits)
            yield from _creating([part.statement], limits)
        case Kind.COLUMN:
            yield _comment(name, f"columns {', '.join(each.name for each in step)}", part, limits)
            yield from _transaction([schema.columns_statement(step)], limits)
        case Kind.KEY:
            yield from _index(name, Part(Kind.INDEX, part.name, part.table, part.statement), limits)
            yield _comment(name, str(part), part, limits)
            yield from _transaction([schema.adopting_statement(part)], limits)
        case _:
            yield from _index(name, part, limits)


def _comment(name: str, what: str, part: Part, limits: Limits) -> str:
    """Say in a line before the statements what they add, lock and read."""
    locks = LOCKS[part.kind].format(
        table=part.table, lock_ms=round(limits.schema_lock_s * 1000), whole_s=limits.schema_s
    )
    return f"-- {name}: {what}: {locks}."


def _index(name: str, part: Part, limits: Limits) -> Iterator[str]:
    """Build an index, or drop one, in no transaction. One whose build was cut off is dropped first."""
    statement: LiteralString = part.statement
    if part.invalid:
        half_built = Part(Kind.LEFTOVER, part.name, part.table, f"DROP INDEX IF EXISTS {part.name}")
        yield from _index(name, half_built, limits)
    dropped = part.kind is Kind.LEFTOVER
    yield _comment(name, f"{'drops ' * dropped}index {part.name}", part, limits)
    yield f"{schema.concurrent_statement(statement)};\n"


def _creating(statements: Sequence[str], limits: Limits) -> Iterator[str]:
    around = [queries[name] for name in ("lock_schema", "fix_search_path", "act_as_owner")]
    yield from _transaction([*around, *statements], limits)


def _transaction(statements: Sequence[str], limits: Limits) -> Iterator[str]:
    yield "BEGIN;"
    yield f"SET LOCAL statement_timeout = '{limits.schema_s}s';"
    yield f"SET LOCAL lock_timeout = '{round(limits.schema_lock_s * 1000)}ms';"
    yield from (f"{statement};" for statement in statements)
    yield "COMMIT;\n"

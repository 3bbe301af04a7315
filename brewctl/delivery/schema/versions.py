"""Which migrations a database has, and how it gets those of this program that it lacks.

The catalog decides which statements run (completion.py); table schema_version has a row for each complete migration. A
row of a migration that this program does not know means that a newer program has migrated the database: nothing is
changed there, and roles go on, since migrations only add.
"""

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from brewctl import __version__, log, sql
from brewctl.delivery.database import table_locks
from brewctl.delivery.database.table_locks import Tell, nobody
from brewctl.delivery.schema import completion, parts
from brewctl.delivery.schema.parts import Kind, SchemaPart
from brewctl.errors import BrewError
from brewctl.sql import queries

if TYPE_CHECKING:
    from brewctl.delivery.database import BoundedConnection, Connection

PROGRAM = max(sql.migrations)  # the newest migration that this program knows
INIT, MIGRATE = "brewctl db init", "brewctl db migrate"
_log = log.get(__name__)


@dataclass(frozen=True)
class MigrationState:
    """A database's migrations. `recorded`: those with a row; `lacking`: the parts that `brewctl db migrate` adds."""

    recorded: frozenset[int]
    lacking: tuple[SchemaPart, ...]
    is_empty: bool  # whether all tables are missing

    @property
    def is_newer(self) -> bool:
        """Whether a newer program has migrated the database."""
        return max(self.recorded, default=0) > PROGRAM

    @property
    def version(self) -> int:
        """The newest migration that is complete, or has a row: parts may have been dropped since."""
        return max(self._complete, *self.recorded, 0)

    @property
    def _complete(self) -> int:
        """The last migration that is complete together with all before it."""
        lacking = [part.migration for part in self.lacking if part.table != parts.VERSIONS]
        return max(0, min(lacking, default=PROGRAM + 1) - 1)

    @property
    def unrecorded(self) -> list[int]:
        """The migrations that are complete by the catalog but have no row yet."""
        return [number for number in range(1, self._complete + 1) if number not in self.recorded]

    @property
    def is_current(self) -> bool:
        """Whether nothing is left to do for this program."""
        return self.is_newer or not (self.lacking or self.unrecorded)


def standing(connection: "Connection", tables: Collection[str] | None = None) -> MigrationState:
    """Return which migrations a database has. Locks no table of a role's. `tables`: those it needs; default: all."""
    numbers = recorded(connection)
    found = _left_out(connection, completion.missing(connection, tables), numbers)
    wanted = {name for name in parts.TABLES if tables is None or name in tables}
    return MigrationState(numbers, tuple(found), wanted <= {part.name for part in found if part.kind is Kind.TABLE})


def recorded(connection: "Connection") -> frozenset[int]:
    """Return the migrations that have a row; none where schema_version is missing or may not be read."""
    if connection.execute(queries["versions_readable"]).fetchone() != (True,):
        return frozenset()
    return frozenset(number for (number,) in connection.execute(queries["versions"]))


def lacking(connection: "Connection", tables: Collection[str] | None = None) -> list[SchemaPart]:
    """Return the parts that this program lacks in a database that a newer one may have migrated. Locks no table."""
    found = completion.missing(connection, tables)
    return _left_out(connection, found, recorded(connection)) if found else found


def _left_out(connection: "Connection", found: list[SchemaPart], numbers: frozenset[int]) -> list[SchemaPart]:
    """Leave out parts that a newer migration may have replaced: bodies of functions, and indexes that aren't unique."""
    if max(numbers, default=0) <= PROGRAM:
        return found
    kept = [part for part in found if part.is_needed and part.kind in {Kind.TABLE, Kind.COLUMN, Kind.KEY}]
    functions = [replace(part, body="") for part in found if part.kind is Kind.FUNCTION]
    unique = [part for part in found if part.kind is Kind.INDEX and "UNIQUE" in part.statement]
    return [*kept, *unique, *completion.state(connection, functions)]


def command(missing: Collection[str], init_command: str = INIT) -> str:
    """Return the command that adds these: `db migrate` where the database has tables already, else `init_command`."""
    return MIGRATE if init_command == INIT and "processed_events" not in missing else init_command


def tell_of_newer(connection: "Connection") -> None:
    """Log a warning where a newer program has migrated the database. For roles that start."""
    newest = max(recorded(connection), default=0)
    if newest > PROGRAM:
        hint = "roll this role to that program's version when you can"
        _log.warning("the database is newer than this program", database=newest, program=PROGRAM, hint=hint)


def bring_up(
    connection: "BoundedConnection", tell: Tell = nobody, tables: Collection[str] | None = None
) -> MigrationState:
    """Add the missing parts, migration by migration, with a row for each complete one; return the state before.

    Runs while roles work, in one session at a time: it waits for another one that migrates. With a complete schema, or
    a newer program's, it runs and locks nothing. Raises what completion.complete raises, and BrewError where another
    session migrates for longer than schema_s.
    """
    before = standing(connection, tables)
    if before.is_newer:
        tell(f"changes nothing: a newer program has made version {before.version}, and this one knows {PROGRAM}")
    if before.is_current:
        return before
    with _alone(connection, tell):
        found = standing(connection, tables)  # another session may have migrated meanwhile
        if found.is_current:
            return found
        for number, name in sql.migration_names.items():
            completion.complete(connection, partial(_numbered, tell, number), tables, until=number)
            if number and number not in found.recorded:
                _write(connection, number, name)
    return found


def _write(connection: "BoundedConnection", number: int, name: str) -> None:
    """Write a complete migration's row."""

    def attempt() -> bool:
        with table_locks.bounded(connection):
            row = {"number": number, "name": name, "program": __version__}
            connection.execute(queries["write_version"], row)
        return True

    table = f"table {parts.VERSIONS}"
    in_the_way = partial(table_locks.holders, connection, [parts.VERSIONS])
    table_locks.until_free(connection, attempt, lambda: table_locks.in_use(table, in_the_way()))


def _numbered(tell: Tell, number: int, text: str) -> None:
    tell(f"{number:04d} {text}")


@contextlib.contextmanager
def _alone(connection: "BoundedConnection", tell: Tell) -> Iterator[None]:
    """Keep other sessions from migrating during the block.

    It takes an advisory lock of the session, since an index is built outside a transaction. Behind a pooler statements
    run in changing sessions, so there it only waits for a session that migrates. Two that begin at the same moment
    still do each step once: changes of a table lock it, and while one builds an index the other waits for the build.
    """
    deadline = time.monotonic() + connection.limits.schema_s
    between = table_locks.pauses()
    told = False
    while not _begin(connection):
        who = _migrating(connection)
        if time.monotonic() > deadline:
            pid, name = who[0] if who else (0, "")
            hint = f"run this again when that is over, or end it in psql: `SELECT pg_terminate_backend({pid});`"
            raise BrewError(f"another session migrates this database: pid {pid} ({name or 'no name'})", hint=hint)
        if who and not told:
            pid, name = who[0]
            tell(f"waits for pid {pid} ({name or 'no name'}), which migrates this database …")
            told = True
        between.pause()
    try:
        yield
    finally:
        if not (connection.pooled or connection.closed):
            connection.execute(queries["end_migrating"])


def _begin(connection: "BoundedConnection") -> bool:
    if connection.pooled:
        return not _migrating(connection)
    return connection.execute(queries["begin_migrating"]).fetchone() == (True,)


def _migrating(connection: "Connection") -> Sequence[tuple[int, str]]:
    return [(int(pid), str(name)) for pid, name in connection.execute(queries["migrating"])]

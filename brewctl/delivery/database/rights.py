"""Reads from grants.sql which rights each role needs, and checks that the user of a connection has them."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from brewctl import sql
from brewctl.errors import NotYetError
from brewctl.sql import queries

if TYPE_CHECKING:
    from brewctl.delivery.database import Connection

HINT = "`brewctl db grants` prints what each role needs, and how a user gets it"
_GRANT = re.compile(r"GRANT (?P<rights>[^;]*) ON (?P<table>\w+) TO :role")
_DENIED = re.compile(r"for table (\w+)$")
_RIGHT = re.compile(r"([A-Z]+)(?: \(([^)]*)\))?")


@dataclass(frozen=True, slots=True)
class Right:
    """A right to a table, or to one of its columns."""

    right: str  # SELECT, INSERT, UPDATE, DELETE
    table: str
    column: str = ""

    def __str__(self) -> str:
        return f"{self.right} {self.table}{f'.{self.column}' if self.column else ''}"


def of(*sections: str) -> list[Right]:
    """Return the rights in these sections of grants.sql."""
    return [right for section in sections for right in _read(sql.grants[section])]


def _read(text: str) -> Iterator[Right]:
    for grant in _GRANT.finditer(text):
        for right, columns in _RIGHT.findall(grant["rights"]):
            for column in columns.split(",") if columns else [""]:
                yield Right(right, grant["table"], column.strip(' "\n'))


def require(connection: "Connection", role: str, sections: Collection[str]) -> None:
    """Raise NotYetError where the user of a connection lacks a right of these sections of grants.sql.

    `role`: its name for the message. Reads the catalog alone.
    """
    wanted = of(*sections)
    columns = {
        "tables": [each.table for each in wanted],
        "columns": [each.column for each in wanted],
        "rights": [each.right for each in wanted],
    }
    lacking = [wanted[place - 1] for (place,) in connection.execute(queries["lacking_rights"], columns)]
    if lacking:
        message = f"postgres user {connection.info.user} may not {_listed(lacking)}, as {role} has to"
        raise NotYetError(message, hint=HINT)


def _listed(lacking: Sequence[Right]) -> str:
    """Name missing rights in one line of a bounded length: at most three, each with at most three columns."""
    columns: dict[tuple[str, str], list[str]] = {}
    for each in lacking:
        columns.setdefault((each.right, each.table), []).append(each.column)
    said = [_named(right, table, names) for (right, table), names in columns.items()]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")  # noqa: PLR2004


def _named(right: str, table: str, columns: Sequence[str]) -> str:
    shown = [column for column in columns if column]
    if not shown:
        return f"{right} {table}"
    return f"{right} {table} ({', '.join(shown[:3])}{', …' if len(shown) > 3 else ''})"  # noqa: PLR2004


def refused(where: str, user: str, error: psycopg.Error, held: Sequence[str] | None) -> NotYetError:
    """Return the error of a statement that a user lacks the right for. `where`: the database.

    `held`: the rights that the user has to the table; None: not known.
    """
    said = error.diag.message_primary or str(error).splitlines()[0]
    alone = ""
    if held is not None:
        alone = f" (it may only {', '.join(held)} there)" if held else " (it has none there)"
    return NotYetError(f"postgres {where}: user {user} lacks a right: {said}{alone}", hint=HINT)


def table_of(error: psycopg.Error) -> str:
    """Return the table of a permission error; "" where the error is another one."""
    found = _DENIED.search(error.diag.message_primary or "")
    return found[1] if found else ""


def held(connection: "Connection", table: str) -> list[str]:
    """Return which rights the user of a connection has to a table or to any of its columns."""
    rows = connection.execute(queries["held_rights"], {"table": table, "rights": ["SELECT", "INSERT", "UPDATE"]})
    return [right for (right,) in rows]

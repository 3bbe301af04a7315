"""Finds the tables that a downstream's own `schema` makes, and writes the grants for them."""

import re
from dataclasses import dataclass

from brewctl.delivery import sql_text

_KINDS = frozenset({"table", "view", "sequence"})
_BEFORE_KIND = frozenset({"or", "replace", "unlogged", "materialized", "foreign", "recursive", "global", "local"})
_ALL = "SELECT, INSERT, UPDATE, DELETE"


@dataclass(frozen=True)
class Own:
    """The tables, views and sequences that a downstream's `schema` makes, named as they are there."""

    role: str
    tables: tuple[str, ...]  # and views
    sequences: tuple[str, ...]
    serial: bool  # whether some columns have sequences


def literal(role: str, *, as_is: bool = False) -> str:
    """Return a name as an SQL literal; of a quoted role, unless `as_is`, the name between the quotes."""
    name = role if as_is or not role.startswith('"') else role[1:-1].replace('""', '"')
    return "'" + name.replace("'", "''") + "'"


def given(own: Own, operator: str) -> list[str]:
    """Return the SQL that gives a downstream and the operator all rights to the tables of its `schema`."""
    users = f"{own.role}, {operator}"
    schemas = dict.fromkeys(table.rpartition(".")[0] for table in own.tables if "." in table)
    lines = [f"GRANT USAGE ON SCHEMA {name} TO {users};" for name in schemas]
    if own.tables:
        lines.append(f"GRANT {_ALL} ON {', '.join(own.tables)} TO {users};")
    if own.sequences:
        lines.append(f"GRANT USAGE, SELECT ON SEQUENCE {', '.join(own.sequences)} TO {users};")
    if own.serial:
        tables = ", ".join(f"{literal(name, as_is=True)}::regclass" for name in own.tables)
        lines += [
            "DO $$",
            "DECLARE sequence regclass;",
            "BEGIN",
            "    FOR sequence IN SELECT d.objid FROM pg_depend d",
            "                     WHERE (SELECT relkind FROM pg_class c WHERE c.oid = d.objid) = 'S'",
            f"                       AND d.deptype = 'a' AND d.refobjid IN ({tables})",
            "    LOOP",
            f"        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO {users}', sequence);",
            "    END LOOP;",
            "END",
            "$$;",
        ]
    return lines


def made_by(text: str, role: str) -> Own:
    """Return the tables, views and sequences that a downstream's `schema` creates, without temporary ones."""
    found: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    statements: list[list[str]] = [[]]
    serial = False
    for kind, sign, _ in sql_text.tokens(text):
        if sign == ";":
            statements.append([])
            continue
        statements[-1].append(sign)
        serial |= kind == "word" and bool(re.fullmatch(r"(?i)(small|big)?serial[248]?", sign))
    for words in statements:
        if words[:1] and words[0].lower() == "create":
            rest = [*words[1:]]
            while rest and rest[0].lower() in _BEFORE_KIND:
                rest.pop(0)
            if rest and (made := rest[0].lower()) in _KINDS:
                rest = rest[4:] if [word.lower() for word in rest[1:4]] == ["if", "not", "exists"] else rest[1:]
                name = "".join(rest[:3]) if rest[1:2] == ["."] else rest[0] if rest else ""
                if name and name not in found[made]:
                    found[made].append(name)
    return Own(role, (*found["table"], *found["view"]), tuple(found["sequence"]), serial)

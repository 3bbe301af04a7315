"""The parts of the migrations, and how those are named that a change has to wait for."""

import re

import pytest

from brewctl.delivery.database import table_locks
from brewctl.delivery.database.table_locks import Holder
from brewctl.delivery.schema import parts
from brewctl.delivery.schema.parts import Kind, SchemaPart


def test_every_statement_of_the_schema_is_a_part() -> None:
    assert {part.kind for part in parts.PARTS} == set(Kind)
    keys = {part.table: part.columns for part in parts.PARTS if part.kind is Kind.KEY}
    assert {*keys} <= {*parts.TABLES}
    assert keys["processed_events"] == ("consumer", "outbox_id")
    assert keys["dead_letters_settled"] == ("topic", "partition", "offset", "written_at")
    assert keys["orders"] == ("id",)
    named = {str(part) for part in parts.PARTS}
    assert {"orders", "outbox.attempts", "outbox_ready", "outbox_unpublished"} <= named


@pytest.mark.parametrize("text", ["CREATE VIEW v AS SELECT 1;", "CREATE TABLE t (a int);", "DROP TABLE t;"])
def test_a_statement_that_could_not_be_looked_for_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no known form"):
        parts.parse(text)


def test_a_table_may_have_no_key() -> None:
    (table,) = parts.parse("CREATE TABLE IF NOT EXISTS t (a int, b text[] NOT NULL);")
    assert (table.kind, table.name) == (Kind.TABLE, "t")


@pytest.mark.parametrize(
    ("part", "needed"),
    [
        (SchemaPart(Kind.TABLE, "t", "t", ""), True),
        (SchemaPart(Kind.COLUMN, "c", "t", ""), True),
        (SchemaPart(Kind.KEY, "t_pkey", "t", ""), True),
        (SchemaPart(Kind.INDEX, "i", "t", "CREATE UNIQUE INDEX i"), True),
        (SchemaPart(Kind.INDEX, "i", "t", "CREATE INDEX i"), False),
        (SchemaPart(Kind.LEFTOVER, "i", "i", "DROP INDEX i"), False),
    ],
)
def test_what_a_role_can_not_do_without(part: SchemaPart, needed: bool) -> None:
    assert part.is_needed == needed


@pytest.mark.parametrize(
    ("holder", "who", "mend"),
    [
        (
            Holder("3/7", 4711, "pg_dump", None, 95.4),
            "pid 4711 (pg_dump), whose transaction is 95 s old",
            "SELECT pg_terminate_backend(4711);",
        ),
        (Holder("3/7", 4711, "", None, None), "pid 4711 (no name)", "SELECT pg_terminate_backend(4711);"),
        (
            Holder("-1/812", None, "", "shop-1", 4000.0),
            "prepared transaction 'shop-1', whose transaction is 4000 s old",
            "ROLLBACK PREPARED 'shop-1';",
        ),
    ],
)
def test_who_is_in_the_way(holder: Holder, who: str, mend: str) -> None:
    error = table_locks.in_use("table outbox", [holder])
    assert error.message == f"table outbox can't be changed: it is in use by {who}"
    assert error.hint == f"run this again when that is over, or end it in psql: `{mend}`"
    assert re.search(", and 1 more$", table_locks.in_use("table outbox", [holder, holder]).message)


def test_who_comes_and_goes_is_not_named() -> None:
    assert "when the roles have less to do" in table_locks.in_use("table outbox", []).hint

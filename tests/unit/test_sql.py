"""The SQL files: every query has a name, a user and safe text; nothing restarts an identity."""

import ast
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

import brewctl
from brewctl.delivery.schema.parts import TABLES
from brewctl.sql import (
    bench_queries,
    doctor_queries,
    exporter_queries,
    migrations,
    parse,
    queries,
    retention_queries,
    verify_queries,
)

TEXT, VERIFY_TEXT = (
    resources.files("brewctl.sql").joinpath(name).read_text("utf-8") for name in ("queries.sql", "verify.sql")
)
SOURCES = sorted(Path(brewctl.__file__).parent.rglob("*.py"))
SCHEMA = "\n".join(migrations.values())
# Those of retention that read one partition have its name put in, quoted.
PARTITION = {
    name: text.replace("{partition}", "outbox_p0").replace("{{", "").replace("}}", "")
    for name, text in retention_queries.items()
}
EVERY = queries | verify_queries | bench_queries | doctor_queries | exporter_queries | PARTITION
each_query = pytest.mark.parametrize("name", sorted(EVERY))


def used_names() -> Iterator[str]:
    """Names that the source looks up: `queries["name"]`, `_fetch(connection, "name", …)`, `effect="name"`."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Subscript(value=ast.Name(id="queries"), slice=ast.Constant(value=str(name))):
                    yield name
                case ast.Call(func=ast.Name(id="_fetch"), args=[_, ast.Constant(value=str(name)), *_]):
                    yield name
                case ast.keyword(arg="effect", value=ast.Constant(value=str(name))):
                    yield name


def tables_of_the_schema() -> set[str]:
    return set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", SCHEMA))


def test_every_heading_became_a_query() -> None:
    for text, found in ((TEXT, queries), (VERIFY_TEXT, verify_queries)):
        headings = re.findall(r"^-- (\S+) --$", text, re.MULTILINE)
        assert headings
        assert len(headings) == len(set(headings)), "a name is there twice"
        assert set(headings) == set(found)


def test_every_query_is_used_and_every_used_one_exists() -> None:
    assert set(used_names()) == set(queries)


@each_query
def test_a_query_is_one_statement(name: str) -> None:
    statement = EVERY[name]
    assert statement.split()[0] in {
        "SELECT",
        "INSERT",
        "UPDATE",
        "DELETE",
        "TRUNCATE",
        "WITH",
        "CREATE",
        "COPY",
        "ANALYZE",
    }
    assert ";" not in statement
    assert "--" not in statement
    assert statement.count("(") == statement.count(")")
    assert statement.count("'") % 2 == 0


@each_query
def test_values_never_become_sql_text(name: str) -> None:
    statement = EVERY[name]
    assert not re.search(r"[{}]", statement.replace("'{}'", ""))  # an empty array
    assert "%" not in re.sub(r"%\([a-z_]+\)[sb]", "", statement)


@pytest.mark.parametrize("statement", [SCHEMA, *EVERY.values()])
def test_identities_are_never_restarted(statement: str) -> None:
    assert not re.search(r"RESTART\s+(IDENTITY|WITH)|\bRESTART\b(?=\s*\d)|setval", statement, re.IGNORECASE)
    assert not re.search(r"TRUNCATE(?!.*CONTINUE IDENTITY)", statement, re.IGNORECASE | re.DOTALL)


@pytest.mark.parametrize("statement", [SCHEMA, *EVERY.values()])
def test_commits_are_not_serialised(statement: str) -> None:
    assert not re.search(r"\b(LISTEN|NOTIFY|pg_notify)\b", statement)


@pytest.mark.parametrize("statement", verify_queries.values())
def test_a_verification_writes_only_to_its_own_tables(statement: str) -> None:
    own = set(re.findall(r"CREATE TEMP (?:TABLE|VIEW) (\w+)", VERIFY_TEXT))
    written = re.match(r"(?:INSERT INTO|UPDATE|DELETE FROM|COPY|CREATE TABLE) (\w+)", statement)
    assert written is None or written[1] in own


@pytest.mark.parametrize(
    ("package", "named"), [("verify", verify_queries), ("doctor", doctor_queries), ("retention", retention_queries)]
)
def test_every_query_of_a_package_is_used(package: str, named: dict[str, str]) -> None:
    source = "".join(path.read_text("utf-8") for path in SOURCES if path.parent.name == package)
    assert [name for name in named if f'"{name}"' not in source] == []


@pytest.mark.parametrize("statement", doctor_queries.values())
def test_a_doctor_only_looks(statement: str) -> None:
    assert statement.startswith("SELECT ")


def test_the_schema_only_creates_what_is_missing_and_drops_no_data() -> None:
    code = re.sub(r"--.*", "", SCHEMA)
    outside = re.sub(r"\$\$.*?\$\$", "", code, flags=re.DOTALL)  # of a function's body
    statements = [" ".join(part.split()) for part in outside.split(";") if part.strip()]
    harmless = (
        r"(CREATE (TABLE|INDEX|UNIQUE INDEX)|ALTER TABLE \w+ ADD COLUMN) IF NOT EXISTS |DROP INDEX IF EXISTS "
        r"|CREATE OR REPLACE FUNCTION |SELECT partition_table\("
    )
    assert all(re.match(harmless, statement) for statement in statements), statements
    assert not re.search(r"\b(DROP (?!INDEX|IDENTITY|CONSTRAINT)|DELETE|TRUNCATE)\b", code, re.IGNORECASE)


def test_all_tables_are_looked_for_and_reset() -> None:
    tables = tables_of_the_schema()
    assert {"orders", "outbox", "processed_events", "inventory_reservations", "notifications_log"} <= tables
    assert set(TABLES) == tables
    emptied = set(re.findall(r"\w+", queries["reset"])) - {"TRUNCATE", "CONTINUE", "IDENTITY"}
    # Whose group is whose stays, and how long, and which migrations there are.
    assert emptied == tables - {"downstreams", "retention", "schema_version"}


@pytest.mark.parametrize("name", ["create_orders", "fetch_unpublished", "inbox"])
def test_what_a_query_is_for_is_no_part_of_it(name: str) -> None:
    assert re.search(rf"^-- {name} --\n-- \w", TEXT, re.MULTILINE)
    assert queries[name].startswith(("SELECT", "WITH"))


def test_the_format_of_the_file() -> None:
    text = "-- A file.\n\n-- one --\n-- What it is for,\n-- in two lines.\nSELECT 1\n\n-- two --\nSELECT\n  2\n"
    assert parse(text) == {"one": "SELECT 1", "two": "SELECT\n  2"}

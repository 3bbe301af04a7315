"""Which files know the names of the story's two downstreams: a tool that names them leaves a user's own out."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import brewctl
from brewctl.sql import queries

ROOT = Path(brewctl.__file__).parent
# Names and values; what is written for people, such as an example in a help text, has blanks in it.
NAMED = re.compile(r"(?:inventory|notifications?|reservations?|reserved|notified)(?:[-_]\w+)?")
TABLES = re.compile(r"inventory_reservations|notifications_log")
MAY = {
    "config.py",  # what the settings are without BREW_DOWNSTREAMS
    "roles/inventory.py",
    "roles/notifications.py",
    "roles/webhook/__init__.py",
    "overview/counters.py",  # the contract's lines: four counters, the inventory distribution
    "cli/counts.py",  # the same, as JSON
}
MAY_ALL = ("lab/demo/", "lab/bench/")  # they play and measure the story
# Statements of the two, of the contract's lines; and what empties every table.
MAY_SQL = {
    "reserve",
    "notify",
    "counts",
    "inventory_distribution",
    "reset",
}


def names_in(source: str) -> Iterator[str]:
    """Yield every identifier and every text of a module, but for its docstrings."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield text
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.alias(name=name):
                yield name


def told(source: str) -> list[str]:
    return [name for name in names_in(source) if NAMED.fullmatch(name) or TABLES.search(name)]


def test_only_these_files_name_them() -> None:
    found = {str(path.relative_to(ROOT)): told(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}
    naming = {path: names for path, names in found.items() if names and not path.startswith(MAY_ALL)}
    assert {path: names for path, names in naming.items() if path not in MAY} == {}
    assert naming.keys() == MAY, "one that names none any more is taken off the list"


def test_only_these_statements_name_their_tables() -> None:
    assert {name for name, text in queries.items() if TABLES.search(text)} == MAY_SQL
    assert not TABLES.search((ROOT / "sql" / "verify.sql").read_text(encoding="utf-8"))


def test_a_name_is_found_wherever_it_is_written() -> None:
    assert told('"""inventory"""\nx = 1  # inventory\nhelp = "as inventory 2"') == []
    for source in (
        'f("inventory")',
        "counts.reservations",
        "f(notified=1)",
        "def inventory(): ...",
        "from a import notifications",
        'f"SELECT FROM inventory_reservations {x}"',
        'f("inventory-1")',
    ):
        assert told(source), source

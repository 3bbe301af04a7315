"""The words of errors: one pattern, wherever they are raised."""

import ast
from collections.abc import Iterator
from pathlib import Path

import brewctl

SOURCES = sorted(Path(brewctl.__file__).parent.rglob("*.py"))
ERRORS = {"BrewError", "UsageError", "UnreachableError"}


def texts(node: ast.expr) -> str:
    """The text of a literal, with a mark for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "§" for part in node.values)  # type: ignore[misc]
    return ""


def raised() -> Iterator[tuple[str, str, str]]:
    """Every error that is made in the program: where, its message, its hint."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS and node.args:
                hint = next((keyword.value for keyword in node.keywords if keyword.arg == "hint"), ast.Constant(""))
                yield f"{path.name}:{node.lineno}", texts(node.args[0]), texts(hint)


def test_an_error_is_lower_case_and_ends_without_a_full_stop() -> None:
    errors = list(raised())
    assert len(errors) > 100
    for where, *texts_of_it in errors:
        for text in texts_of_it:
            first = text.lstrip("`")[:1]
            assert not first.isupper() or text.startswith("BREW_"), (where, text)
            assert not text.endswith((".", "!")), (where, text)
        assert "\n" not in texts_of_it[1], where

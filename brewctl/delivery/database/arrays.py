"""Arrays in PostgreSQL's text format: psycopg writes short lists slower than the server inserts their rows."""

from collections.abc import Iterable


def of_numbers(values: Iterable[int]) -> str:
    """Return an array of numbers."""
    return f"{{{','.join(map(str, values))}}}"


def of_texts(values: Iterable[str | None]) -> str:
    """Return an array of texts, or of values that are written as text, such as ids and times. None is NULL."""
    return f"{{{','.join([_quoted(value) for value in values])}}}"


def of_bytes(values: Iterable[bytes]) -> str:
    """Return an array of bytea."""
    return f"{{{','.join([_hex(value) for value in values])}}}"


def _quoted(value: str | None) -> str:
    if value is None:
        return "NULL"
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'


def _hex(value: bytes) -> str:
    return f'"\\\\x{value.hex()}"'

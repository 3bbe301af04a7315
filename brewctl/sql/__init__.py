"""The SQL of brewctl, read from files: migrations by their numbers, queries and grants by their names."""

import re
from collections.abc import Iterator
from importlib import resources
from typing import LiteralString

_HEADING = re.compile(r"(?:\n|^)-- ([a-z_]+) --\n(?:-- .*\n)*")


def _read(name: str) -> LiteralString:
    # These files are part of the program, and as trustworthy as its source.
    return resources.files(__name__).joinpath(name).read_text("utf-8")


def parse(text: LiteralString) -> dict[str, LiteralString]:
    """Return the statements of a file in the format of queries.sql, by name."""
    _, *parts = _HEADING.split(text)
    return dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))


def _migrations() -> Iterator[tuple[int, str, LiteralString]]:
    names = sorted(file.name for file in resources.files(__name__).joinpath("migrations").iterdir())
    for name in names:
        if name.endswith(".sql"):
            yield int(name[:4]), name.removesuffix(".sql"), _read(f"migrations/{name}")


_read_migrations = [*_migrations()]
# By number: each file is NNNN_what_it_adds.sql. Number 0 makes the table that lists the others.
migrations = {number: text for number, _, text in _read_migrations}
migration_names = {number: name for number, name, _ in _read_migrations}
queries = parse(_read("queries.sql"))
verify_queries = parse(_read("verify.sql"))
bench_queries = parse(_read("bench.sql"))
doctor_queries = parse(_read("doctor.sql"))
exporter_queries = parse(_read("exporter.sql"))
retention_queries = parse(_read("retention.sql"))
grants = parse(_read("grants.sql"))

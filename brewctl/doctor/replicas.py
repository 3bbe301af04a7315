"""The replicas: whether something keeps one from its work, as each says in the row that it writes every second."""

from collections.abc import Iterator

from brewctl import overview
from brewctl.delivery.database import Connection
from brewctl.doctor.finding import Finding, warn


def check(connection: Connection) -> Iterator[Finding]:
    """Look at their rows; one that has no trouble has no line."""
    for node in overview.nodes(connection):
        if node.there and node.trouble:
            mend = f"see its log, and what the sessions of {node.name} wait for in pg_stat_activity"
            yield warn(node.role, f"{node.name}: {node.trouble}", mend=mend)

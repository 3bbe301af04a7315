"""The replicas' troubles: each replica writes a row every second, which says what keeps it from its work."""

from collections.abc import Iterator

from brewctl import overview
from brewctl.delivery.database import Connection
from brewctl.doctor.finding import Finding, warn


def check(connection: Connection) -> Iterator[Finding]:
    """Warn of each replica that reports trouble."""
    for node in overview.nodes(connection):
        if node.there and node.trouble:
            mend = f"see its log, and what the sessions of {node.name} wait for in pg_stat_activity"
            yield warn(node.role, f"{node.name}: {node.trouble}", mend=mend)
